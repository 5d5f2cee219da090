"""Functions behind the last weight layer: what converts, freezes, to the bit."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exact import generator, same
from tandem_cuda import IF, FrozenNetwork, convert, freeze
from tandem_cuda.freeze.functions import FrozenFunction

pytest.importorskip("safetensors")


class Net(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.first, self.last, self.head = nn.Linear(6, 9), nn.Linear(9, 8), head
        self.register_buffer("row", torch.linspace(-1, 1, 8))
        self.register_buffer("matrix", torch.linspace(-9, 9, 64).view(8, 8).sin())
        self.register_buffer("index", torch.tensor([2, 0]))
        self.register_buffer("mask", torch.arange(8) > 4)
        self.register_buffer("kernel", torch.tensor([[[[1.0, -0.5], [0.25, 2.0]]]]))

    def forward(self, x):
        return self.head(self, self.last(F.relu(self.first(x))))


def image(x):
    return x.view(-1, 1, 2, 4)


HEADS = {
    "repeat": lambda n, x: x.repeat(1, 2),
    "tile": lambda n, x: torch.tile(x, (2,)),
    "repeat_interleave": lambda n, x: x.repeat_interleave(2, 1),
    "expand_as": lambda n, x: x[:, :1].expand_as(x) + x,
    "max of a dimension": lambda n, x: x.max(1)[0],
    "its values": lambda n, x: x.max(dim=1, keepdim=True).values,
    "its indices": lambda n, x: torch.min(x, 1).indices,
    "max of two": lambda n, x: torch.max(x, -x),
    "max of all": lambda n, x: x / x.max(),
    "amax": lambda n, x: x.amax(1, keepdim=True),
    "argmax": lambda n, x: x.argmax(1),
    "topk": lambda n, x: x.topk(2).values,
    "sort": lambda n, x: torch.sort(x, descending=True)[0],
    "median": lambda n, x: x.median(1).values,
    "adaptive_max_pool1d": lambda n, x: F.adaptive_max_pool1d(x.unsqueeze(1), 3),
    "adaptive_max_pool2d": lambda n, x: F.adaptive_max_pool2d(image(x), (1, 2)),
    "slices": lambda n, x: x[:, 1::2, None],
    "unflatten": lambda n, x: torch.unflatten(x, 1, (2, 4)),
    "interpolate": lambda n, x: F.interpolate(image(x), scale_factor=2, mode="bilinear"),
    "a constant": lambda n, x: torch.lerp(x, n.row, 0.25) * n.row + 1,
    "an index": lambda n, x: x[:, n.index] + x.index_select(1, n.index),
    "a mask": lambda n, x: torch.where(n.mask, x, -x).masked_fill(x < 0, 0.5),
    "comparisons": lambda n, x: (x > 0).float() + (x.abs() >= 1).to(x.dtype),
    "select, narrow, unbind": lambda n, x: x.select(1, 2) + x.narrow(1, 1, 3).sum(1) + x.unbind(1)[2],
    "flip and roll": lambda n, x: x.flip(1) + torch.roll(x, 1, 1),
    "standardised": lambda n, x: (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True),
    "norm": lambda n, x: x / x.norm(dim=1, keepdim=True),
    "sums": lambda n, x: x.cumsum(1) + x.prod(1, keepdim=True) + x.var(1, unbiased=False, keepdim=True),
    "einsum": lambda n, x: torch.einsum("nf,fg->ng", x, n.matrix),
    "a product": lambda n, x: torch.addmm(n.row, x, n.matrix).mm(n.matrix),
    "a transposed matrix": lambda n, x: n.matrix.t() @ x.t(),
    "a matrix with gaps": lambda n, x: x[:, :4] @ n.matrix[::2, 1::3],
    "mT": lambda n, x: x.unsqueeze(1).mT,
    "view_as": lambda n, x: x.view(-1, 2, 4).view_as(x) + x.view(-1, 4, 2).reshape_as(x),
    "swapaxes": lambda n, x: x.unsqueeze(1).swapaxes(1, 2),
    "zeros": lambda n, x: torch.cat([x, torch.zeros_like(x), x.new_zeros(x.size(0), 1)], 1),
    "roots": lambda n, x: x.sign() * x.abs().clamp_min(0.01).sqrt() + x.square().add(1).rsqrt(),
    "erf": lambda n, x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "sine": lambda n, x: torch.sin(x) + x.cos() + x.exp().log1p(),
    "rounded": lambda n, x: x.floor() + torch.ceil(x) + x.round() + x.trunc() + x % 2,
    "channel_shuffle": lambda n, x: F.channel_shuffle(x.view(-1, 8, 1, 1), 2),
    "conv_transpose2d": lambda n, x: F.conv_transpose2d(image(x), n.kernel, stride=2),
    "group_norm": lambda n, x: F.group_norm(x, 2) + F.rms_norm(x, (8,)),
    "batch_norm": lambda n, x: F.batch_norm(x, n.row, n.row.abs() + 1),
    "lp_pool2d": lambda n, x: F.lp_pool2d(image(x).abs(), 2.0, 2),
    "thresholds": lambda n, x: F.hardshrink(x) + F.threshold(x, 0.1, 0.0) + F.softshrink(x),
    "unfold": lambda n, x: F.unfold(image(x), 2),
    "sizes": lambda n, x: x.flatten(x.ndim - 1) / x.numel(),
    "other dtypes": lambda n, x: x.to(torch.float64) + x.argmax(1, keepdim=True).long(),
    "cosine": lambda n, x: F.cosine_similarity(x, n.row.expand_as(x)),
    "detach": lambda n, x: x.detach().nan_to_num().reciprocal(),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads(name, tmp_path):
    torch.manual_seed(0)
    net, x = convert(Net(HEADS[name]).eval(), 4, neuron=IF()), torch.randn(5, 6, generator=generator(0))
    with torch.no_grad():
        want = net(x)
    frozen = freeze(net)
    same(frozen(x), want)
    frozen.save(tmp_path / "net.safetensors")
    loaded = FrozenNetwork.load(tmp_path / "net.safetensors")
    for twin in (loaded, copy.deepcopy(loaded)):
        same(twin(x), want)
    stream = loaded.stream(x)
    same([stream.advance(n) for n in (1, 3)][-1], want)


def test_batch_norm_of_the_batch_is_refused():
    net = convert(Net(lambda n, x: F.batch_norm(x, None, None, training=True)).eval(), 4)
    with pytest.raises(ValueError, match="batch_norm must have training=False, since outputs would depend on the"):
        freeze(net)


@pytest.mark.parametrize("dims", [[0, 0], [0], [0, 5], "10", None])
def test_constants_that_are_permuted_wrongly_are_refused(dims):
    with pytest.raises((ValueError, RuntimeError, IndexError, TypeError)):
        FrozenFunction("Tensor.matmul", [{"permuted": ["0", dims]}, {"input": 0}], {}, {"0": torch.rand(2, 3)})
