"""examples/model_coverage.py: networks of other libraries, and the table in docs/coverage.md."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import model_coverage
from model_coverage import NETWORKS, CoverageError, Result, check, images

SAMPLE = """
    torchvision googlenet, torchvision mobilenet_v2, torchvision shufflenet_v2_x1_0, torchvision squeezenet1_1,
    timm densenet121, timm mnasnet_100, timm regnety_002, timm repvgg_a0, timm res2net50_26w_4s, timm seresnet18,
    timm tf_efficientnet_lite0, timm vgg11_bn, transformers ResNet
"""


def network(title):
    found = next(network for network in NETWORKS if network.title == title)
    try:
        found.make()
    except (CoverageError, OSError) as error:  # transformers raises OSError if a package that it looks for is broken
        pytest.skip(str(error))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("title", [title.strip() for title in SAMPLE.split(",")])
def test_networks_convert_train_and_freeze(title):
    result = check(network(title))
    assert (result.converts, result.trains, result.freezes) == ("yes", "yes", "yes"), result.reasons


@pytest.mark.slow
def test_a_network_that_does_not_convert():
    result = check(network("timm skresnet18"))
    assert (result.converts, result.trains, result.freezes, result.exports) == ("no", "-", "-", "-")
    assert any("stack" in reason for reason in result.reasons)


@pytest.mark.slow
def test_statistics_and_weights_of_batch_norm():
    found = network("timm resnet18")
    ann = found.make().eval()
    model_coverage.prepare(ann, images(found))
    norms = [module for module in ann.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.running_var.std() > 0 and norm.weight.any() and norm.momentum == 0.9 for norm in norms)
    assert not any(module.training for module in ann.modules())


class Small(model_coverage.Network):
    def make(self):
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def test_what_is_checked(monkeypatch):
    small = Small("torch", "small", size=8)
    assert check(small) == Result("yes", "yes", "yes", "yes")
    assert check(small, quick=True) == Result("yes")

    def trained(change):
        with monkeypatch.context() as patch:
            patch.setattr(model_coverage.TandemNetwork, "forward", lambda self, x: change(self.snn(x)))
            result = check(small)
        assert (result.converts, result.trains) == ("yes", "no")
        return result.reasons[0]

    assert trained(lambda y: y * torch.nan) == "the loss is nan"
    assert trained(lambda y: y.detach().requires_grad_()) == (
        "4 parameters have no finite gradient, such as snn.0.weight"
    )
    y = trained(lambda y: y.detach() + 1e4 * (y - y.detach()))
    assert y.startswith("the largest gradient is ")
    assert y.endswith("e+04 times the ANN's")
    monkeypatch.setattr(model_coverage, "freeze", lambda snn: lambda x: snn(x) + 0.1)
    assert check(small).reasons == ["the frozen network differs by 1.0e-01"]


def test_reasons():
    message = "convert: these are not:\n  3 GELU: use nn.ReLU\n      a, b, c\n  x (Conv3d): use nn.Conv2d"
    assert model_coverage.reasons(message) == ["3 GELU: use nn.ReLU", "Conv3d: use nn.Conv2d"]
    assert model_coverage.reasons("freeze: no\nmore") == ["freeze: no"]
    calls = "convert: not\n  mul_1 (mul in forward of a.b): remove it\n  mul (mul in forward of A): remove it"
    assert model_coverage.reasons(calls) == ["mul: remove it"]
    assert model_coverage.reasons("to_nir: not\n  pad (call_function): calls must be\n  a.0 (ReLU): no") == [
        "pad: calls must be",
        "ReLU: no",
    ]


@pytest.mark.parametrize(
    ("reason", "part"),
    [
        ("46 permute: move it", "permute"),
        ("SpikingMaxPool2d: NIR has no max pooling; use average pooling", "SpikingMaxPool2d"),
        ("add_1 (TandemAdd), branch 2: upsample (SpikeRearrange) before it must be followed", "TandemAdd"),
        ("classifier.weight: calls must be of modules", "classifier.weight"),
        ("RuntimeError: a defect", "RuntimeError: a defect"),
        ("the loss is nan", "the loss is nan"),
    ],
)
def test_what_stops_a_network(reason, part):
    assert model_coverage.stopped_by(reason) == part


def test_table(tmp_path, capsys):
    """Rows of other networks stay; the order is that of NETWORKS."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{model_coverage.BEGIN}\n{model_coverage.END}\nafter\n")
    alexnet, dla = (next(n for n in NETWORKS if n.name == name) for name in ("alexnet", "dla34"))
    no = Result("no", reasons=["a | b", "a | b", "c"])
    model_coverage.write_page(page, {dla.title: no.row(dla)})
    model_coverage.write_page(page, {alexnet.title: Result("yes", "yes", "no", "yes").row(alexnet)})
    text = page.read_text()
    assert [*model_coverage.known(text)] == [
        ["torchvision alexnet", "", "yes", "yes", "no", "yes", ""],
        ["timm dla34", "", "no", "-", "-", "-", "a | b; c"],
    ]
    assert "Of 2 networks, 1 converts, 1 trains, 0 freeze and 1 exports to NIR." in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    (tmp_path / "empty.md").write_text("")
    with pytest.raises(CoverageError, match="has no lines"):
        model_coverage.write_page(tmp_path / "empty.md", {})


def test_missing_libraries():
    with pytest.raises(
        CoverageError, match=r"no_such_library cannot be imported .*pip install 'tandem_cuda\[examples\]'"
    ):
        model_coverage.imported("no_such_library")


def test_the_page_has_every_network():
    """Rows are in the page in the order of the list; the page has none that the list lacks."""
    titles = [row[0] for row in model_coverage.known(model_coverage.PAGE.read_text())]
    assert titles == [network.title for network in NETWORKS]
