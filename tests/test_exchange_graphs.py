"""NIR graphs with branches, pooling and all kinds of convolutions: an independent interpreter counts the same spikes.

Weights are dyadic, so that sums are exact in any order and every comparison is.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from anns import Net
from exact import VANISHING, dyadic, same, train
from tandem_cuda import (
    IF,
    LIF,
    Decode,
    Encode,
    SpikeTrain,
    SpikingAdaptiveAvgPool2d,
    SpikingAvgPool2d,
    TandemAdd,
    TandemConv1d,
    TandemConv2d,
    TandemDropout,
    TandemDropout2d,
    TandemLinear,
    TandemStochasticDepth,
    convert,
    freeze,
)
from tandem_cuda.nn import SpikeWindows, TandemElementwise

nir = pytest.importorskip("nir", reason="pip install tandem_cuda[nir]")

from nir_interpreter import executed  # noqa: E402 (only where the extra is there)
from tandem_cuda.exchange import from_nir, to_nir  # noqa: E402

STEPS = 8


def filled(net: nn.Module) -> nn.Module:
    """Dyadic weights that make neurons fire, and batch norm that is a dyadic map."""
    for seed, module in enumerate(net.modules()):
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.eps = VANISHING
            module.weight.data = 0.75 + dyadic(len(module.weight), seed=seed, scale=4) / 4
            module.bias.data = 0.5 + dyadic(len(module.bias), seed=seed + 1, scale=4) / 2
            module.running_mean = dyadic(len(module.running_mean), seed=seed + 2, scale=4)
        elif isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)):
            size = 2.0 ** round(np.log2(2.5 * module.weight[0].numel() ** -0.5))
            module.weight.data = size * (dyadic(*module.weight.shape, seed=seed) + 0.125)
            if module.bias is not None:
                module.bias.data = 1 + dyadic(len(module.bias), seed=seed + 1)
    return net.eval()


def repeated(net: nn.Module) -> nn.Module:
    """Weights after SpikeWindows that are the same for all positions of a window, as `convert` makes them."""
    windows = 1
    for module in net.modules():
        windows = module.size if isinstance(module, SpikeWindows) else windows
        if windows > 1 and isinstance(module, (TandemConv2d, TandemLinear)):
            first = module.weight.data[:, : module.weight.shape[1] // windows]
            module.weight.data = first.repeat(1, windows, *[1] * (first.dim() - 2))
            windows = 1
    return net


def steps_of(x: Tensor | SpikeTrain, mode: str) -> list[Tensor]:
    if isinstance(x, SpikeTrain):
        return list(x.to_dense())
    return [x if mode == "constant" or t == 0 else torch.zeros_like(x) for t in range(STEPS)]


def result(net: nn.Module, x: Tensor | SpikeTrain) -> Tensor:
    with torch.no_grad():
        y = net(x)
    return y.count if isinstance(y, SpikeTrain) else y


def exchanged(net: nn.Module, x: Tensor | SpikeTrain, path: Path) -> tuple[nir.NIRGraph, nn.Module]:
    """Export, execute, import, and compare; returns the graph and what was imported from its file."""
    graph = to_nir(net, x, path / "net.nir")
    want = result(net, x)
    if isinstance(x, Tensor) or x.amplitude == 1:
        assert len(want.unique()) > 2
    assert want.dtype == torch.float32
    same(executed(graph, steps_of(x, graph.metadata["encoding"])).float(), want)
    plain = SpikeTrain(x.bits, x.time_steps) if isinstance(x, SpikeTrain) else x
    for source in (graph, path / "net.nir"):
        back = from_nir(source)
        same(result(back, plain), want)
    again = to_nir(back, plain)
    assert len(again.nodes) == len(graph.nodes)
    assert len(again.edges) == len(graph.edges)
    same(result(from_nir(again), plain), want)
    return graph, back


IMAGES = (torch.randint(0, 9, (3, 2, 9, 10), generator=torch.Generator().manual_seed(0)) / 8).float()


def spikes(*shape: int, amplitude: float = 1.0) -> SpikeTrain:
    bits = SpikeTrain.from_dense(train(STEPS, 3, *shape, seed=1, rate=0.4).float()).bits
    return SpikeTrain(bits, STEPS, amplitude=amplitude)


def images(*layers: nn.Module, mode: str = "constant", neuron: IF | LIF = IF()) -> nn.Sequential:
    return nn.Sequential(Encode(STEPS, mode), TandemConv2d(2, 4, 3, padding=1, neuron=neuron), *layers)


class Residual(nn.Module):
    """A block whose shortcut is the identity, and one that changes channels and strides."""

    def __init__(self, amplitude: float = 1.0, mode: str = "constant") -> None:
        super().__init__()
        neuron = IF(0.5, amplitude=amplitude)
        self.stem = images(mode=mode, neuron=neuron)
        self.conv1 = TandemConv2d(4, 4, 3, padding=1, bias=False, norm="batch", neuron=neuron)
        self.add1 = TandemAdd(TandemConv2d(4, 4, 3, padding=1, norm="batch"), nn.Identity(), neuron=neuron)
        self.conv2 = TandemConv2d(4, 6, 3, 2, 1, norm="batch", neuron=neuron)
        self.add2 = TandemAdd(
            TandemConv2d(6, 6, 3, padding=1, norm="batch"), TandemConv2d(4, 6, 1, 2, norm="batch"), neuron=neuron
        )
        self.pool = SpikingAdaptiveAvgPool2d(1)
        self.decode, self.out = Decode(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.add1(self.conv1(x), x)
        x = self.add2(self.conv2(x), x)
        return self.out(self.decode(self.pool(x).flatten(1)))


@pytest.mark.parametrize("mode", ["constant", "impulse"])
@pytest.mark.parametrize("amplitude", [1.0, 0.5])
def test_residual_network(tmp_path: Path, amplitude: float, mode: str) -> None:
    graph, back = exchanged(filled(Residual(amplitude, mode)), IMAGES, tmp_path)
    assert sum(target == "add1_neurons" for _, target in graph.edges) == 2
    assert ("stem_1_neurons", "add1_neurons") in graph.edges or amplitude != 1
    assert isinstance(back, fx.GraphModule)
    same(freeze(back)(IMAGES), result(back, IMAGES))


@pytest.mark.parametrize(
    "layers",
    [
        (SpikingAvgPool2d(2),),
        (SpikingAvgPool2d(3, 2),),
        (SpikingAvgPool2d(3, 2, padding=1, threshold=0.5),),
        (SpikingAvgPool2d(3, 1, padding=(0, 1), divisor_override=3),),
        (SpikingAvgPool2d((1, 4), (2, 3), divisor_override=2),),
        (SpikingAdaptiveAvgPool2d(1),),
        (SpikingAdaptiveAvgPool2d((3, 5)),),
        (
            SpikingAdaptiveAvgPool2d((1, 5)),
            nn.Identity(),
            TandemStochasticDepth(0.5),
            nn.Flatten(),
            TandemDropout(),
            TandemLinear(20, 9, neuron=IF(8.0)),
        ),
        (SpikeWindows(2), TandemConv2d(16, 6, 3)),
        (SpikeWindows(3, 2), TandemDropout2d(), TandemConv2d(36, 6, (1, 3), padding="same")),
        (SpikeWindows((2, 3), (1, 2), divisor_override=4), nn.Flatten(), TandemLinear(768, 9, neuron=IF(8.0))),
        (SpikingAvgPool2d(2), TandemConv2d(4, 6, 3, neuron=LIF(0.75, 0.5))),
        (TandemConv2d(4, 6, (2, 4), padding="same", groups=2),),
        (Decode(), nn.Conv2d(4, 5, 3, 2), nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten(), nn.Linear(10, 3)),
        (Decode(), nn.AvgPool2d((4, 2)), nn.Flatten(2)),
    ],
    ids=str,
)
def test_layers(tmp_path: Path, layers: tuple[nn.Module, ...]) -> None:
    """Pooling with and without neurons, convolutions and read-outs; also without groups."""
    net = repeated(filled(images(*layers)))
    exchanged(net, IMAGES, tmp_path)
    graph = to_nir(net, IMAGES, groups=False)
    assert all(node.groups == 1 for node in graph.nodes.values() if isinstance(node, (nir.Conv1d, nir.Conv2d)))
    same(executed(graph, steps_of(IMAGES, "constant")).float(), result(net, IMAGES))


def test_pools_are_exact_nodes() -> None:
    """Means where divisors are powers of two, else sums with the threshold of as many: both are whole numbers."""
    kinds = []
    for window in ((2,), (3,), (3, 2, 1)):
        graph = to_nir(filled(images(SpikingAvgPool2d(*window))), IMAGES)
        kinds.append((type(graph.nodes["layer_2_windows"]), float(graph.nodes["layer_2_neurons"].v_threshold.max())))
    for windows, kind in ((SpikeWindows(2), nir.AvgPool2d), (SpikeWindows(3, 2), nir.SumPool2d)):
        net = repeated(filled(images(windows, TandemConv2d(4 * windows.size, 6, 1))))
        assert type(to_nir(net, IMAGES).nodes["layer_2_windows"]) is kind
    assert kinds == [(nir.AvgPool2d, 1.0), (nir.SumPool2d, 9.0), (nir.Conv2d, 9.0)]


def test_one_dimension(tmp_path: Path) -> None:
    def run(n: nn.Module, x: SpikeTrain) -> Tensor:
        x = n.first(x)
        return n.out(n.decode(n.third(n.add(n.second(x), x))))

    net = Net(
        run,
        first=TandemConv1d(3, 4, 3, padding=1, neuron=IF(0.5, amplitude=0.25)),
        second=TandemConv1d(4, 4, 4, padding="same", groups=2, dilation=2),
        add=TandemAdd(TandemConv1d(4, 4, 1), nn.Identity(), neuron=IF(0.5)),
        third=TandemConv1d(4, 5, 2, stride=3), decode=Decode(), out=nn.Conv1d(5, 2, 2),
    )  # fmt: skip
    exchanged(filled(net), spikes(3, 17), tmp_path)


@pytest.mark.parametrize("amplitude", [1.0, 0.5])
def test_features(tmp_path: Path, amplitude: float) -> None:
    """The same spikes twice into one join, one whose spikes do not weigh 1, and one that Decode alone reads."""

    def run(n: nn.Module, x: SpikeTrain) -> Tensor:
        y = n.first(x)
        return n.decode(n.twice(y, y, x))

    first = TandemLinear(12, 7, neuron=IF(0.5, amplitude=amplitude))
    twice = TandemAdd(nn.Identity(), nn.Identity(), TandemLinear(12, 7), neuron=IF(amplitude=amplitude))
    net, x = filled(Net(run, first=first, twice=twice, decode=Decode())), spikes(12, amplitude=0.75)
    graph = to_nir(net, x, tmp_path / "net.nir")
    want = result(net, x)
    assert len(want.unique()) > 2
    same(executed(graph, steps_of(x, "spikes")).float(), want)
    same(result(from_nir(tmp_path / "net.nir"), SpikeTrain(x.bits, STEPS)), want)


def test_layers_that_run_twice(tmp_path: Path) -> None:
    def run(n: nn.Module, x: SpikeTrain) -> SpikeTrain:
        n.again(n.first(x))  # for nothing: no part of the graph
        return n.again(n.again(n.first(x)))

    net = filled(Net(run, first=TandemLinear(12, 7), again=TandemLinear(7, 7)))
    graph, _ = exchanged(net, spikes(12), tmp_path)
    assert [name for name in graph.nodes if name.startswith("again")] == [
        "again",
        "again_neurons",
        "again_",
        "again_neurons_",
    ]


def test_a_converted_network(tmp_path: Path) -> None:
    """With branches, batch norm and a mean over all pixels, as an ANN has them."""

    class ANN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.norm1 = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
            self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
            self.pool, self.conv3, self.out = nn.AvgPool2d(2), nn.Conv2d(4, 8, 3), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm1(self.conv1(x)).relu()
            x = (self.norm2(self.conv2(x)) + x).relu()
            x = self.conv3(self.pool(x)).relu().mean((2, 3))
            return self.out(x.view(-1, 8))

    net = convert(filled(ANN()), STEPS, example=IMAGES)
    for name in net.spiking_layers:
        net.snn.get_submodule(name).neuron = IF(0.5, amplitude=0.5)
    exchanged(net, IMAGES, tmp_path)


class Calibrated(nn.Module):
    """Averages that fold into weights, values of both signs, and a batch norm that needs neurons of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool, self.both = nn.Conv2d(2, 4, 3, padding=1), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3, padding=1)
        self.conv, self.norm, self.out = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(80, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x).relu())
        x = (self.conv(self.both(x)) + x).relu()
        return self.out(self.norm(x).relu().flatten(1))


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("mode", ["constant", "impulse"])
def test_a_calibrated_network(tmp_path: Path, mode: str, per_channel: bool) -> None:
    """Amplitudes are in the weights behind them, in float64."""
    ann, x = filled(Calibrated()).double(), IMAGES.double()
    net = convert(ann, STEPS, calibrate=x, neuron=IF(), mode=mode, per_channel=per_channel)
    kinds = {type(module) for module in net.snn.modules()}
    assert {SpikeWindows, TandemAdd, TandemElementwise, Decode} <= kinds
    assert net.snn.both.out_channels == 2 * 4
    graph, want = to_nir(net, x, tmp_path / "net.nir"), result(net, x)
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(executed(graph, steps_of(x, mode)), want, **close)
    for source in (graph, tmp_path / "net.nir"):
        torch.testing.assert_close(result(from_nir(source), x), want, **close)


FLATTENED = {
    "method": lambda x: x.flatten(1),
    "function": lambda x: torch.flatten(x, 1, -1),
    "view": lambda x: x.contiguous().view(x.shape[0], -1),
    "reshape": lambda x: x.reshape(-1, 360),
    "ATen": lambda x: torch.ops.aten.flatten.using_ints(x, 1),
    "view of ATen": lambda x: torch.ops.aten.view.default(x.contiguous(), [torch.ops.aten.sym_size.int(x, 0), 360]),
    "two steps": lambda x: x.clone().flatten(2).flatten(1),
}


@pytest.mark.parametrize("how", FLATTENED)
def test_flattening(tmp_path: Path, how: str) -> None:
    """Of decoded values, and of spikes by the methods that they have."""
    flatten = FLATTENED[how]

    def run(n: nn.Module, x: Tensor) -> Tensor:
        return n.out(flatten(n.decode(n.first(n.encode(x)))))

    first = TandemConv2d(2, 4, 3, padding=1, neuron=IF(0.5, amplitude=0.25))
    net = filled(Net(run, encode=Encode(STEPS), first=first, decode=Decode(), out=nn.Linear(360, 5)))
    graph, _ = exchanged(net, IMAGES, tmp_path)
    assert sum(isinstance(node, nir.Flatten) for node in graph.nodes.values()) == 1 + (how == "two steps")
    if how == "method":
        net.run = lambda n, x: n.out(n.decode(flatten(n.first(n.encode(x)))))
        exchanged(net, IMAGES, tmp_path)


AVERAGES = {
    "adaptive_avg_pool2d": lambda x: torch.ops.aten.adaptive_avg_pool2d.default(x, [1, 1]).flatten(1),
    "avg_pool2d": lambda x: F.avg_pool2d(x, (9, 10)).squeeze(-1).squeeze(-1),
    "avg_pool2d of ATen": lambda x: torch.ops.aten.avg_pool2d.default(x, [9, 10]).flatten(1),
    "mean": lambda x: x.mean((-1, 2)),
    "mean of ATen": lambda x: torch.ops.aten.mean.dim(x, [2, 3], True).flatten(1),
}


@pytest.mark.parametrize("how", AVERAGES)
def test_average_pooling_by_functions(how: str) -> None:
    """As `convert` calls them behind Decode."""
    average = AVERAGES[how]
    run = lambda n, x: n.out(average(n.decode(n.first(n.encode(x)))))  # noqa: E731
    first = TandemConv2d(2, 4, 3, padding=1, neuron=IF(0.5))
    net = filled(Net(run, encode=Encode(STEPS), first=first, decode=Decode(), out=nn.Linear(4, 5)))
    graph, want = to_nir(net, IMAGES), result(net, IMAGES)
    assert [type(node) for node in graph.nodes.values()][3:5] == [nir.AvgPool2d, nir.Flatten]
    torch.testing.assert_close(executed(graph, steps_of(IMAGES, "constant")).float(), want)
    torch.testing.assert_close(result(from_nir(graph), IMAGES), want)


def test_factors_of_channels(tmp_path: Path) -> None:
    """They are in the weights behind them: of a convolution after pooling, and of a matrix after flattening."""
    first = TandemConv2d(2, 4, 3, padding=1, neuron=IF(0.5))
    for layers in ((nn.AvgPool2d(3), nn.Conv2d(4, 3, 2)), (nn.AvgPool2d(2), nn.Flatten(), nn.Linear(80, 5)), ()):
        net = filled(nn.Sequential(Encode(STEPS), first, Decode(), *layers))
        net[2].scale = torch.tensor([0.5, 1.0, 2.0, 0.25])
        graph = to_nir(net, IMAGES)
        want = result(net, IMAGES).double()
        torch.testing.assert_close(executed(graph, steps_of(IMAGES, "constant")), want, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(result(from_nir(graph), IMAGES).double(), want, rtol=1e-6, atol=1e-6)


def test_sums_of_read_outs(tmp_path: Path) -> None:
    """Also of the same spikes, and of spikes that weigh differently."""

    def run(n: nn.Module, x: Tensor) -> Tensor:
        x = n.first(n.encode(x))
        return n.out(n.flat(torch.add(n.decode(x), n.decode(n.second(x))) + n.decode(x)))

    first = TandemConv2d(2, 4, 3, padding=1, neuron=IF(0.5, amplitude=0.5))
    second = TandemConv2d(4, 4, 3, padding=1, neuron=IF(0.5, amplitude=0.25))
    rest = {"decode": Decode(), "flat": nn.Flatten(), "out": nn.Linear(360, 3)}
    exchanged(filled(Net(run, encode=Encode(STEPS), first=first, second=second, **rest)), IMAGES, tmp_path)


@pytest.mark.parametrize("shape", [(4,), (4, 9), (4, 6, 7)], ids=str)
def test_elementwise_neurons(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Factors and offsets of channels, for features, lines and images."""
    layer = TandemElementwise(4, 4, 4, neuron=LIF(0.5, 0.5))
    layer.maps(torch.tensor([0.5, 1.0, 0.25, 2.0]), torch.tensor([0.5, 0.0, 1.0, 0.25]), torch.zeros(1))
    exchanged(nn.Sequential(layer), spikes(*shape), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])
def test_torchvision(tmp_path: Path, name: str) -> None:
    """For small images: without the stem's pooling, with average pooling in place of the others."""
    models = pytest.importorskip("torchvision").models
    ann = models.get_model(name, num_classes=10)
    if name == "resnet18":
        ann.conv1, ann.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    else:  # narrower read-outs: two of 4096 are all that takes time
        ann.avgpool = nn.Identity()
        ann.classifier = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10))
    for path, module in list(ann.named_modules()):
        if isinstance(module, nn.MaxPool2d):
            ann.set_submodule(path, nn.AvgPool2d(module.kernel_size, module.stride))
    x = (torch.randint(0, 9, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0)) / 8).float()
    net = convert(filled(ann), STEPS, example=x)
    for path in net.spiking_layers:
        net.snn.get_submodule(path).neuron = IF(0.5, amplitude=0.5)
    graph, _ = exchanged(net, x, tmp_path)
    size = sum(
        values.size for node in graph.nodes.values() for values in vars(node).values() if hasattr(values, "size")
    )
    neurons = sum(node.v_threshold.size for node in graph.nodes.values() if isinstance(node, nir.IF))
    assert size < 1.2 * sum(p.numel() for p in net.parameters()) + 4 * neurons


def test_long_chains() -> None:
    """Time and size grow with the number of layers, not with its square."""
    layers = [TandemLinear(3, 3) for _ in range(300)]
    graph = to_nir(nn.Sequential(*filled(nn.Sequential(*layers))), spikes(3))
    assert len(graph.nodes) == 2 + 2 * len(layers)
    assert len(from_nir(graph)) == len(layers)
