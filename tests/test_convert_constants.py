"""Linear maps with constants: fixed filters, matrices, means of channels, factors and offsets of channels."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anns import Net as Network
from tandem_cuda import IF, Decode, FrozenNetwork, SpikeTrain, TandemConv2d, TandemLinear, convert, freeze, quantise
from tandem_cuda.nn import TandemElementwise


class Net(nn.Module):
    """With something linear between its convolutions."""

    def __init__(self, middle, channels=6):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(channels, 4, 3, padding=1)
        self.fc, self.middle = nn.Linear(4, 3), middle

    def forward(self, x):
        x = self.middle(torch.relu(self.first(x)))
        return self.fc(torch.relu(self.second(x)).mean((2, 3)))


class Blur(nn.Module):
    """As the anti-aliasing of timm and of antialiased-cnns, with zeros around the image."""

    def __init__(self):
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("filter", (row[:, None] * row / 16)[None, None], persistent=False)

    def forward(self, x):
        return F.conv2d(x, self.filter.expand(6, 1, 3, 3), stride=2, padding=1, groups=6)


class Edges(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("filter", torch.tensor([[[[-1.0, 0, 1]]]]).repeat(6, 1, 1, 1))
        self.register_buffer("offset", torch.linspace(-0.2, 0.2, 6))

    def forward(self, x):
        return F.conv2d(x, self.filter, self.offset, padding=(0, 1), groups=6)


class Scaled(nn.Module):
    """Of each channel."""

    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.linspace(0.5, 2, 6).view(1, 6, 1, 1))
        self.register_buffer("offset", torch.linspace(-0.3, 0.3, 6).view(6, 1, 1))

    def forward(self, x):
        return x * self.factor + self.offset


class Mean(nn.Module):
    def forward(self, x):
        return torch.cat([x, x.mean(1, keepdim=True)], 1)


def exact(module):
    return getattr(module, "exact", None)


MIDDLES = {
    "blur": (Blur, 6, TandemConv2d),
    "edges": (Edges, 6, TandemConv2d),
    "scaled": (Scaled, 6, TandemElementwise),
    "mean": (Mean, 7, TandemConv2d),
}


def made(name, **settings):
    torch.manual_seed(0)
    kind, channels, _ = MIDDLES[name]
    ann, images = Net(kind(), channels).eval(), torch.rand(12, 2, 8, 8)
    return ann, images, convert(ann, settings.pop("time_steps", 8), calibrate=images, **settings)


@pytest.mark.filterwarnings("ignore:convert")  # few steps
@pytest.mark.parametrize("neuron", [None, IF(initial=0.5)], ids=["radix", "one phase"])
@pytest.mark.parametrize("name", MIDDLES)
@pytest.mark.parametrize("time_steps", [1, 2, 4, 8])
def test_networks(name, neuron, time_steps, tmp_path):
    ann, images, snn = made(name, time_steps=time_steps, neuron=neuron)
    kinds = [type(module) for module in snn.snn.modules() if "weight" in module._buffers]
    assert {*kinds} == {MIDDLES[name][2]}
    with torch.no_grad():
        got, want = snn(images), ann(images)
        if time_steps == 8 and neuron is None:
            assert (got - want).norm() < 0.02 * want.norm()
        frozen = freeze(snn)
        assert torch.equal(frozen(images), got)
        frozen.save(tmp_path / "net.safetensors")
        assert torch.equal(FrozenNetwork.load(tmp_path / "net.safetensors")(images), got)
    snn.train()
    snn(images).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in ann.parameters())
    assert {*snn.state_dict()} - {"_extra_state"} == {*ann.state_dict()}


@pytest.mark.parametrize("name", ["blur", "edges", "mean"])
def test_the_pre_activation_is_the_map_of_decoded_values(name):
    """With two-phase neurons, whose spikes tell what v was."""
    ann, images, snn = made(name, neuron=IF(initial=0.5, two_phase=True), per_channel=False, correct_bias=False)
    layer = next(module for module in snn.snn.modules() if isinstance(module, TandemConv2d) and module.exact)
    caught = []
    hook = layer.register_forward_hook(lambda module, inputs, output: caught.append((inputs[0], output)))
    with torch.no_grad():
        snn(images)
    hook.remove()
    ((before, after),) = caught
    with torch.no_grad():
        value = Decode()(before)
        v = value.mean(1, keepdim=True) if name == "mean" else ann.middle(value)
    theta = layer.neuron.threshold
    got = Decode()(after) / after.amplitude
    count = torch.floor(v.abs() / theta + 0.5).clamp(0, 8) * v.sign()
    if layer.fires_pairs:  # which round v and -v alike
        count = torch.floor(v / theta + 0.5).clamp(0, 8) - torch.floor(-v / theta + 0.5).clamp(0, 8)
    assert (got != count).float().mean() < 0.002  # where the sums are rounded in another order


@pytest.mark.parametrize("name", MIDDLES)
def test_no_neurons_in_front_of_the_read_out(name):
    class Last(Net):
        def forward(self, x):
            x = self.middle(torch.relu(self.first(torch.relu(self.zeroth(x)))))
            return self.last(F.max_pool2d(x, 2).flatten(1))

    torch.manual_seed(0)
    kind, channels, _ = MIDDLES[name]
    ann, images = Last(kind()).eval(), torch.rand(8, 2, 8, 8)
    ann.zeroth, ann.last = nn.Conv2d(2, 2, 1), nn.Linear(channels * (4 if name == "blur" else 16), 3)
    snn = convert(ann, 4, calibrate=images)
    constant = [module for module in snn.snn.modules() if isinstance(module, TandemElementwise) or exact(module)]
    assert len(constant) == (name == "mean")  # which is concatenated with spikes
    with torch.no_grad():
        assert torch.equal(freeze(snn)(images), snn(images))


@pytest.mark.parametrize("name", MIDDLES)
def test_other_dtypes_and_copies(name):
    _, images, snn = made(name)
    with torch.no_grad():
        want = snn(images)
        for other in (copy.deepcopy(snn), pickle.loads(pickle.dumps(copy.deepcopy(snn)))):
            assert torch.equal(other(images), want)
        snn.double()
        torch.testing.assert_close(snn(images.double()).float(), want, rtol=0, atol=0.05)
        assert torch.equal(freeze(snn)(images.double()), snn(images.double()))
        assert all(torch.equal(m.weight, m.exact[0]) for m in snn.snn.modules() if exact(m))
        snn.float()
        assert torch.equal(snn(images), want)


def test_integer_weights_are_those_of_layers():
    _, images, snn = made("blur")
    quantise(snn, 8)
    with torch.no_grad():
        assert torch.equal(freeze(snn)(images), snn(images))


@pytest.mark.parametrize("change", ["in place", "assigned"])
def test_changed_constants_are_noticed(change):
    ann, images, snn = made("edges")
    state = {name: x.clone() for name, x in ann.state_dict().items()}
    snn.load_state_dict(snn.state_dict())  # the same values
    with torch.no_grad():
        want = snn(images)
    if change == "in place":
        ann.middle.filter.mul_(2)
    else:
        ann.middle.filter = ann.middle.filter * 2
    with pytest.raises(RuntimeError, match=r"it was converted, but middle\.filter changed"):
        snn(images)
    ann.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(snn(images), want)


def test_trained_constants_are_no_constants():
    learned = Network(lambda n, x: x * (2 * n.factor), factor=nn.Parameter(torch.ones(1, 6, 1, 1)))
    with pytest.raises(ValueError, match="spikes cannot be multiplied by tensors"):
        convert(Net(learned), 8)
    convert(Net(learned.requires_grad_(False)), 8)


def test_a_matrix_of_rows():
    """As a graph's adjacency matrix mixes nodes."""

    def run(n, x):
        x = torch.relu(n.second(torch.matmul(n.adjacency, torch.relu(n.first(x)))))
        return n.last(x.mean(1))

    torch.manual_seed(0)
    ann = Network(run, first=nn.Linear(4, 6), second=nn.Linear(6, 5), last=nn.Linear(5, 3)).eval()
    ann.register_buffer("adjacency", torch.rand(7, 7).softmax(1))
    x = torch.rand(32, 7, 4)
    snn = convert(ann, 8, calibrate=x)
    with torch.no_grad():
        want = ann(x)
        assert (snn(x) - want).norm() < 0.02 * want.norm()
        assert torch.equal(freeze(snn)(x), snn(x))
    assert len([module for module in snn.snn.modules() if exact(module)]) == 1  # the mean goes into the read-out


def test_matrices():
    layer = TandemLinear(3, 2, bias=False)
    layer.hold_constants(torch.tensor([[1.0, 0, 2], [0, 1, 0]]).double(), None, torch.ones(1))
    got = layer(SpikeTrain.from_dense(torch.ones(4, 1, 3)))
    assert got.count.tolist() == [[4.0, 4.0]]
    assert [*layer.parameters()] == []
