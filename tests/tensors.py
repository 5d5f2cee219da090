"""Random tensors: exact numbers and spike trains."""

import torch

from tandem_cuda import reference as ref

FLOATS = (torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)
INTEGERS = (torch.int8, torch.int16)
WEIGHTS = (*FLOATS, *HALVES, *INTEGERS)
ENGINES = ("auto", "event", "dense")
META = torch.device("meta")


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed, dtype=torch.float32):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def dyadic(*shape, seed, scale=16, span=1, dtype=torch.float32):
    """Random multiples of 1 / scale in [-span, span]: sums of them are exact, in any order."""
    whole = torch.randint(-span * scale, span * scale + 1, shape, generator=generator(seed))
    return whole.to(dtype) / scale


def integers(*shape, seed, dtype):
    """Random weights of the whole range that the products take."""
    low, high = {torch.int8: (-128, 128), torch.int16: (-32639, 32640)}[dtype]
    return torch.randint(low, high, shape, dtype=dtype, generator=generator(seed))


def int8(*shape, seed):
    return integers(*shape, seed=seed, dtype=torch.int8)


def train(*shape, seed, rate=0.3):
    """A random spike train, uint8 [T, N, ...]."""
    return (torch.rand(shape, generator=generator(seed)) < rate).to(torch.uint8)


def planes(*shape, seed, rate=0.3):
    """The same as bits; `shape` starts with T."""
    return ref.pack_spikes(train(*shape, seed=seed, rate=rate))


def views(x):
    """The same values in other memory: any dimension innermost, sliced, with gaps between elements, expanded."""
    yield x
    yield x.contiguous()
    for dim in range(1, x.dim()):
        yield x.movedim(dim, -1).contiguous().movedim(-1, dim)
    # What nobody must read.
    wrong = float("nan") if x.dtype.is_floating_point else torch.iinfo(x.dtype).max
    wider = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 3), wrong, dtype=x.dtype)
    wider[..., 1 : 1 + x.shape[-1]] = x
    yield wider[..., 1 : 1 + x.shape[-1]]
    wider = torch.full_like(wider, wrong)
    wider[..., 1 : 1 + 2 * x.shape[-1] : 2] = x
    yield wider[..., 1 : 1 + 2 * x.shape[-1] : 2]
    first = x[..., :1].contiguous()
    if torch.equal(first.expand_as(x), x):
        yield first.expand_as(x)
