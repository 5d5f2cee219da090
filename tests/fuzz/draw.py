"""What cases are drawn from: one seed, values whose sums are exact, tensors in any memory layout, any CPU path."""

import contextlib

import numpy as np
import torch

from tandem_cuda import _C, ops
from tandem_cuda.neuron import KINDS, of_parameters

from . import oracle

ISAS = _C.build_info()["cpu_isas_runnable"]
TIME_STEPS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17)
MANY_STEPS = (24, 63, 64, 65, 70, 100)
# Around the borders of vectors, of words of 64 spikes and of chunks of 128 rows of weights.
CHANNELS = (1, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17)
MANY_CHANNELS = (31, 32, 33, 48, 63, 64, 65, 70, 127, 128, 130, 257)
THRESHOLDS = (0.25, 0.5, 1.0, 1.0, 2.5, 0.7)
SHARES = (0.0, 0.0, 0.25, 0.5, 0.5, 0.75, 0.9, 1.0)
RATES = (0.0, 0.02, 0.1, 0.3, 0.5, 0.9, 1.0)
FLOATS = (torch.float32, torch.float64)
WEIGHTS = (*FLOATS, torch.float16, torch.bfloat16, torch.int8, torch.int16)
NUMPY = {torch.float32: np.float32, torch.float64: np.float64, torch.float16: np.float32, torch.bfloat16: np.float32}
# Bits of an integer that these hold.
SIGNIFICANDS = {torch.float32: 24, torch.float64: 53, torch.float16: 11, torch.bfloat16: 8}


class Mismatch(AssertionError):
    """What a case found."""


class Draw:
    """The random choices of one case, and a record of those that tell cases apart."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.notes = {}

    def note(self, **named):
        self.notes.update(named)

    def chance(self, p):
        return self.rng.random() < p

    def one(self, values):
        return values[int(self.rng.integers(len(values)))]

    def int(self, low, high):
        """From low to high, both inclusive."""
        return int(self.rng.integers(low, high + 1))

    def pair(self, low, high):
        return self.int(low, high), self.int(low, high)

    def steps(self):
        return self.one(MANY_STEPS) if self.chance(0.08) else self.one(TIME_STEPS)

    def channels(self):
        return self.one(MANY_CHANNELS) if self.chance(0.1) else self.one(CHANNELS)

    def batch(self):
        return 0 if self.chance(0.03) else self.one((1, 1, 2, 3))

    def neuron(self):
        """Of any kind; thresholds are mostly dyadic, so that potentials reach them exactly."""
        kind = self.one([*KINDS])
        parameters = KINDS[kind].KINDS[kind].parameters
        return of_parameters(kind, [self.parameter(parameter) for parameter in parameters])

    def parameter(self, parameter):
        """Any value of a neuron's parameter."""
        if parameter.potential:
            return self.one(THRESHOLDS) if self.chance(0.8) else float(self.rng.uniform(0.01, 4))
        if parameter.whole:
            return self.int(1, 9)
        return self.one([share for share in SHARES if parameter.holds(share)])

    def state(self, neuron, *shape, dtype):
        """[S, *shape], as an earlier call might have left it; potentials are often exactly the threshold."""
        state = np.stack([self.floats(*shape, dtype=dtype) for _ in range(neuron.states)])
        if self.chance(0.5):
            state[0][self.rng.random(shape) < 0.3] = dtype(neuron.threshold)
        return state

    def spikes(self, *shape):
        """uint8 of 0 and 1, of one rate, sometimes the same at every step or along another axis."""
        shape = list(shape)
        axis = None
        if len(shape) > 1 and self.chance(0.05):
            axis = self.int(0, len(shape) - 1)
            size, shape[axis] = shape[axis], min(shape[axis], 1)
        out = (self.rng.random(shape) < self.one(RATES)).astype(np.uint8)
        return out if axis is None or not shape[axis] else np.repeat(out, size, axis)

    def dyadic(self, *shape, largest=16, unit=1 / 16, dtype=np.float32):
        """Multiples of `unit`, up to `largest` of them: their sums are exact as long as these fit a significand."""
        return (self.rng.integers(-largest, largest + 1, shape) * unit).astype(dtype)

    def floats(self, *shape, dtype=np.float32):
        """Any numbers: of a normal distribution, dyadic, all alike, or with large and tiny ones among them."""
        kind = self.int(0, 3)
        if kind == 0:
            return self.dyadic(*shape, unit=1 / 8, dtype=dtype)
        out = self.rng.standard_normal(shape).astype(dtype)
        if kind == 1 and out.size:
            out[...] = out.flat[0]
        if kind == 2:
            wild = self.rng.random(shape) < 0.1
            out[wild] *= self.one((1e-42, 1e-30, 1e8, 1e30))
        return out

    # ---- Tensors

    def tensor(self, values, dtype=None):
        """The values of an array in a tensor of any memory layout; what lies between them is NaN or 255."""
        values = np.ascontiguousarray(values)
        source = torch.from_numpy(values).to(dtype) if dtype is not None else torch.from_numpy(values)
        if self.chance(0.35) or source.dim() == 0:
            return source.clone()
        dims = source.dim()
        order = [int(i) for i in self.rng.permutation(dims)] if self.chance(0.6) else list(range(dims))
        if self.chance(0.3) and dims > 2:  # features last
            order = [d for d in range(dims) if d != dims - 3] + [dims - 3]
        gaps = self.chance(0.4)
        strides, size = [0] * dims, 1
        for d in reversed(order):
            if source.shape[d] > 1 and self.chance(0.3) and _constant(values, d):
                continue  # expanded
            size *= self.one((1, 2, 3)) if gaps else 1
            strides[d] = size
            size = size * max(source.shape[d], 1) + (self.int(0, 3) if gaps else 0)
            if source.shape[d] == 1 and self.chance(0.5):
                strides[d] = self.one((0, 1, 3, 17, 1000))  # which nobody may rely on
        offset = self.int(0, 5) if self.chance(0.5) else 0
        if source.dtype.is_floating_point:
            wrong = float("nan")
        else:
            wrong = True if source.dtype == torch.bool else torch.iinfo(source.dtype).max
        memory = torch.full((size + offset + 3,), wrong, dtype=source.dtype)
        out = memory.as_strided(source.shape, strides, offset)
        out.copy_(source) if 0 not in strides else _written(out, source)
        return out

    def bits(self, spikes):
        """Packed spikes [T, ...], by the oracle, in any layout."""
        return self.tensor(oracle.pack(spikes))

    # ---- How to run

    @contextlib.contextmanager
    def path(self):
        """An instruction set, a number of threads, fresh memory full of NaN or not, oneDNN or not."""
        isa, threads = self.one(ISAS), 2 if self.chance(0.2) else 1
        poison, onednn = self.chance(0.5), not self.chance(0.03)
        self.note(isa=isa, threads=threads, poison=poison, onednn=onednn)
        before = torch.get_num_threads(), _C.cpu_isa()
        _C.set_cpu_isa(isa)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(poison)
        torch._C._set_mkldnn_enabled(onednn)
        try:
            yield
        finally:
            torch._C._set_mkldnn_enabled(True)
            torch.use_deterministic_algorithms(False)
            torch.set_num_threads(before[0])
            _C.set_cpu_isa(before[1])

    def engine(self, weight):
        # Few dense ones of floats: oneDNN compiles a kernel for every new shape.
        integers = not weight.is_floating_point()
        return "dense" if self.chance(0.4 if integers else 0.2) else self.one(("auto", "event"))

    def packed(self, weight, groups=1):
        return ops.pack_weight(weight, groups) if self.chance(0.5) else None


def _constant(values, axis):
    return bool((values == values.take([0], axis)).all())


def _written(out, source):
    """Write through a view with axes of stride 0, along which the source is constant."""
    index = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in out.stride())
    out[index].copy_(source[index])


def same(name, got, want):
    """Mismatch unless a tensor equals an array in shape and every element; NaN equals NaN, -0 equals 0."""
    if isinstance(got, torch.Tensor):
        if got.dtype == torch.bfloat16:
            got = got.float()
        got = got.detach().numpy()
    if got.shape != want.shape:
        raise Mismatch(f"{name}: shape {list(got.shape)}, expected {list(want.shape)}")
    wrong = ~((got == want) | ((got != got) & (want != want)))
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise Mismatch(
            f"{name}: {int(wrong.sum())} of {wrong.size} differ, at {list(at)} {got[at]}, expected {want[at]}"
        )


def close(name, got, want, tolerance, terms=None):
    """Mismatch unless equal up to `tolerance` times the largest value.

    Of sums that may cancel, `terms` are the sums of their terms' sizes, whose largest counts: rounding goes by these.
    """
    got = got.detach().double().numpy()
    if got.shape != want.shape:
        raise Mismatch(f"{name}: shape {list(got.shape)}, expected {list(want.shape)}")
    if not want.size:
        return
    allowed = tolerance * max(float(np.abs(want if terms is None else terms).max()), 1e-30)
    worst = np.abs(got - want)
    if not (worst <= allowed).all():
        at = tuple(
            int(i) for i in np.unravel_index(int(np.nanargmax(np.where(worst == worst, worst, np.inf))), worst.shape)
        )
        raise Mismatch(f"{name}: at {list(at)} {got[at]}, expected {want[at]}, off by more than {allowed:.3g}")
