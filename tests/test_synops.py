"""synops against brute force and against cases worked out by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from anns import Net, Pair, Residual
from exact import SEEDS, convolutions, examples, train
from layers import macs_of
from tandem_cuda import (
    Decode,
    Encode,
    SpikeTrain,
    SpikingAvgPool2d,
    SpikingMaxPool2d,
    SynOpsPenalty,
    TandemAdd,
    TandemConv1d,
    TandemConv2d,
    TandemConvTranspose2d,
    TandemLinear,
    TandemNetwork,
    convert,
    freeze,
    ops,
    record_activity,
)
from tandem_cuda.analysis import LayerActivity, synops


def random_train(*shape: int, seed: int = 0, rate: float = 0.3) -> Tensor:
    """Spikes [T, N, ...] of 0 and 1."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        Encode(5),
        TandemConv2d(2, 6, 3, padding=1, norm="batch"),
        TandemConv2d(6, 4, 3, stride=2, padding=1),
        nn.Flatten(),
        TandemLinear(4 * 4 * 5, 7),
        Decode(),
        nn.Dropout(),
        nn.Linear(7, 3),
        nn.ReLU(),
        nn.Linear(3, 2),
    )


GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 2, "stride": 3},  # leaves pixels at the end, and between windows, that reach nothing
    {"kernel_size": (3, 2), "stride": (1, 3), "padding": (0, 2), "dilation": (2, 1)},
    {"kernel_size": 3, "stride": 3, "padding": 2, "dilation": 2, "groups": 2},
    {"kernel_size": 1, "stride": 2, "padding": 1, "groups": 4},
    {"kernel_size": (4, 3), "padding": "same", "dilation": (1, 2)},
    {"kernel_size": 3, "padding": "valid", "dilation": 2},
    {"kernel_size": 5, "padding": 4},  # wider than half the kernel
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("size", [(9, 11), (8, 7)], ids=str)
def test_conv2d_counts_every_connection(geometry: dict[str, Any], size: tuple[int, int]) -> None:
    """A convolution of the spikes with weights of one adds 1 for every spike that reaches a neuron."""
    time_steps, samples = 10, 3
    layer = TandemConv2d(4, 8, **geometry)
    spikes = random_train(time_steps, samples, 4, *size)

    (activity,) = synops(layer, SpikeTrain.from_dense(spikes))

    ones = torch.ones(layer.weight.shape, dtype=torch.float64)
    received = F.conv2d(
        spikes.flatten(0, 1).double(), ones, None, layer.stride, layer.padding, layer.dilation, layer.groups
    )
    assert activity.synops * samples == received.sum()
    assert activity.macs == macs_of(nn.Conv2d(4, 8, **geometry), torch.zeros(1, 4, *size))[0]
    assert activity.neurons == received[0].numel()
    assert not activity.analogue


@pytest.mark.parametrize("leading", [(), (2, 5)])
def test_linear_counts_every_connection(leading: tuple[int, ...]) -> None:
    spikes = random_train(9, 4, *leading, 6)
    (activity,) = synops(TandemLinear(6, 11), SpikeTrain.from_dense(spikes))
    positions = 1
    for size in leading:
        positions *= size
    assert activity.synops == spikes.sum() * 11 / 4
    assert activity.macs == positions * 6 * 11
    assert activity.neurons == positions * 11


def test_network_lists_its_layers_in_order() -> None:
    net = small_net()
    x = torch.rand(3, 2, 8, 10)
    activities = synops(net, x)
    assert [a.name for a in activities] == ["1", "2", "4", "7", "9"]
    assert [a.analogue for a in activities] == [True, False, False, False, True]
    assert [a.neurons for a in activities] == [6 * 8 * 10, 4 * 4 * 5, 7, 3, 2]
    # Pixels and taps: a tap is missing at each border; with stride 2, at the first one.
    assert [a.macs for a in activities] == [6 * 2 * 22 * 28, 4 * 6 * 11 * 14, 80 * 7, 7 * 3, 3 * 2]
    assert [a.time_steps for a in activities] == [5, 5, 5, 5, 1]
    assert activities[0].synops == activities[4].synops == 0

    net.eval()
    with torch.no_grad():
        count = net[:6](x)
    assert activities[3].synops == int((count != 0).sum()) * 3 / 3
    assert activities[3].firing_rate is activities[3].saturation is activities[3].silent is None


def test_rates_by_hand() -> None:
    """Neuron 0 is driven above its threshold at every step, neuron 1 every other step, neuron 2 never."""
    layer = TandemLinear(1, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [0.5], [0.0]]))
    activity = synops(nn.Sequential(Encode(4), layer), torch.ones(2, 1))
    assert activity == [
        LayerActivity(
            name="1",
            neurons=3,
            time_steps=4,
            firing_rate=0.5,
            saturation=pytest.approx(1 / 3),
            silent=pytest.approx(1 / 3),
            dead=pytest.approx(1 / 3),
            synops=0.0,
            macs=3,
            analogue=True,
        )
    ]


def test_shared_layer_is_listed_twice() -> None:
    layer = TandemLinear(5, 5)
    spikes = random_train(6, 2, 5)
    first, second = synops(nn.Sequential(layer, layer), SpikeTrain.from_dense(spikes))
    assert first.name == second.name == "0"
    assert first.synops == spikes.sum() * 5 / 2
    assert first.firing_rate is not None
    assert second.synops == pytest.approx(first.firing_rate * 6 * 5 * 5)


def test_model_is_left_as_it_was() -> None:
    net = small_net()
    net.train()
    net[1].norm.eval()  # frozen while the rest trains
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    hooks = [len(module._forward_hooks) for module in net.modules()]

    synops(net, torch.rand(3, 2, 8, 10))
    with pytest.raises(TypeError, match="Encode"):
        synops(net, torch.ones(3, 2, 8, 10, dtype=torch.int64))

    assert [module.training for module in net.modules()] == modes
    assert [len(module._forward_hooks) for module in net.modules()] == hooks
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_bad_input() -> None:
    with pytest.raises(TypeError, match=r"synops: model must be an nn\.Module, got function"):
        synops(small_net, torch.rand(1))
    with pytest.raises(ValueError, match=r"synops: model must run a tandem layer"):
        synops(nn.Linear(3, 2), torch.rand(1, 3))
    with pytest.raises(ValueError, match=r"synops: inputs must have at least one sample, got .*\[0, 6, 8, 10\]"):
        synops(small_net(), torch.rand(0, 2, 8, 10))
    with pytest.raises(ValueError, match=r"synops: model must run a tandem layer"):
        synops(small_net(), [])
    for inputs in ("text", 3, None):
        with pytest.raises(TypeError, match=r"synops: inputs must be a Tensor, SpikeTrain or EncodedInput, or an iter"):
            synops(small_net(), inputs)
    with pytest.raises(ValueError, match=r"same neurons and time steps in layer '1', got \[8, 2, 2\] .* \[8, 2, 3\]"):
        synops(
            nn.Sequential(Encode(3), TandemConv2d(2, 8, 3))[1:],
            [SpikeTrain.from_dense(random_train(4, 1, 2, 4, width)) for width in (4, 5)],
        )
    with pytest.raises(TypeError, match=r"record_activity: model must be an nn\.Module, got int"), record_activity(3):
        pass


def connections(layer: TandemConv2d, spikes: Tensor) -> int:
    """Count, one by one, the pairs of a spike [T, N, C, H, W] and a neuron that it reaches."""
    height, width = spikes.shape[3:]
    per_group = layer.out_channels // layer.groups
    sizes = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip(
            (height, width), layer.padding, layer.dilation, layer.kernel_size, layer.stride, strict=True
        )
    ]
    reached = [[0] * width for _ in range(height)]
    for y in range(sizes[0]):
        for x in range(sizes[1]):
            for i in range(layer.kernel_size[0]):
                for j in range(layer.kernel_size[1]):
                    row = y * layer.stride[0] - layer.padding[0] + i * layer.dilation[0]
                    column = x * layer.stride[1] - layer.padding[1] + j * layer.dilation[1]
                    if 0 <= row < height and 0 <= column < width:
                        reached[row][column] += per_group
    return int((spikes.sum((0, 1, 2)) * torch.tensor(reached)).sum())


@given(convolutions(), SEEDS)
@examples(60)
def test_random_convolutions_count_every_connection(case: dict[str, Any], seed: int) -> None:
    """Over a loader of two batches, against a loop over the output pixels and taps."""
    groups, (outputs, per_group, *kernel) = case["geometry"]["groups"], case["weight"]
    layer = TandemConv2d(groups * per_group, outputs, tuple(kernel), **case["geometry"])
    spikes = train(9, 3, *case["input"][1:], seed=seed)
    batches = [SpikeTrain.from_dense(part) for part in (spikes[:, :2], spikes[:, 2:])]
    (activity,) = synops(layer, batches)
    assert activity.synops * 3 == pytest.approx(connections(layer, spikes), rel=1e-15)


def test_a_loader_is_the_average_of_its_samples() -> None:
    net = small_net()
    images = torch.rand(7, 2, 8, 10)
    want = synops(net, images)
    data = TensorDataset(images, torch.arange(7))
    for inputs in (DataLoader(data, batch_size=3), [images[:1], [images[1:]]], iter(images.split(2))):
        got = synops(net, inputs)
        assert [a.name for a in got] == [a.name for a in want]
        for a, b in zip(got, want, strict=True):
            assert a == b
    assert want[1].dead is not None
    assert want[1].silent is not None
    assert want[1].dead <= want[1].silent


def test_networks_of_several_inputs() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(8, 4), torch.rand(8, 3)
    ann = Pair(
        lambda n, x, y: n.out(torch.cat([n.a(x).relu(), n.b(y).relu()], 1)),
        a=nn.Linear(4, 6), b=nn.Linear(3, 6), out=nn.Linear(12, 2),
    )  # fmt: skip
    snn = convert(ann, 4, calibrate=(x, y))
    whole = fx.GraphModule(snn.snn, snn.snn.graph)
    labels = torch.zeros(8, dtype=torch.long)
    for net in (snn, freeze(snn), whole):
        for data in ((x, y), [x, y], [(x, y)], [((x, y), labels)], [(x, y, labels)], [(x[:5], y[:5]), (x[5:], y[5:])]):
            table = synops(net, data)
            assert [row.macs for row in table] == [24, 18, 24]
            assert [row.synops for row in table] == [row.synops for row in synops(snn, [(x, y)])]


def test_dead_neurons_are_silent_in_every_sample() -> None:
    """Of three neurons one fires in every sample, one in one sample, one in none."""
    layer = TandemLinear(2, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]))
    (activity,) = synops(nn.Sequential(Encode(4), layer), [torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 1.0]])])
    assert activity.dead == pytest.approx(1 / 3)
    assert activity.silent == pytest.approx(3 / 6)


def test_energy() -> None:
    analogue, spiking, _, readout, behind = synops(small_net(), torch.rand(3, 2, 8, 10))
    assert analogue.snn_energy_pj == analogue.ann_energy_pj == 4.6 * analogue.macs
    assert spiking.snn_energy_pj == 0.9 * spiking.synops
    assert spiking.ann_energy_pj == 4.6 * spiking.macs
    assert readout.snn_energy_pj == 4.6 * readout.synops
    assert behind.snn_energy_pj == behind.ann_energy_pj == 4.6 * behind.macs


def test_table() -> None:
    activities = synops(small_net(), torch.rand(3, 2, 8, 10))
    header, _, *rows, total = str(activities).splitlines()
    names = (
        "layer, neurons, firing rate, saturated, silent, dead, SynOps, SNN MACs, ANN MACs, SNN / ANN, SNN nJ, ANN nJ"
    )
    assert header.split() == names.replace(",", "").split()
    assert [row.split()[0] for row in rows] == ["1", "2", "4", "7", "9"]
    assert f"{activities[1].synops:,.0f}" in rows[1].split()
    assert f"{activities[1].firing_rate:.1%}" in rows[1].split()
    assert f"{sum(a.macs for a in activities):,}" in total.split()
    energy = sum(a.snn_energy_pj for a in activities) / 1000
    assert f"{energy:,.1f}" in total.split()


def test_record_of_training_steps() -> None:
    """It counts what the forward passes did, in training mode, and leaves gradients and results alone."""
    net, twin = small_net(), small_net()
    twin.load_state_dict(net.state_dict())
    images = torch.rand(6, 2, 8, 10)
    spikes = 0.0
    torch.manual_seed(1)
    with record_activity(net) as record:
        outputs = [net(part) for part in images.split(4)]
    sum(output.sum() for output in outputs).backward()
    torch.manual_seed(1)
    for part, output in zip(images.split(4), outputs, strict=True):
        seen = twin[:3](part)
        spikes += float(seen.count.detach().sum())
        torch.testing.assert_close(twin[3:](seen), output, rtol=0, atol=0)
    activity = record.table()[1]
    assert activity.firing_rate == pytest.approx(spikes / (6 * 80 * 5), rel=1e-12)
    assert net[1].weight.grad is not None
    net(images)
    assert record.table()[1] == activity  # the hooks are gone


def test_counting_in_inference_mode() -> None:
    net, images = small_net(), torch.rand(3, 2, 8, 10)
    want = synops(net, images)
    with torch.inference_mode():
        assert synops(net, images) == want


def test_large_sums_are_exact() -> None:
    """More operations than float32 can count one by one."""
    layer = TandemLinear(5001, 4099)
    spikes = torch.ones(8, 3, 5001)
    spikes[0, 0, 0] = 0
    (activity,) = synops(layer, SpikeTrain.from_dense(spikes))
    assert activity.synops == (8 * 3 * 5001 - 1) * 4099 / 3
    assert math.log2(activity.synops) > 24


# --- kinds of networks -----------------------------------------------------------------------------------------------


def test_operators_of_the_library_by_hand() -> None:
    class Own(nn.Module):
        def forward(self, x: SpikeTrain) -> Tensor:
            bits, *_ = ops.spiking_linear(x.bits, torch.ones(3, 6), time_steps=x.time_steps)
            return bits

    net = nn.Sequential(TandemLinear(6, 6), Own())
    table = synops(net, SpikeTrain.from_dense(random_train(5, 3, 6)))
    assert table.not_counted == ("spiking_product in 1",)


def test_joins_of_identities() -> None:
    """No multiplications: nothing to relate operations to."""
    net = Net(lambda n, x: n.join(x, x), join=TandemAdd(nn.Identity(), nn.Identity()))
    spikes = random_train(6, 2, 5)
    table = synops(net, SpikeTrain.from_dense(spikes))
    assert (table[0].synops, table[0].macs) == (2 * spikes.sum() / 2, 0)
    assert str(table).splitlines()[-1].split()[-3] == "-"


def sharing_anns() -> dict[str, nn.Module]:
    """ANNs of whose neurons and weights the spiking twin has several copies: before pooling, and for two signs."""
    stem = nn.Conv2d(2, 4, 3), nn.ReLU()
    return {
        "average pooling": nn.Sequential(*stem, nn.AvgPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)),
        "bottleneck": nn.Sequential(*stem, nn.Conv2d(4, 2, 1), nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)),
        "transposed bottleneck": nn.Sequential(
            *stem, nn.ConvTranspose2d(4, 3, 2), nn.ConvTranspose2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)
        ),
        "padded": nn.Sequential(
            *(nn.Conv2d(2, 4, 3, padding=2), nn.ReLU(), nn.AvgPool2d(2)),
            *(
                nn.Conv2d(4, 6, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(6, 3, 1),
                nn.Conv2d(3, 6, 5, 2, padding=2),
                nn.ReLU(),
            ),
            nn.ConvTranspose2d(6, 2, 3, 2, padding=1, output_padding=1),
        ),
    }


@pytest.mark.parametrize("name", sharing_anns())
def test_macs_of_copies_are_those_of_the_ann(name: str) -> None:
    torch.manual_seed(0)
    ann, x = sharing_anns()[name].eval(), torch.rand(3, 2, 12, 12)
    table = synops(convert(ann, 8, calibrate=x), x)
    assert [row.macs for row in table] == macs_of(ann, x)


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    **{f"Conv2d {geometry}": (TandemConv2d(4, 8, **geometry), (4, 8, 7)) for geometry in GEOMETRIES},
    **{
        f"Conv2d, {mode}": (TandemConv2d(4, 8, 3, 2, 1, padding_mode=mode), (4, 6, 5))
        for mode in ("zeros", "circular", "reflect", "replicate")
    },
    "Conv2d of 2 x 2": (TandemConv2d(4, 8, 3, padding=1), (4, 2, 2)),
    "depthwise": (TandemConv2d(4, 12, 3, padding=1, groups=4), (4, 6, 5)),
    "Conv1d": (TandemConv1d(4, 8, 5, 2, padding=3, dilation=2, groups=2), (4, 9)),
    "Conv1d, same": (TandemConv1d(4, 8, 4, padding="same"), (4, 9)),
    "Conv1d, circular": (TandemConv1d(4, 8, 3, padding=2, padding_mode="circular"), (4, 9)),
    "ConvTranspose2d": (TandemConvTranspose2d(4, 6, 3), (4, 5, 6)),
    "ConvTranspose2d, cut": (TandemConvTranspose2d(4, 6, (4, 3), (2, 3), 1, (1, 2), 2, dilation=(1, 2)), (4, 5, 6)),
    "Linear": (TandemLinear(6, 11), (6,)),
    "Linear of the last dimension": (TandemLinear(6, 11), (2, 5, 6)),
    "Add": (TandemAdd(TandemConv2d(4, 8, 3, padding=1), TandemConv2d(4, 8, 1)), (4, 6, 5)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", LAYERS)
def test_as_many_synops_as_macs_if_every_input_spikes_once(name: str) -> None:
    """Neither counts taps in the padding. And so does the penalty."""
    layer, shape = LAYERS[name]
    train = SpikeTrain.from_dense(torch.ones(1, 2, *shape))
    inputs = (train, train) if isinstance(layer, TandemAdd) else (train,)
    with record_activity(layer) as record:
        layer(*inputs)
    (row,) = record.table()
    assert row.synops == row.macs > 0
    if not isinstance(layer, TandemAdd):
        twin = {"TandemLinear": nn.Linear, "TandemConv2d": nn.Conv2d, "TandemConv1d": nn.Conv1d}.get(
            type(layer).__name__, nn.ConvTranspose2d
        )
        assert [row.macs] == macs_of(twin(**layer.arguments()), torch.ones(1, *shape))
        (frozen,) = synops(freeze(nn.Sequential(layer)), train)
        assert (frozen.synops, frozen.macs) == (row.synops, row.macs)
    layer.train()
    for target, want in ((0.0, 1.0), (0.5, 0.25), (1.0, 0.0)):
        with SynOpsPenalty(layer, target) as penalty:
            layer(*inputs)
            assert penalty() == want


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_as_many_synops_as_macs_in_a_read_out_of_ones() -> None:
    """Before it, a layer whose neurons all spike. The same weights on real values do these MACs, too."""
    image, line = (TandemConv2d(4, 4, 1), (4, 6, 5)), (TandemConv1d(4, 4, 1), (4, 7))
    for weights, (layer, shape) in (
        (nn.Conv2d(4, 8, 3, 2, padding=2, groups=2), image),
        (nn.Conv2d(4, 8, 4, padding="same"), image),
        (nn.ConvTranspose2d(4, 6, 3, 2, padding=1, groups=2), image),
        (nn.Conv1d(4, 6, 4, padding=3), line),
        (nn.Linear(5, 3), (TandemLinear(5, 5), (4, 5))),
    ):
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
        train = SpikeTrain.from_dense(torch.ones(1, 2, *shape))
        net = nn.Sequential(layer, Decode(), weights)
        _, row = synops(net, train)
        assert row.synops == row.macs == macs_of(weights, torch.ones(1, *shape))[0]
        assert synops(freeze(net), train)[1] == row
        _, real = synops(nn.Sequential(layer, Decode(), nn.ReLU(), weights), train)
        assert (real.macs, real.synops, real.analogue) == (row.macs, 0, True)


def frozen_pair(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    pool = nn.Sequential(
        Encode(6),
        TandemConv2d(2, 4, 3, norm="batch"),
        SpikingAvgPool2d(2),
        TandemConv2d(4, 6, 3, groups=2, padding=1),
        SpikingMaxPool2d(2),
        nn.Flatten(),
        TandemLinear(6 * 4, 9),
        Decode(),
        nn.Dropout(),
        nn.Linear(9, 3),
        nn.Linear(3, 2),
    )
    for module in pool:
        if hasattr(module, "weight"):
            nn.init.uniform_(module.weight, -0.1, 0.4)
    x = torch.rand(5, 2, 12, 12)
    if name == "sequential":
        return pool, x
    if name == "of spikes":
        return pool[3:], SpikeTrain.from_dense(random_train(7, 5, 4, 9, 8))
    ann = Residual() if name == "converted" else sharing_anns()[name]
    return convert(ann.eval(), 8, calibrate=x), x


@pytest.mark.parametrize("name", ["sequential", "of spikes", "converted", *sharing_anns()])
def test_frozen_networks(name: str) -> None:
    """The table of the network that was frozen."""
    net, x = frozen_pair(name)
    if name == "of spikes":
        net[3] = TandemLinear(6 * 16, 9)
        nn.init.uniform_(net[3].weight, 0, 0.3)
    net.eval()
    frozen = freeze(net)
    want, got = synops(net, x), synops(frozen, x)
    assert all(row.synops > 0 for row in want if not row.analogue)
    if name == "converted":
        assert [row.name for row in got] == [row.name.removeprefix("snn.").replace(".", "_") for row in want]
    if isinstance(net, TandemNetwork):
        want = [replace(row, name=frozen_row.name) for row, frozen_row in zip(want, got, strict=True)]
    assert list(got) == list(want)
    assert got.not_counted == ()
    wrapped = synops(nn.ModuleDict({"net": frozen})["net"], x)
    assert list(wrapped) == list(got)


def test_frozen_networks_in_chunks_are_refused() -> None:
    net = small_net().eval()
    frozen = freeze(net[:-2])
    x = torch.rand(2, 2, 8, 10)
    with (
        pytest.raises(ValueError, match="record_activity: frozen networks must run all time steps at once, got 1 of 5"),
        record_activity(frozen),
    ):
        frozen.predict(x)
    assert synops(frozen, x) == synops(net[:-2], x)


def test_compiled_networks() -> None:
    """Hooks are not what torch.compile looks at."""
    net, x = small_net().eval(), torch.rand(3, 2, 8, 10)
    want = synops(net, x)
    compiled = torch.compile(net, backend="eager")
    with torch.no_grad():
        compiled(x)
        with record_activity(net) as record:
            compiled(x)
    assert record.table() == want


def test_activation_checkpointing_counts_once() -> None:
    net = Net(lambda n, x: checkpoint(n.net, x, use_reentrant=False), net=small_net())
    x = torch.rand(3, 2, 8, 10)
    with record_activity(net) as record:
        net(x).sum().backward()
    assert [row.name for row in record.table()] == ["net.1", "net.2", "net.4", "net.7", "net.9"]


def test_samples_are_those_of_the_spiking_layers() -> None:
    """The first dimension of what plain layers read is no sample where time comes first, or patches."""

    def run(n: nn.Module, x: Tensor) -> Tensor:
        spikes = (n.front(x) > 0).float()
        return n.head(Decode()(n.layer(SpikeTrain.from_dense(spikes))).view(-1, 2))

    net = Net(run, front=nn.Linear(6, 6), layer=TandemLinear(6, 4), head=nn.Linear(2, 5))
    rows = synops(net, [torch.randn(7, 3, 6), torch.randn(7, 2, 6)])
    assert [(row.name, row.neurons, row.macs) for row in rows] == [
        ("front", 7 * 6, 7 * 36),
        ("layer", 4, 24),
        ("head", 2 * 5, 4 * 5),
    ]


def test_an_error_leaves_the_record_in_order() -> None:
    """A pass that ends early does not shift the names of the next."""
    net, x = small_net().eval(), torch.rand(3, 2, 8, 10)
    want = synops(net, x)
    with record_activity(net) as record, torch.no_grad():
        with pytest.raises(TypeError):
            net(x.long())
        net(x)
    assert record.table() == want
