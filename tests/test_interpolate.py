"""TandemInterpolate: its pre-activation is F.interpolate of the decoded values."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pairwise import pairs
from tandem_cuda import IF, Decode, FrozenNetwork, RadixIF, SpikeTrain, convert, freeze, synops
from tandem_cuda.nn import TandemInterpolate
from tandem_cuda.ops.integrate_and_fire import discharge
from tensors import planes

SETTINGS = {
    "bilinear": (None, (2, 2), "bilinear", False),
    "corners": (None, (2.0, 3.0), "bilinear", True),
    "fractions": (None, (1.5, 0.5), "bilinear", False),
    "size": ((5, 9), None, "bilinear", False),
    "bicubic": (None, (2.0, 2.0), "bicubic", False),
    "bicubic to a size": ((9, 4), None, "bicubic", True),
}
NEURONS = {
    "radix": RadixIF(level=2.0, initial=0.5),
    "two phases": IF(0.5, initial=0.5, two_phase=True),
    "one phase": IF(0.5, initial=0.5),
}


def interpolated(values, size, factor, mode, corners):
    return F.interpolate(values, size, factor, mode, corners)


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("time_steps", [1, 2, 4, 8])
@pytest.mark.parametrize("signed", [False, True])
def test_neurons_read_interpolated_values(name, neuron, time_steps, signed):
    settings, of = SETTINGS[name], NEURONS[neuron]
    layer = TandemInterpolate(6 if signed else 3, 6 if signed else 3, 3, *settings, neuron=of)
    x = SpikeTrain(planes(time_steps, 2, 6 if signed else 3, 6, 7, seed=2, rate=0.5), time_steps)
    x = x.replace(pair_dim=1 if signed else None, radix=of.radix)
    values = x.value[:, ::2] - x.value[:, 1::2] if signed else x.value
    v = interpolated(values, *settings)
    got = layer(x)
    assert got.pair_dim == (1 if signed else None)
    if of.two_phase:
        both = torch.stack([v, -v], 2).flatten(1, 2) if signed else v
        bits, _ = discharge(both, time_steps, of)
        assert torch.equal(got.bits, bits)
        return
    spikes = x.to_dense()
    spikes = spikes[:, :, ::2] - spikes[:, :, 1::2] if signed else spikes
    potential, fired = 0, []
    for now in spikes:
        current = interpolated(now, *settings)
        potential = potential + (torch.stack([current, -current], 2).flatten(1, 2) if signed else current)
        if not fired:
            potential = potential + 0.25
        fired.append((potential >= 0.5).float())
        potential = potential - 0.5 * fired[-1]
    assert (got.to_dense() != torch.stack(fired)).float().mean() < 0.01  # sums are rounded in another order


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("neuron", NEURONS)
def test_gradients_are_those_of_torch(name, neuron):
    settings, of = SETTINGS[name], NEURONS[neuron]
    layer = TandemInterpolate(3, 3, 3, *settings, neuron=of)
    x = SpikeTrain(planes(4, 2, 3, 6, 7, seed=2, rate=0.5), 4, radix=of.radix)
    carried, leaf = (x.value.clone().requires_grad_() for _ in range(2))
    y = layer(x.replace(value=carried))
    weights = torch.randn(y.shape)
    (y.value * weights).sum().backward()
    v = interpolated(leaf, *settings)
    scale = of.relu_threshold_at(4)
    ((v > 0) * v * weights / scale).sum().backward()
    torch.testing.assert_close(carried.grad, leaf.grad)


@pytest.mark.parametrize("name", SETTINGS)
def test_synaptic_operations(name):
    """A spike reaches the neurons that depend on its pixel."""
    settings = SETTINGS[name]
    layer = TandemInterpolate(2, 2, 2, *settings)
    fan_out = layer.synapses.fan_out((2, 5, 6), torch.device("cpu"))
    want = torch.zeros(2, 5, 6)
    for i in range(5):
        for j in range(6):
            one = torch.zeros(1, 1, 5, 6, dtype=torch.float64)
            one[..., i, j] = 1
            want[:, i, j] = (interpolated(one, *settings) != 0).sum()
    assert torch.equal(fan_out, want.double())


class UNet(nn.Module):
    """With a skip connection, a sum and a read-out of pixels."""

    def __init__(self, how):
        super().__init__()
        self.first, self.down = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 8, 3, 2, 1)
        self.bottom, self.merge = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(12, 6, 3, padding=1, bias=False)
        self.norm, self.last, self.up = nn.BatchNorm2d(6), nn.Conv2d(6, 3, 1), nn.Upsample(scale_factor=2, **how)

    def forward(self, x):
        skip = torch.relu(self.first(x))
        x = torch.relu(self.bottom(torch.relu(self.down(skip))))
        x = torch.cat([self.up(x), skip], 1)
        return self.last(torch.relu(self.norm(self.merge(x))))


HOW = {
    "bilinear": {"mode": "bilinear"},
    "corners": {"mode": "bilinear", "align_corners": True},
    "bicubic": {"mode": "bicubic"},
}


@pytest.mark.filterwarnings("ignore:convert")  # few steps
@pairs(neuron=[None, "one phase"], how=list(HOW), time_steps=[1, 8])
def test_networks_that_segment(how, neuron, time_steps, tmp_path):
    torch.manual_seed(0)
    ann, images = UNet(HOW[how]).eval(), torch.rand(8, 2, 8, 12)
    snn = convert(ann, time_steps, calibrate=images, neuron=neuron and IF(initial=0.5))
    (up,) = (module for module in snn.snn.modules() if isinstance(module, TandemInterpolate))
    assert up.fires_pairs == (how == "bicubic")
    with torch.no_grad():
        got, want = snn(images), ann(images)
    if time_steps == 8 and neuron is None:
        assert (got - want).norm() < 0.02 * want.norm()
    frozen = freeze(snn)
    assert torch.equal(frozen(images), got)
    assert torch.equal(frozen(images[:1]), got[:1])
    frozen.save(tmp_path / "net.safetensors")
    assert torch.equal(FrozenNetwork.load(tmp_path / "net.safetensors")(images), got)
    snn.train()
    snn(images).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in ann.parameters())
    assert synops(snn, images)


def test_what_goes_into_the_read_out_needs_no_neurons():
    class Net(UNet):
        def forward(self, x):
            x = torch.relu(self.bottom(torch.relu(self.down(torch.relu(self.first(x))))))
            return self.last(self.up(x))

    torch.manual_seed(0)
    ann, images = Net(HOW["corners"]).eval(), torch.rand(8, 2, 8, 12)
    snn = convert(ann, 256, calibrate=images, percentile=100, neuron=NEURONS["two phases"])
    assert not any(isinstance(module, TandemInterpolate) for module in snn.modules())
    assert snn.report().analogue == ()
    with torch.no_grad():
        want = ann(images)
        assert (snn(images) - want).norm() < 0.02 * want.norm()


def test_streams():
    torch.manual_seed(0)
    ann, images = UNet(HOW["bilinear"]).eval(), torch.rand(4, 2, 8, 12)
    frozen = freeze(convert(ann, 12, calibrate=images, neuron=IF(initial=0.5)))
    stream = frozen.stream(images)
    for steps in (1, 5, 3, 3):
        out = stream.advance(steps)
    assert torch.equal(out, frozen(images))


def test_another_dtype():
    torch.manual_seed(0)
    ann, images = UNet(HOW["bilinear"]).eval(), torch.rand(4, 2, 8, 12)
    snn = convert(ann, 8, calibrate=images).double()
    with torch.no_grad():
        assert torch.equal(freeze(snn)(images.double()), snn(images.double()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 3, 3, None, None), "one of size and scale_factor must be given, got None and None"),
        ((3, 3, 3, (2, 2), (2.0, 2.0)), "one of size and scale_factor must be given"),
        ((3, 3, 3, None, (2.0, 2.0), "area"), "mode must be one of bilinear, bicubic, got 'area'"),
        ((3, 3, 3, None, (2.0, 0.0)), "scale_factor must be"),
        ((3, 3, 3, (0, 2), None), "size must be"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"TandemInterpolate: .*{message}"):
        TandemInterpolate(*arguments)


def test_wrong_inputs():
    layer = TandemInterpolate(3, 3, 3, None, (2.0, 2.0))
    with pytest.raises(ValueError, match=r"TandemInterpolate: input must be \[N, 3, H, W\], got \[1, 4, 5, 5\]"):
        layer(SpikeTrain.from_dense(torch.ones(4, 1, 4, 5, 5)))
    with pytest.raises(ValueError, match=r"input must be \[N, 3, H, W\], got \[1, 3, 5\]"):
        layer(SpikeTrain.from_dense(torch.ones(4, 1, 3, 5)))
    assert Decode()(layer(SpikeTrain.from_dense(torch.ones(4, 1, 3, 5, 5)))).shape == (1, 3, 10, 10)
