"""Linear layers on [N, L, F], whose features are along the last dimension: converted, trained, frozen, streamed."""

import copy
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exact import same
from freezable import in_chunks
from pairwise import each
from tandem_cuda import IF, Decode, FrozenNetwork, SpikeTrain, TandemElementwise, TandemLinear, convert, freeze
from tandem_cuda.convert import Calibration
from tandem_cuda.nn import TandemNeurons

STEPS = 1024
ROWS = 6


class Reads(nn.Module):
    """Two linear layers, and what reads their outputs."""

    def __init__(self, read, *layers, features=6):
        super().__init__()
        self.a, self.b = nn.Linear(5, features), nn.Linear(5, features)
        self.read, self.layers = read, nn.ModuleList(layers)

    def forward(self, x):
        return self.read(self.a(x), self.b(x), *self.layers)


def last(inputs=6):
    return nn.Linear(inputs, 3)


def signed_sum(a, b, layer, end):
    return end(F.relu(layer(a) + a))


READERS = {
    "a linear layer": lambda: Reads(lambda a, b, layer, end: end(F.relu(layer(a))), nn.Linear(6, 7), last(7)),
    "flatten, then a layer": lambda: Reads(
        lambda a, b, layer, end: end(F.relu(layer(a.flatten(1)))), nn.Linear(36, 8), last(8)
    ),
    "view of sizes": lambda: Reads(
        lambda a, b, layer, end: end(F.relu(layer(a.view(a.size(0), a.size(1) * a.size(2))))), nn.Linear(36, 8), last(8)
    ),
    "cat of rows, then a layer": lambda: Reads(
        lambda a, b, layer, end: end(F.relu(layer(torch.cat([a, b], 1)))), nn.Linear(6, 7), last(7)
    ),
    "cat with a ReLU": lambda: Reads(
        lambda a, b, layer, end: end(F.relu(layer(torch.cat([a, F.relu(b)], 1)))), nn.Linear(6, 7), last(7)
    ),
    "cat, then flatten": lambda: Reads(
        lambda a, b, layer, end: end(F.relu(layer(torch.cat([a, b], 1).flatten(1)))), nn.Linear(72, 8), last(8)
    ),
    "halves of rows": lambda: Reads(lambda a, b, end: end(F.relu(a.chunk(2, 1)[1])), last()),
    "sum with a signed value": lambda: Reads(signed_sum, nn.Linear(6, 6), last()),
    "a factor and an offset": lambda: Reads(lambda a, b, end: end(F.relu(1 - 2 * a)), last()),
    "gate": lambda: Reads(
        lambda a, b, squeeze, layer, end: end(F.relu(layer(a * torch.sigmoid(squeeze(a))))),
        *(nn.Linear(6, 6), nn.Linear(6, 7), last(7)),
    ),
    "batch norm of rows": lambda: Reads(lambda a, b, norm, end: end(F.relu(norm(a))), nn.BatchNorm1d(ROWS), last()),
    "a convolution": lambda: Reads(
        lambda a, b, layer, end: end(F.relu(layer(a))), nn.Conv1d(ROWS, 7, 3, padding=1), last()
    ),
    "a convolution of a ReLU": lambda: Reads(
        lambda a, b, layer, end: end(F.relu(layer(F.relu(a)))), nn.Conv1d(ROWS, 7, 3, padding=1), last()
    ),
    "average pooling": lambda: Reads(
        lambda a, b, layer, end: end(F.relu(layer(F.avg_pool1d(a, 2)))), nn.Conv1d(ROWS, 6, 1), last(3)
    ),
    "max pooling": lambda: Reads(
        lambda a, b, layer, end: end(F.relu(layer(F.max_pool1d(F.relu(a), 2)))), nn.Conv1d(ROWS, 6, 1), last(3)
    ),
    "mean of features": lambda: Reads(
        lambda a, b, layer, end: end(F.relu(layer(a.mean(2)))), nn.Linear(ROWS, 8), last(8)
    ),
}


def made(name):
    torch.manual_seed(0)
    ann = READERS[name]().eval()
    for module in ann.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    return ann, torch.randn(48, ROWS, 5)


def converted(ann, steps, **how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return convert(ann, steps, **{"example": torch.zeros(1, ROWS, 5), **how}).eval()


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@each(name=list(READERS), per_channel={"each channel": True, "each layer": False})
def test_calibrated_networks_are_near_their_ann(name, per_channel):
    """As many rows as features: a reader that looks along the wrong dimension finds sizes that fit."""
    ann, x = made(name)
    snn = converted(ann, STEPS, calibrate=x, per_channel=per_channel)
    want = ann(x)
    assert (snn(x) - want).norm() < 0.02 * want.norm()
    assert snn.report().output_error < 0.02
    errors = [layer.error for layer in snn.report().layers if layer.error is not None]
    assert errors
    assert max(errors) < 0.02
    assert name in ANALOGUE or not snn.report().analogue
    with torch.enable_grad():
        target, gradients = torch.randn_like(want), []
        for network in (ann, snn):
            ann.zero_grad()
            (network(x) * target).sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in ann.parameters() if p.grad is not None]))
    assert (gradients[1] - gradients[0]).norm() < 0.1 * gradients[0].norm()


ANALOGUE = {
    "gate", "cat of rows, then a layer", "cat with a ReLU", "cat, then flatten", "batch norm of rows",
    "average pooling", "mean of features",
}  # fmt: skip


def same_everywhere(snn, x, tmp_path):
    want = snn(x)
    frozen = freeze(snn)
    same(frozen(x), want)
    frozen.save(tmp_path / "net.safetensors")
    loaded = FrozenNetwork.load(tmp_path / "net.safetensors")
    same(loaded(x), want)
    same(copy.deepcopy(snn)(x), want)
    return loaded, want


@pytest.mark.parametrize("name", READERS)
def test_frozen_networks_and_their_files(tmp_path, name):
    ann, x = made(name)
    snn = converted(ann, 8, calibrate=x, neuron=IF(initial=0.5))
    loaded, want = same_everywhere(snn, x, tmp_path)
    if any(isinstance(module, TandemNeurons) for module in snn.modules()):  # which wait for all steps
        return
    same(in_chunks(loaded.stream(x), (3,)), want)


@pytest.mark.parametrize("name", ["flatten, then a layer", "cat with a ReLU", "sum with a signed value"])
@torch.enable_grad()
def test_training_lowers_the_loss(name):
    ann, x = made(name)
    snn = converted(ann, 8, calibrate=x).train()
    target = snn(x).detach() + 1
    optimiser = torch.optim.Adam(snn.parameters(), 0.01)
    losses = []
    for _ in range(20):
        loss = (snn(x) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]


def test_states_and_other_time_steps():
    ann, x = made("sum with a signed value")
    snn = converted(ann, 8, calibrate=x, neuron=IF(initial=0.5, two_phase=True))
    file = io.BytesIO()
    torch.save(snn.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = converted(ann, 8, calibrate=Calibration.of_state(state))
    other.load_state_dict(state)
    same(other(x), snn(x))
    snn.set_time_steps(STEPS)
    want = ann(x)
    assert (snn(x) - want).norm() < 0.05 * want.norm()  # with the levels of least error for 8 steps


def test_elementwise_neurons_of_features():
    x = SpikeTrain(torch.randint(0, 256, (1, 2, 3, 4), dtype=torch.uint8), 8)
    layers = [TandemElementwise(4, 8, 4, of_features=of_features) for of_features in (True, False)]
    for layer in layers:
        layer.maps(-0.5, 0.25, torch.empty(0))
    rows, channels = layers[0](x), layers[1](x.rearranged(lambda y: y.movedim(-1, 2)))
    assert (rows.pair_dim, channels.pair_dim) == (-1, 1)
    same(rows.bits, channels.bits.movedim(2, -1))
    with pytest.raises(ValueError, match=r"TandemElementwise: input must be \[N, ..., 4\], got \[2, 4, 3\]"):
        layers[0](x.rearranged(lambda y: y.movedim(-1, 2)))


def test_weights_refuse_pairs_along_another_dimension():
    x = SpikeTrain(torch.zeros(1, 2, 6, 6, dtype=torch.uint8), 8, pair_dim=1)
    with pytest.raises(
        ValueError, match=r"TandemLinear: pairs of its input must lie along dimension -1, got pair_dim=1"
    ):
        TandemLinear(6, 4)(x)
    assert Decode()(TandemLinear(6, 4)(x.replace(pair_dim=-1))).shape == (2, 6, 4)
