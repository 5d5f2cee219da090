"""synops of weights behind the spiking layers: those that spike counts reach, and those that real values do."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tandem_cuda import Decode, Encode, TandemConv2d, TandemLinear, record_activity
from tandem_cuda.analysis import synops


def counting(readout: nn.Module, in_channels: int = 6) -> nn.Sequential:
    """Counts of 6 channels, 5 x 4 pixels, on the way to a read-out."""
    torch.manual_seed(3)
    net = nn.Sequential(Encode(5), TandemConv2d(2, in_channels, 3), Decode(), readout)
    nn.init.uniform_(net[1].weight, -0.1, 0.2)
    return net


READOUTS: dict[str, tuple[nn.Module, nn.Module]] = {  # what is in front of the weights, the weights
    "Conv2d": (nn.Identity(), nn.Conv2d(6, 8, 3, stride=2, padding=1)),
    "grouped": (nn.Identity(), nn.Conv2d(6, 4, (2, 3), groups=2, dilation=(1, 2), padding=3)),
    "ConvTranspose2d": (nn.Identity(), nn.ConvTranspose2d(6, 4, 3, stride=2, padding=2, groups=2)),
    "Conv1d": (nn.Flatten(2), nn.Conv1d(6, 3, 5, stride=3)),
    "Conv3d": (nn.Unflatten(1, (2, 3)), nn.Conv3d(2, 4, (3, 3, 2))),
    "Linear": (nn.Flatten(), nn.Linear(120, 7)),
    "Linear of the last dimension": (nn.Identity(), nn.Linear(4, 7)),
    "behind dropout": (nn.Sequential(nn.Dropout2d(), nn.Flatten(), nn.Dropout()), nn.Linear(120, 7)),
}


def reached(weights: nn.Module, nonzero: Tensor) -> float:
    """How many outputs the entries reach that are not zero, by weights of one."""
    twin = copy.deepcopy(weights).double()
    nn.init.ones_(twin.weight)
    nn.init.zeros_(twin.bias)
    with torch.no_grad():
        return float(twin(nonzero).sum())


@pytest.mark.parametrize("name", READOUTS)
def test_readout_of_any_kind(name: str) -> None:
    """All of its operations: one for each count that is not zero and each output that it reaches."""
    front, weights = READOUTS[name]
    net = counting(nn.Sequential(front, weights)).eval()
    x = torch.rand(3, 2, 7, 6)
    with torch.no_grad():
        counts = front(net[:3](x))
        output = weights(counts)
    assert 0 < int((counts != 0).sum()) < counts.numel()
    _, row = table = synops(net, x)
    assert row.name == "3.1"
    assert row.synops == reached(weights, (counts != 0).double()) / 3
    assert row.macs == reached(weights, torch.ones_like(counts[:1], dtype=torch.float64))
    assert (row.neurons, row.time_steps, row.analogue) == (output[0].numel(), 5, False)
    assert (row.firing_rate, row.saturation, row.silent, row.dead) == (None,) * 4
    assert table.not_counted == ()
    assert "Not counted" not in str(table)


class Functional(nn.Module):
    """Weights by functions, on counts that were moved, copied, scaled and joined, and on real values."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.rand(4, 12, 3, 3))
        self.fc = nn.Linear(4 * 4 * 5, 3)

    def forward(self, counts: Tensor) -> Tensor:
        both = torch.cat([counts / 5, counts.clone()], 1).permute(0, 1, 3, 2).contiguous()
        y = F.conv2d(both, self.kernel, padding=1)
        return F.linear(y.flatten(1), weight=self.fc.weight)


def test_functions_and_what_leaves_counts_counts() -> None:
    net = counting(Functional()).eval()
    x = torch.rand(3, 2, 7, 6)
    _, convolution, linear = table = synops(net, x)
    with torch.no_grad():
        nonzero = (net[:3](x) != 0).double()
    ones = torch.ones(4, 6, 3, 3, dtype=torch.float64)
    assert convolution.synops == 2 * F.conv2d(nonzero, ones, padding=1).sum().item() / 3
    # A tap is missing at each border of 4 x 5 pixels.
    assert (convolution.name, convolution.macs, convolution.analogue) == ("3", 4 * 12 * 10 * 13, False)
    assert (linear.name, linear.macs, linear.analogue, linear.synops) == ("3", 80 * 3, True, 0)
    assert table.not_counted == ()


def test_counts_that_were_written_into_are_real_values() -> None:
    class Centred(nn.Module):
        def forward(self, counts: Tensor) -> Tensor:
            return counts.sub_(counts.mean())

    with torch.no_grad():
        net = nn.Sequential(Encode(4), TandemLinear(6, 40), Decode(), Centred(), nn.Linear(40, 3))
        _, row = synops(net, torch.rand(8, 6))
    assert row.analogue
    assert (row.synops, row.macs) == (0, 120)


def test_training_mode_counts_what_dropout_left() -> None:
    net = nn.Sequential(Encode(4), TandemLinear(6, 40), Decode(), nn.Dropout(0.5), nn.Linear(40, 3))
    nn.init.uniform_(net[1].weight, 0, 1)
    seen = []
    net[4].register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with record_activity(net) as record:
        net(torch.rand(8, 6))
    row = record.table()[1]
    assert 0 < row.synops == float((seen[0] != 0).sum()) * 3 / 8 < 40 * 3


class Elsewhere(nn.Module):
    """What multiplies and is in no row."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(6, 6, batch_first=True)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.scripted = torch.jit.script(nn.Sequential(nn.Linear(6, 6)))
        self.norm = nn.LayerNorm(6)
        self.gain = nn.PReLU()
        self.fc = nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))

    def forward(self, counts: Tensor) -> Tensor:
        x, _ = self.recurrent(counts[:, None])
        x, _ = self.attention(x, x, x)
        x = self.gain(self.norm(self.scripted(x[:, 0])))
        return self.fc(x + x @ x.mT @ x)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_what_is_not_counted_is_named() -> None:
    net = nn.Sequential(Encode(4), TandemLinear(6, 6), Decode(), Elsewhere())
    table = synops(net, torch.rand(8, 6))
    assert [row.name for row in table] == ["1", "3.fc"]
    assert table[1].analogue
    assert list(table.not_counted) == [
        "3.scripted.0 (Linear, scripted)",
        "3.recurrent (LSTM)",
        "3.attention (MultiheadAttention)",
        "3.gain (PReLU)",
        "matmul in 3",
    ]
    assert str(table).splitlines()[-1] == f"Not counted: {', '.join(table.not_counted)}"


def test_exported_parts() -> None:
    """What torch.export writes calls operators in the place of functions."""
    head = nn.Sequential(nn.Conv2d(6, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 2, 3))
    net = counting(head).eval()
    x = torch.rand(3, 2, 7, 6)
    want = synops(net, x)
    exported = torch.export.export(head, (torch.rand(3, 6, 5, 4),)).module()
    both = nn.Sequential(*net[:3], exported)
    with record_activity(both) as record, torch.no_grad():  # exported modules have no eval()
        both(x)
    got = record.table()
    assert [replace(row, name="") for row in got] == [replace(row, name="") for row in want]
    assert got.not_counted == ()
