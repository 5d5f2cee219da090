"""synops against brute force and against cases worked out by hand."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tandem_cuda import Decode, Encode, SpikeTrain, TandemConv2d, TandemLinear
from tandem_cuda.activity import LayerActivity, synops


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
    assert activity.macs == received[0].numel() * ones[0].numel()
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
    assert [a.name for a in activities] == ["1", "2", "4", "7"]  # and not the second nn.Linear
    assert [a.analogue for a in activities] == [True, False, False, False]
    assert [a.neurons for a in activities] == [6 * 8 * 10, 4 * 4 * 5, 7, 3]
    assert [a.macs for a in activities] == [6 * 8 * 10 * 2 * 9, 4 * 4 * 5 * 6 * 9, 80 * 7, 7 * 3]
    assert all(a.time_steps == 5 for a in activities)
    assert activities[0].synops == 0

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
        synops(net, "no tensor")

    assert [module.training for module in net.modules()] == modes
    assert [len(module._forward_hooks) for module in net.modules()] == hooks
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_bad_input() -> None:
    with pytest.raises(TypeError, match=r"synops: model must be an nn\.Module, got function"):
        synops(small_net, torch.rand(1))
    with pytest.raises(ValueError, match=r"synops: model must run a tandem layer"):
        synops(nn.Linear(3, 2), torch.rand(1, 3))
    with pytest.raises(ValueError, match=r"synops: inputs must hold at least one sample, got .*\[0, 6, 8, 10\]"):
        synops(small_net(), torch.rand(0, 2, 8, 10))
