"""examples/model_coverage.py: networks of other libraries, and the tables in docs/coverage.md."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import model_coverage
from model_coverage import CoverageError, Network, Result, advised, check

ROWS = [*model_coverage.known(model_coverage.PAGE.read_text())]
EVERY = -(-len(ROWS) // 12)
QUICK = range(2, len(ROWS), EVERY)  # which take less time than those beside them
EACH = [pytest.param(row, id=row[0], marks=[pytest.mark.nightly] * (i not in QUICK)) for i, row in enumerate(ROWS)]


def network(title):
    found = Network(*title.split())
    try:
        found.make()
    except (CoverageError, RuntimeError, ValueError) as error:  # timm raises RuntimeError for names that it lacks
        pytest.skip(str(error))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("row", EACH)
def test_networks_do_what_the_page_says(row):
    """Twelve in every run, all networks every night."""
    (_, call, converts, _, *rest, why) = row
    (_, call_now, converts_now, _, *rest_now, why_now) = check(network(row[0])).row(Network(*row[0].split()))
    assert (call_now, converts_now, rest_now) == (call, converts, rest), (why_now, why)


def test_the_draw_of_the_page():
    """Of each family one network at most."""
    try:
        families = model_coverage.families()
    except CoverageError as error:
        pytest.skip(str(error))
    assert len(families) > 50
    found = {network.title: family for family, networks in families.items() for network in networks}
    titles = [row[0] for row in ROWS]
    assert {*titles} <= {*found}
    assert len({found[title] for title in titles}) == len(titles)


def test_draws(monkeypatch):
    sizes = {"small": 1, "large": 10**9, "huge": 2 * 10**9}
    monkeypatch.setattr(model_coverage, "parameters", lambda network: sizes[network.name.rstrip("0123456789")])
    every = {
        f"family {i}": [Network("timm", f"{name}{i}") for name in (["large", "huge"] if i else ["small", "huge"])]
        for i in range(9)
    }
    monkeypatch.setattr(model_coverage, "families", lambda: every)
    drawn = model_coverage.drawn(0, 100)
    assert sorted(network.name for network in drawn) == [*(f"large{i}" for i in range(1, 9)), "small0"]
    assert drawn == model_coverage.drawn(0, 9)
    few = model_coverage.drawn(0, 4)
    assert len(few) == 4
    assert any(few != model_coverage.drawn(seed, 4) for seed in range(1, 5))


def test_what_no_network_of_neurons_computes():
    x = torch.rand(2, 3, 8, 8)
    attention = nn.Sequential(nn.Flatten(2), nn.LayerNorm(64), nn.Softmax(2))
    assert model_coverage.impossible(nn.GroupNorm(3, 3), x) == ["group norm"]
    assert model_coverage.impossible(attention, x) == ["attention", "layer norm"]
    assert model_coverage.impossible(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.SiLU()), x) == []


def test_arguments_that_a_message_names():
    assert advised(["x: use batch norm"]) == {}
    assert advised(["2 mul: pass gates='analogue', which"]) == {"gates": "analogue"}
    found = advised(["a: use nn.ReLU, as replace={nn.SiLU: nn.ReLU} does", "b: replace={'tanh': nn.Hardtanh}"])
    assert found == {"replace": {nn.SiLU: nn.ReLU, "tanh": nn.Hardtanh}}
    assert model_coverage.written({}) == "plain"
    words = "gates, SiLU replaced by ReLU, tanh replaced by Hardtanh"
    assert model_coverage.written({"gates": "analogue", **found}) == words


class Small(model_coverage.Network):
    def make(self):
        return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


class Swish(model_coverage.Network):
    def make(self):
        norm = nn.Identity() if self.name == "possible" else nn.GroupNorm(1, 4)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, 2), norm, nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
        )


def test_one_advice_is_followed():
    result = check(Swish("torch", "possible"))
    assert (result.call, result.converts, result.trains, result.freezes) == (
        *({"replace": {nn.SiLU: nn.ReLU}}, "yes", "yes", "yes"),
    )
    row = check(Swish("torch", "impossible")).row(Swish("torch", "impossible"))
    assert row[2] == "no"
    assert model_coverage.cannot(row)
    assert row[-1].startswith("group norm; ")


def test_what_is_checked(monkeypatch):
    small, plain = Small("torch", "small"), check(Small("torch", "small"))
    assert plain == Result({}, "yes", plain.seconds, "yes", "yes", "yes")
    assert 0 < plain.seconds < 60

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


def test_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{model_coverage.BEGIN}\nold\n{model_coverage.END}\nafter\n")
    rows = [
        Result({}, "yes", 1.24, "yes", "no", "yes", ["a | b"]).row(Network("timm", "one")),
        Result({"gates": "analogue"}, "yes", 3, "yes", "yes", "no", ["TandemGate: no"]).row(Network("timm", "two")),
        Result({}, "no", 0.1, reasons=["layer norm", "layer_norm: use"]).row(Network("torchvision", "three")),
        Result({}, "no", 0.1, reasons=["mul: use"]).row(Network("torchvision", "four")),
    ]
    model_coverage.write_page(page, rows, 5)
    text = page.read_text()
    assert [*model_coverage.known(text)] == rows
    assert rows[0] == ["timm one", "plain", "yes", "1.2", "yes", "no", "yes", "a | b"]
    assert text.startswith(f"before\n{model_coverage.BEGIN}\n\nSeed 5, 4 families; ")
    assert text.endswith(f"{model_coverage.END}\nafter\n")
    for sentence in (
        "Of 4 networks, 3 could convert; 1 have norms or attention",
        "Of those, 1 of 3 (33%) convert by the plain call, and 2 of 3 (67%) by that or",
        "Freeze to the bit: 1 of 2 (50%) of the networks that convert",
        "less than 2 s for 1 of 2 (50%)",
        "| layer norm | 1 |",
    ):
        assert sentence in text
    (tmp_path / "empty.md").write_text("")
    with pytest.raises(CoverageError, match="has no lines"):
        model_coverage.write_page(tmp_path / "empty.md", rows, 5)


def test_missing_libraries():
    with pytest.raises(
        CoverageError, match=r"no_such_library cannot be imported .*pip install 'tandem_cuda\[examples\]'"
    ):
        model_coverage.imported("no_such_library")
