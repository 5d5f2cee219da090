"""Weights, scale and bias that are not finite are refused by every operator and engine."""

import math

import pytest
import torch

from exact import ENGINES, FLOATS, HALVES, THREADS, dyadic, planes, same
from tandem_cuda import ops

VALUES = (math.nan, math.inf, -math.inf)
every_value = pytest.mark.parametrize("value", VALUES)

# Weights; groups. Of several blocks of output channels; depthwise ones, in vectors and not; linear ones.
SHAPES = {
    "conv": ((70, 5, 3, 2), 1),
    "groups": ((6, 2, 2, 2), 3),
    "depthwise": ((40, 1, 3, 3), 40),
    "multiplied": ((15, 1, 2, 2), 5),
    "linear": ((33, 130), 1),
}
every_shape = pytest.mark.parametrize(("shape", "groups"), SHAPES.values(), ids=SHAPES)


def calls(shape, groups, engine, **named):
    """The spiking and the count product of weights of this shape: f(weight, bias, scale), and their names."""
    inputs = (groups * shape[1], 4, 4) if len(shape) == 4 else shape[1:]
    kind, bits = "conv2d" if len(shape) == 4 else "linear", planes(8, 2, *inputs, seed=0)
    for name, more in ((f"spiking_{kind}", {"time_steps": 8}), (f"count_{kind}", {})):
        more = {"engine": engine, **more, **named, **({"groups": groups} if kind == "conv2d" else {})}
        yield name, lambda *operands, name=name, more=more, **kw: getattr(ops, name)(bits, *operands, **more, **kw)


def places(shape):
    """The first and last weight, and one in between."""
    numel = math.prod(shape)
    for flat in (0, numel // 2 + 1, numel - 1):
        at = []
        for size in reversed(shape):
            at.insert(0, flat % size)
            flat //= size
        yield tuple(at)


@every_value
@every_shape
@pytest.mark.parametrize("engine", ENGINES)
def test_weight(shape, groups, engine, value):
    for threads in THREADS:
        torch.set_num_threads(threads)
        for dtype in (*FLOATS, *HALVES):
            for place in places(shape):
                weight = dyadic(*shape, seed=1, dtype=dtype)
                weight[place] = value
                for name, call in calls(shape, groups, engine):
                    at = str(list(place)).replace("[", r"\[").replace("]", r"\]")
                    with pytest.raises(RuntimeError, match=f"^{name}: weight must be finite, got {value} at {at}$"):
                        call(weight)


@every_value
@every_shape
def test_pack_weight(shape, groups, value):
    out = ops.pack_weight(dyadic(*shape, seed=1), groups)
    for place in places(shape):
        weight = dyadic(*shape, seed=1)
        weight[place] = value
        for arranged in (weight, weight.movedim(1, -1).contiguous().movedim(-1, 1), weight.double(), weight.bfloat16()):
            at = str(list(place)).replace("[", r"\[").replace("]", r"\]")
            with pytest.raises(RuntimeError, match=f"^pack_weight: weight must be finite, got {value} at {at}$"):
                ops.pack_weight(arranged, groups)
        with pytest.raises(RuntimeError, match="pack_weight: weight must be finite"):
            ops.pack_weight(weight, groups, out=out)


@every_value
@every_shape
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("argument", ["scale", "bias"])
def test_scale_and_bias(argument, shape, groups, engine, value):
    weight = dyadic(*shape, seed=1)
    values = torch.ones(shape[0])
    values[-1] = value
    for name, call in calls(shape, groups, engine, packed=ops.pack_weight(weight, groups)):
        message = rf"^{name}: {argument} must be finite, got {value} at \[{shape[0] - 1}\]$"
        with pytest.raises(RuntimeError, match=message):
            call(weight, **{argument: values})


def test_largest_numbers_are_finite():
    """And so are subnormal ones, and numbers whose sum is not."""
    for dtype in (*FLOATS, *HALVES):
        info = torch.finfo(dtype)
        weight = torch.tensor([[info.max, info.min, info.tiny, -0.0, info.smallest_normal / 2, 1, -1, 0]], dtype=dtype)
        ops.pack_weight(weight)
        for _, call in calls((1, 8), 1, "dense"):
            call(weight)
        huge = torch.full((9, 13), info.max, dtype=dtype)
        same(ops.pack_weight(huge).max(), huge.to(ops.pack_weight(huge).dtype).max())


def test_gradients_do_not_ask():
    """A backward pass reads weights that may have become anything since."""
    bits = planes(8, 2, 5, seed=0)
    weight, count = dyadic(3, 5, seed=1).requires_grad_(), torch.ones(2, 5, requires_grad=True)
    out = ops.count_linear(bits, weight, count=count)
    (grad,) = torch.autograd.grad(out, weight, torch.full_like(out, math.nan))
    assert grad.isnan().all()
