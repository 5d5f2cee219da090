"""What `make bench` measures: firing patterns like those of trained networks, and the ANN in all its forms."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import tandem_cuda as tc

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture
def bench(monkeypatch):
    """Imports a module of bench, which is no package."""
    monkeypatch.syspath_prepend(BENCH)
    return import_module


def test_trained_spikes(bench):
    counts = bench("sizes").S2.trained_spikes(0.05).sum(0)
    assert counts.unique().tolist() == [0, 2]
    assert float(counts.mean()) / 8 == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize(("gamma", "spikes"), [(1.0, 1.2), (None, 1.9)])
def test_settled_pattern(bench, gamma, spikes):
    """Spikes of the neurons that fire at all, as initialised and in the pattern of trained networks."""
    networks = bench("networks")
    torch.manual_seed(0)
    batches = [torch.rand(4, 1, 28, 28) for _ in range(2)]
    net = networks.settle(networks.mnist_net(tc), batches, gamma=networks.TRAINED if gamma is None else gamma)
    for counts in networks.counts(net, batches[0]):
        assert float(counts.mean()) / networks.T == pytest.approx(0.05, rel=0.1)
        assert float(counts[counts > 0].mean()) == pytest.approx(spikes, rel=0.2)


@pytest.mark.parametrize("name", ["vgg", "resnet", "mobilenet", "densenet", "unet"])
def test_conversion_networks(bench, name):
    """At many time steps, each network computes what its ANN does; radix spikes need 8 for the same."""
    conversion = bench("conversion")
    torch.manual_seed(0)
    ann = conversion.NETWORKS[name][1]()
    images = torch.randn(32, 3, 16, 16)
    ann(images)  # statistics
    counting = conversion.Setting(conversion.TWO_PHASE, correct_bias=True)
    for setting, steps in ((counting, 256), (conversion.BEST, 8)):
        snn = setting.convert(ann.eval(), steps, images)
        with torch.no_grad():
            assert (snn(images) - ann(images)).abs().mean() < 0.03 * ann(images).abs().mean()


def test_conversion_unet(bench):
    """Dense logits, whose mean over the pixels is the output; both of the finer scales reach them by concatenation."""
    torch.manual_seed(0)
    ann = bench("conversion").NETWORKS["unet"][1]().eval()
    inputs, logits = {}, []
    for name in ("up_to_middle", "up_to_fine"):
        ann.get_submodule(name).register_forward_pre_hook(lambda _, x, name=name: inputs.update({name: x[0].shape}))
    ann.logits.register_forward_hook(lambda _, x, y: logits.append(y))
    output = ann(torch.randn(2, 3, 16, 16))
    assert inputs == {"up_to_middle": (2, 64 + 32, 8, 8), "up_to_fine": (2, 32 + 16, 16, 16)}
    assert logits[0].shape == (2, 10, 16, 16)
    assert torch.equal(output, logits[0].mean((2, 3)))


def test_conversion_without_bounds(bench):
    """SpikingJelly gets a copy with ReLU in place of each ReLU6; the ANN keeps its own."""
    conversion = bench("conversion")
    ann = conversion.mobilenet().eval()
    copied = conversion.without_bounds(ann)
    kinds = [[type(module) for module in net.modules()] for net in (ann, copied)]
    assert kinds[0].count(nn.ReLU6) == 12
    assert kinds[1] == [nn.ReLU if kind is nn.ReLU6 else kind for kind in kinds[0]]
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(copied(images), ann(images))  # untrained: no activation reaches 6
    with torch.no_grad():
        ann[1].weight.fill_(100)
    assert (copied[1].weight == 1).all()


def test_conversion_results_are_kept(bench, monkeypatch, tmp_path):
    """A second run trains and measures nothing again. One of other conditions is refused."""
    conversion = bench("conversion")
    monkeypatch.setattr(conversion, "EPOCHS", 1)
    monkeypatch.setattr(conversion, "CALIBRATION", 20)
    torch.manual_seed(0)
    parts = {"training": 100, "validation": 20, "test": 20}
    data = {part: (torch.randn(n, 3, 16, 16), torch.randint(10, (n,))) for part, n in parts.items()}
    first = conversion.Run("vgg", 0, tmp_path, data, "noise")
    first.measure("default", first.ours, conversion.BEST, 4)
    monkeypatch.delattr(conversion, "train")
    monkeypatch.delattr(conversion, "convert")
    again = conversion.Run("vgg", 0, tmp_path, data, "noise")
    again.measure("default", again.ours, conversion.BEST, 4)
    assert again.results == first.results
    assert set(again.results["default"]) == {"validation", "test", "agreement", "processor seconds"}
    with pytest.raises(SystemExit, match="other conditions"):
        conversion.Run("vgg", 0, tmp_path, data, "other noise")


def test_conversion_table(bench):
    """Means and deviations, nothing if nothing was measured. The validation images choose SpikingJelly's recipe."""
    conversion = bench("conversion")
    key = f"{conversion.BEST.row}, T = 4"
    runs = [
        {
            "ANN": {"test": ann},
            key: {"test": snn},
            "SpikingJelly, a, T = [4]": {"4": {"validation": 40.0, "test": 30.0}},
            "SpikingJelly, b, T = [4]": {"4": {"validation": 30.0, "test": 40.0}},
            "SpikingJelly, c, T = [4]": {"refuses": "ValueError"},
        }
        for ann, snn in ((50.0, 46.0), (52.0, 44.0))
    ]
    refused = [{key: {"refuses": ""} if key.startswith("Spiking") else x for key, x in run.items()} for run in runs]
    refused[0][conversion.WITHOUT_BOUNDS] = {"test": 48.0}
    refused[1][conversion.WITHOUT_BOUNDS] = {"test": 50.0}
    results = {"vgg": runs, "mobilenet": refused}
    table = [*conversion.conversion_table(results, [conversion.BEST], [4, 8], True)]
    row = "`RadixIF(), correct_bias=True` | 45.0 ± 1.4 |  |"
    assert table[2:] == [
        f"| VGG, max pooling (51.0 ± 1.4) | {row}",
        "|  | SpikingJelly's best recipe | 30.0 ± 0.0 |  |",
        f"| MobileNet: depthwise convolutions, ReLU6, inverted residuals (51.0 ± 1.4) | {row}",
        "|  | SpikingJelly's best recipe, ReLU in place of ReLU6 (49.0 ± 1.4) | refuses | refuses |",
    ]


def test_conversion_behind(bench):
    """Points behind the ANN: deviations of the differences, then the mean of networks. Radix spikes end at T = 8."""
    conversion = bench("conversion")

    def run(ann, snn, other):
        found = {"ANN": {"test": ann}, f"{conversion.BEST.row}, T = 4": {"test": snn}}
        return found | {"SpikingJelly, a, T = [4]": {"4": {"validation": 1.0, "test": other}}}

    refused = {**run(60.0, 58.0, 0.0), "SpikingJelly, a, T = [4]": {"refuses": "ValueError"}}
    results = {"vgg": [run(50.0, 46.0, 30.0), run(52.0, 46.0, 32.0)], "resnet": [run(60.0, 60.04, 50.0)]}
    first = "| VGG, max pooling (51.0 ± 1.4) | 5.0 ± 1.4 | 20.0 ± 0.0 |"
    assert [*conversion.behind_table(results, [4, 16])] == [
        "| network (ANN) | `convert`, T = 4 | SpikingJelly, T = 4 |",
        "|---|---|---|",
        first,
        "| ResNet (60.0) | 0.0 | 10.0 |",  # -0.04
        "| mean | 2.5 | 15.0 |",
    ]
    table = [*conversion.behind_table(results | {"resnet": [refused]}, [4])]
    assert table[2:] == [first, "| ResNet (60.0) | 2.0 | refuses |", "| mean | 3.5 |  |"]


def test_conversion_choice(bench):
    """Mean losses on the validation images, and the largest distance from the setting that loses least."""
    conversion = bench("conversion")
    one, other = conversion.SETTINGS[:2]

    def run(ann, first, second):
        return {
            "ANN": {"validation": ann},
            f"{one.row}, T = 4": {"validation": first},
            f"{other.row}, T = 4": {"validation": second},
        }

    results = {"vgg": [run(60.0, 50.0, 58.0), run(50.0, 44.0, 46.0)], "resnet": [run(60.0, 58.0, 57.5)]}
    assert [*conversion.choice_table(results, [one, other], [4])][2:] == [
        f"| `{one.row}` | 5.0 | 5.0 |",  # loses 8 of the VGG and 2 of the ResNet
        f"| `{other.row}` | 2.8 | 0.5 |",  # 3 and 2.5
    ]


@pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA")
def test_layers_on_a_device(bench, monkeypatch):
    """Of which nothing is needed: without values nothing can be compared, but every call is checked."""
    compare = bench("compare_cuda")
    monkeypatch.setattr(compare, "medians", lambda sides: {name: side() for name, side in sides.items()})
    monkeypatch.setattr(torch, "equal", lambda *sides: True)
    with FakeTensorMode():
        sides = compare.layer("S3", 2, 0.05, compiled=False)
    assert {"kernel, dense", "counts, dense, torch.int8", "ANN"} <= sides.keys()


def test_what_was_measured_on_a_device_is_kept(bench, monkeypatch, tmp_path):
    """After each layer, whatever becomes of the next one."""
    compare = bench("compare_cuda")
    times = iter([{"kernel, auto": 0.5}])
    monkeypatch.setattr(compare, "ceilings", lambda: {"copy, GB/s": 3.0})
    monkeypatch.setattr(compare, "layer", lambda *arguments, **named: next(times))
    settings = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        with pytest.raises(StopIteration):
            compare.measure(2, {"device": "a card"}, tmp_path / "figures")
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = settings
    assert json.loads((tmp_path / "figures" / "cuda.json").read_text()) == {
        "device": "a card",
        "ceilings": {"copy, GB/s": 3.0},
        "S1 at 1%, TF32 off": {"kernel, auto": 0.5},
    }


def test_all_that_is_measured_on_a_device(bench, monkeypatch, tmp_path):
    """The CPU stands in: every side of small layers and of a small network runs once, and their spikes are compared."""
    compare = bench("compare_cuda")
    network = compare.network

    def small_net(layers):
        named = {"padding": 1, "norm": "batch"}
        return nn.Sequential(
            layers.Encode(8),
            layers.TandemConv2d(3, 8, 3, **named),
            layers.TandemConv2d(8, 8, 3, stride=4, **named),
            nn.Flatten(),
            layers.TandemLinear(8 * 64, 16, norm="batch"),
            layers.Decode(),
            nn.Linear(16, 10),
        )

    def once(sides):
        for side in sides.values():
            side()
        return dict.fromkeys(sides, 1.0)

    monkeypatch.setattr(compare, "DEVICE", "cpu")
    monkeypatch.setattr(compare, "SHAPES", {"S1": (18, 20, 6, 2), "S2": (4, 5, 4, 1)})
    monkeypatch.setattr(compare, "medians", once)
    monkeypatch.setattr(compare, "spikingjelly_implementations", lambda batch: {})
    monkeypatch.setattr(compare, "ceilings", dict)
    monkeypatch.setattr(compare, "network", lambda batch: network(batch, small_net))
    monkeypatch.setattr(torch, "compile", lambda f: f)
    settings = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        compare.measure(4, {}, tmp_path)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = settings
    figures = json.loads((tmp_path / "cuda.json").read_text())
    assert len(figures) == 2 + 2 * (2 * 3 + 1)
    assert "kernel, dense, torch.int16" in figures["S2 at 20%, TF32 on"]
    assert {"SNN, training step", "ANN, inference"} < figures["CifarNet, TF32 off"].keys()


def test_a_peer_that_takes_too_long_on_a_device(bench, monkeypatch):
    compare = bench("compare_cuda")
    run = subprocess.run
    monkeypatch.setattr(compare, "PEER_SECONDS", 0.01)
    monkeypatch.setattr(compare.metadata, "version", lambda name: "2.0.0")
    sleeping = [sys.executable, "-c", "import time; time.sleep(9)"]
    monkeypatch.setattr(subprocess, "run", lambda command, **named: run(sleeping, **named))
    late = "did not run: took longer than 0.01 s"
    assert compare.spikingjelly_implementations(2) == {"cuda": late, "triton": late, "torch": late}


@pytest.mark.slow
def test_ann_sides(bench):
    """All forms of the ANN compute the same, in float32 and in 8 bits: the functions check it. Compiles."""
    ann = bench("ann")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10)).eval()
    x = torch.rand(4, 3, 8, 8)
    assert list(ann.float_sides(net, x)) == ["ANN", "ANN, channels last", "ANN, compiled"]
    sides = ann.int8_sides(net, x)
    assert list(sides) == [*(f"PyTorch int8, {engine}" for engine in ann.engines()), "PyTorch int8, compiled"]


@pytest.mark.slow
def test_onnx_runtime_side(bench):
    """Its int8 computes what the ANN does, to a quarter of the outputs' norm: the function checks it."""
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10)).eval()
    sides = bench("onnx_runtime").int8_sides(net, torch.rand(4, 3, 8, 8))
    assert sides["ONNX Runtime int8"]().shape == (4, 10)


def test_agreement(bench, monkeypatch, tmp_path, capsys):
    """Networks by time steps and PyTorch's by bits, each with the share of images with the ANN's class."""
    for package in ("matplotlib", "skimage", "sklearn", "timm", "torchao"):
        pytest.importorskip(package)
    from PIL import Image

    monkeypatch.syspath_prepend(BENCH.parent / "examples")
    agreement, photographs = bench("agreement"), bench("photographs")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 15 * 15, 10))
    net(torch.randn(64, 3, 32, 32))
    monkeypatch.setattr(photographs, "SIZES", {0: 32})
    monkeypatch.setattr(photographs, "efficientnet_lite", lambda number: net.eval())
    for name, number in (("CROPS", 20), ("OTHER", 12)):
        monkeypatch.setattr(agreement, name, number)
    Image.effect_mandelbrot((96, 64), (-2, -1, 1, 1), 50).save(tmp_path / "one.png")

    options = ["--photographs", tmp_path, "--calibration", 8, "--time-steps", 8, 2, "--bits", 8, 4, "--threads", 1]
    threads = torch.get_num_threads()
    try:
        if torch.__version__ < torch.torch_version.TorchVersion("2.13"):
            with pytest.raises(
                SystemExit, match=r"torchao's quantiser quantised nothing under torch .*; it needs torch"
            ):
                agreement.main([str(option) for option in options])
            return
        agreement.main([str(option) for option in options])
    finally:
        torch.set_num_threads(threads)
    head, _, *rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.split("\n\n")[-1].splitlines()]
    assert head == ["network", "same photographs", "other photographs"]
    assert [row[0] for row in rows] == [
        *("Lite0, T = 8, 8 images", "Lite0, T = 2, 8 images"),
        *("Lite0, PyTorch, 8 bits, 8 images", "Lite0, PyTorch, 4 bits, 8 images"),
    ]
    for column in (1, 2):  # "95.0% (0.012)": the agreement and the error of the outputs
        agreed, errors = zip(*(row[column].strip(")").split("% (") for row in rows), strict=True)
        assert min(float(agreed[0]), float(agreed[2])) > 90
        assert float(errors[0]) < 0.05 < float(errors[1])
        assert float(errors[2]) < 0.05 < float(errors[3])
