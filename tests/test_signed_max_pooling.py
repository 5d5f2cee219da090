"""Max pooling of signed values: what pairs of neurons say, and the networks in which they are pooled."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pairwise import pairs as pairs_of
from tandem_cuda import IF, Decode, FrozenNetwork, RadixIF, SpikeTrain, convert, freeze
from tandem_cuda.analysis import diagnose
from tandem_cuda.nn import SpikingGlobalMaxPool2d, SpikingMaxPool2d, SpikingMaxPool3d
from tandem_cuda.ops.integrate_and_fire import discharge
from tandem_cuda.spike_train import interleaved, signs
from tensors import train

POOLS = [
    (SpikingMaxPool2d(2), (8, 6)),
    (SpikingMaxPool2d(3, 2, 1), (9, 5)),
    (SpikingMaxPool2d((3, 2), 2, 1, (1, 2), ceil_mode=True), (9, 6)),
    (SpikingGlobalMaxPool2d(), (7, 5)),
    (SpikingMaxPool3d((1, 2, 2)), (3, 6, 4)),
]


def named(pools):
    return [type(pool).__name__ + str(i) for i, (pool, _) in enumerate(pools)]


def in_torch(pool, values):
    if isinstance(pool, SpikingGlobalMaxPool2d):
        return values.amax((2, 3), keepdim=True)
    windows = pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode
    return (F.max_pool3d if isinstance(pool, SpikingMaxPool3d) else F.max_pool2d)(values, *windows)


def pairs(values, time_steps, radix):
    """The spikes of two-phase or radix neurons for v and -v, whose thresholds are 1."""
    both = interleaved(values.clamp(min=0), (-values).clamp(min=0), 1)
    neuron = RadixIF(2**time_steps) if radix else IF(two_phase=True)
    bits, _ = discharge(both, time_steps, neuron)
    return SpikeTrain(bits, time_steps, pair_dim=1, radix=radix)


@pytest.mark.parametrize(("pool", "size"), POOLS, ids=named(POOLS))
@pytest.mark.parametrize("radix", [False, True])
@pytest.mark.parametrize("time_steps", [1, 2, 4, 8])
def test_the_largest_value(pool, size, radix, time_steps):
    largest = 2**time_steps - 1 if radix else time_steps
    values = torch.randint(-largest, largest + 1, (3, 4, *size)).float()
    values[0] = -values[0].abs()  # windows without a positive value
    values[1, :2] = -largest
    x = pairs(values, time_steps, radix)
    y = pool(x)
    want = in_torch(pool, values)
    assert torch.equal(Decode()(y), want)
    positive, negative = signs(y.value, 1)
    assert torch.equal(positive, want.clamp(min=0))
    assert torch.equal(negative, (-want).clamp(min=0))
    assert (y.pair_dim, y.radix, y.time_steps) == (1, radix, time_steps)
    assert torch.equal(pool.ann_twin(x).value, y.value)
    assert y.bits.movedim(2, -1).is_contiguous()


@pytest.mark.parametrize(("pool", "size"), POOLS, ids=named(POOLS))
@pytest.mark.parametrize("time_steps", [1, 7, 20])
def test_the_largest_difference_at_every_step(pool, size, time_steps):
    """Neurons with one phase spike for either sign at any time."""
    spikes = train(time_steps, 2, 6, *size, seed=4, rate=0.4)
    differences = (spikes[:, :, ::2].float() - spikes[:, :, 1::2].float()).cumsum(0)
    x = SpikeTrain.from_dense(spikes.float()).replace(pair_dim=1)
    positive, negative = signs(pool(x).to_dense(), 2)
    want = torch.stack([in_torch(pool, d) for d in differences])
    assert torch.equal((positive - negative).cumsum(0), want)
    assert not (positive * negative).any()


@pytest.mark.parametrize("radix", [False, True])
@pytest.mark.parametrize(("pool", "size"), POOLS, ids=named(POOLS))
def test_the_gradient_goes_to_the_largest_value(pool, size, radix):
    values = torch.randperm(2 * 3 * torch.Size(size).numel()).view(2, 3, *size).remainder(31).float() - 15
    x = pairs(values, 4, True) if radix else pairs(values, 16, False)
    carried = x.value.clone().requires_grad_()
    weights = torch.randn(in_torch(pool, values).shape)
    (Decode()(pool(x.replace(value=carried))) * weights).sum().backward()
    leaf = values.requires_grad_()
    (in_torch(pool, leaf) * weights).sum().backward()
    positive, negative = signs(carried.grad, 1)
    torch.testing.assert_close(positive, leaf.grad)
    torch.testing.assert_close(negative, -leaf.grad)


class Net(nn.Module):
    """Pools values that no ReLU has clipped."""

    def __init__(self, pool):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.third, self.fc, self.pool = nn.Conv2d(4, 6, 1), nn.Linear(6, 3), pool

    def forward(self, x):
        x = self.pool(self.second(torch.relu(self.first(x))))
        return self.fc(torch.relu(self.third(x)).mean((2, 3)))


MODULES = {
    "windows": nn.MaxPool2d(2),
    "padded": nn.MaxPool2d(3, 2, 1),
    "all pixels": nn.AdaptiveMaxPool2d(1),
}
NEURONS = {
    "radix": {"neuron": RadixIF()},
    "two phases": {"neuron": IF(initial=0.5, two_phase=True)},
    "one phase": {"neuron": IF(initial=0.5)},
}


@pytest.mark.filterwarnings("ignore:convert")  # few steps
@pairs_of(neuron=NEURONS, name=list(MODULES), time_steps=[1, 8])
def test_networks_pool_values(name, neuron, time_steps, tmp_path):
    torch.manual_seed(0)
    images = torch.rand(16, 2, 8, 8)
    ann = Net(MODULES[name]).eval()
    with torch.no_grad():
        ann.second.bias[:2] = -0.6  # channels of negative values alone
    snn = convert(ann, time_steps, calibrate=images, **neuron)
    (pool,) = (m for m in snn.snn.modules() if isinstance(m, (SpikingMaxPool2d, SpikingGlobalMaxPool2d)))
    caught = []
    hook = pool.register_forward_hook(lambda module, inputs, output: caught.append((inputs[0], output)))
    with torch.no_grad():
        got = snn(images)
    hook.remove()
    ((before, after),) = caught
    assert (ann.pool(Decode()(before)) < 0).any()
    assert torch.equal(Decode()(after), ann.pool(Decode()(before)))
    frozen = freeze(snn)
    assert torch.equal(frozen(images), got)
    frozen.save(tmp_path / "net.safetensors")
    assert torch.equal(FrozenNetwork.load(tmp_path / "net.safetensors")(images), got)
    snn.train()
    snn(images).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in ann.parameters())


def test_streams_of_values():
    torch.manual_seed(0)
    images = torch.rand(8, 2, 8, 8)
    snn = convert(Net(nn.MaxPool2d(2)).eval(), 12, calibrate=images, neuron=IF(initial=0.5))
    frozen = freeze(snn)
    stream = frozen.stream(images)
    for steps in (1, 5, 3, 3):
        out = stream.advance(steps)
    assert torch.equal(out, frozen(images))


def test_near_the_ann():
    torch.manual_seed(0)
    images = torch.rand(64, 2, 8, 8)
    ann = Net(nn.MaxPool2d(2)).eval()
    snn = convert(ann, 8, calibrate=images)
    with torch.no_grad():
        torch.testing.assert_close(snn(images), ann(images), rtol=0, atol=0.01)
    assert "MaxPool2d" in str(snn.report())
    diagnose(snn, images, lambda y: y.sum())


def test_values_of_several_layers():
    """A concatenation of values, and a sum."""

    class Joined(Net):
        def forward(self, x):
            x = torch.relu(self.first(x))
            y = self.second(x)
            y = F.max_pool2d(torch.cat([y, x], 1), 2)
            return self.fc(torch.relu(self.third(y)).mean((2, 3)))

    torch.manual_seed(0)
    ann = Joined(nn.Identity()).eval()
    ann.third = nn.Conv2d(10, 6, 1)
    images = torch.rand(32, 2, 8, 8)
    snn = convert(ann, 8, calibrate=images)
    with torch.no_grad():
        torch.testing.assert_close(snn(images), ann(images), rtol=0, atol=0.01)


def test_a_relu_behind_the_pooling_needs_no_pairs():
    ann = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)
    )
    snn = convert(ann, 4, example=torch.rand(1, 2, 8, 8))
    assert not snn.snn.get_submodule("0").fires_pairs


def test_pairs_of_columns_are_refused():
    x = SpikeTrain.from_dense(torch.ones(4, 1, 2, 4, 4)).replace(pair_dim=-1)
    with pytest.raises(ValueError, match="SpikingMaxPool2d: pairs must lie along the channels"):
        SpikingMaxPool2d(2)(x)
