"""pack_weight: a copy in an order of the library's own, with which products compute what they compute without."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exact import (
    CHANNELS,
    HALVES,
    INTEGERS,
    ISAS,
    META,
    SEEDS,
    WEIGHTS,
    dyadic,
    every_path,
    int8,
    integers,
    planes,
    same,
)
from tandem_cuda import _C, ops
from tandem_cuda import reference as ref
from tandem_cuda.ops.pack_weight import packed_like


def weights(*shape, seed, dtype):
    return int8(*shape, seed=seed) if dtype == torch.int8 else dyadic(*shape, seed=seed, dtype=dtype)


@given(
    groups=st.integers(1, 4),
    outputs=st.sampled_from(CHANNELS),
    channels=st.sampled_from(CHANNELS[:-2]),
    kernel=st.one_of(st.none(), st.tuples(st.integers(1, 4), st.integers(1, 4))),
    dtype=st.sampled_from(WEIGHTS),
    seed=SEEDS,
)
def test_holds_every_weight(groups, outputs, channels, kernel, dtype, seed):
    """In rows, and zeros; as many as the fake kernel says. Behind them, panels where instructions read them."""
    groups = 1 if kernel is None else groups
    weight = weights(groups * outputs, channels, *(kernel or ()), seed=seed, dtype=dtype)
    first = None
    for path, packed in every_path(ops.pack_weight, weight, groups):
        sizes, packed_dtype = packed_like(weight, groups)
        assert (packed.numel(), packed.dtype) == (sizes[0], packed_dtype), path
        if first is None:
            first, padding = packed, torch.zeros(packed.numel() - weight.numel(), dtype=packed.dtype)
            want = torch.cat([weight.flatten().to(packed.dtype), padding]).sort().values
        assert min(sizes) == len(first), path
        same(packed[: len(first)].sort().values, want, path)
        same(packed[: len(first)], first, path)


@pytest.mark.parametrize("dtype", WEIGHTS)
def test_is_a_copy(dtype):
    """Products add what was packed, not what has become of the weights."""
    bits, weight = planes(9, 3, 21, seed=0), weights(10, 21, seed=1, dtype=dtype)
    scale = torch.ones(10) if dtype == torch.int8 else None
    want = ref.count_linear(bits, weight, scale=scale)
    packed = ops.pack_weight(weight)
    weight.zero_()
    same(ops.count_linear(bits, weight, packed=packed, scale=scale, engine="event"), want)


def test_has_no_gradient():
    weight = dyadic(10, 21, seed=0).requires_grad_()
    assert not ops.pack_weight(weight).requires_grad
    # Products with it have that of the weight.
    ops.count_linear(planes(9, 3, 21, seed=0), weight, packed=ops.pack_weight(weight)).sum().backward()
    assert weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize(("shape", "groups"), [((10, 21), 1), ((12, 5, 3, 2), 3)])
def test_out(shape, groups, dtype):
    out = ops.pack_weight(weights(*shape, seed=0, dtype=dtype), groups)
    weight = weights(*shape, seed=1, dtype=dtype)
    assert ops.pack_weight(weight, groups, out=out) is out
    same(out, ops.pack_weight(weight, groups))


def placed(packed, offset):
    """The same in memory that begins ``offset`` elements behind the boundary of a cache line."""
    memory = torch.zeros(len(packed) + 128, dtype=packed.dtype, device=packed.device)
    start = -memory.data_ptr() % 64 // packed.itemsize + offset
    place = memory[start : start + len(packed)]
    assert place.data_ptr() % 64 == offset * packed.itemsize
    return place.copy_(packed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int8])
@pytest.mark.parametrize("outputs", [10, 40, 200])
def test_any_alignment(outputs, dtype):
    """Whoever loads packed weights chooses where they lie. Rows of one to four vectors."""
    bits, weight = planes(9, 3, 70, 2, 2, seed=0), weights(outputs, 70, 2, 1, seed=1, dtype=dtype)
    scale = torch.ones(outputs) if dtype == torch.int8 else None
    packed = ops.pack_weight(weight)
    want = ref.spiking_conv2d(bits, weight, scale=scale, time_steps=9)
    assert want[0].any()
    for offset in range(64 // packed.itemsize):
        moved = placed(packed, offset)
        same(ops.pack_weight(weight, out=placed(torch.zeros_like(packed), offset)), packed)
        for isa in ISAS:
            _C.set_cpu_isa(isa)
            got = ops.spiking_conv2d(bits, weight, packed=moved, scale=scale, time_steps=9, engine="event")
            same(got, want, f"{isa}, {offset} elements")


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.int16])
def test_panels_are_of_the_same_weights(dtype):
    """Where instructions that read no panels have packed other weights into the same memory."""
    first, second = (weights(40, 70, 2, 1, seed=seed, dtype=dtype) for seed in (0, 1))
    bits, scale = planes(4, 3, 70, 2, 2, seed=2), None if dtype == torch.float32 else torch.ones(40)
    packed = ops.pack_weight(first)
    _C.set_cpu_isa("scalar")
    ops.pack_weight(second, out=packed)
    _C.set_cpu_isa(ISAS[-1])
    got = ops.count_conv2d(bits, second, packed=packed, scale=scale, engine="dense", radix=4)
    same(got, ref.count_conv2d(bits, second, scale=scale, radix=4))


@pytest.mark.parametrize("steps", [4, 8])
@pytest.mark.parametrize("paired", ["none", "inputs", "outputs"])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_every_instruction_set_reads_the_panels_of_every_other(dtype, paired, steps):
    weight = integers(40, 70, 2, 1, seed=0, dtype=dtype)
    weight[weight == torch.iinfo(dtype).min] = -1  # which has no opposite
    if paired == "inputs":
        weight[:, 1::2] = -weight[:, ::2]
    elif paired == "outputs":
        weight[1::2] = -weight[::2]
    bits, scale = planes(steps, 3, 70, 2, 2, seed=1), torch.ones(40)
    want = ref.count_conv2d(bits, weight, scale=scale, radix=steps)
    packed = {}
    for isa in ISAS:
        _C.set_cpu_isa(isa)
        packed[isa] = ops.pack_weight(weight)
    for isa in ISAS:
        _C.set_cpu_isa(isa)
        for other in ISAS:
            got = ops.count_conv2d(bits, weight, packed=packed[other], scale=scale, engine="dense", radix=steps)
            same(got, want, f"{isa}, packed on {other}")


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize(("shape", "groups"), [((10, 21), 1), ((12, 5, 3, 2), 3)])
def test_opcheck(shape, groups, dtype):
    weight = weights(*shape, seed=0, dtype=dtype)
    for w in (weight, weight.mT.contiguous().mT):
        torch.library.opcheck(torch.ops.tandem_cuda.pack_weight.default, (w, groups))
        out = ops.pack_weight(w, groups)
        torch.library.opcheck(torch.ops.tandem_cuda.pack_weight_out.default, (w, groups, out))


WEIGHT = torch.zeros(8, 4, 3, 2)
PACKED = ops.pack_weight(WEIGHT)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"weight": [1.0]}, TypeError, "weight must be a Tensor, got list"),
        ({"weight": WEIGHT.int()}, TypeError, "weight must be float32, float64, .* or int16, got torch.int32"),
        (
            {"weight": WEIGHT.to(torch.uint8)},
            TypeError,
            "weight must be float32, float64, .* or int16, got torch.uint8",
        ),
        ({"weight": WEIGHT[0]}, ValueError, r"weight must be \[O, C/groups, kH, kW\] or \[O, F\] .*, got \[4, 3, 2\]"),
        ({"weight": WEIGHT[0, 0, 0]}, ValueError, r"weight must be .*, got \[2\]"),
        ({"weight": WEIGHT[None]}, ValueError, r"weight must be .*, got \[1, 8, 4, 3, 2\]"),
        ({"weight": WEIGHT[:, :0]}, ValueError, r"weight must be .* no empty dimension, got \[8, 0, 3, 2\]"),
        ({"groups": 0}, ValueError, "groups must divide the 8 output channels .*, got 0"),
        ({"groups": -2}, ValueError, "groups must divide the 8 output channels .*, got -2"),
        ({"groups": 3}, ValueError, "groups must divide the 8 output channels .*, got 3"),
        ({"weight": WEIGHT.flatten(1), "groups": 2}, ValueError, "groups must .* be 1 for a linear layer, got 2"),
        ({"groups": 1.0}, TypeError, "groups must be an int, got float"),
        ({"groups": True}, TypeError, "groups must be an int, got bool"),
        ({"out": 1}, TypeError, "out must be a Tensor, got int"),
        ({"out": PACKED[1:]}, ValueError, r"out must be what pack_weight returns .*, got torch.float32 \[\d+\]"),
        ({"out": PACKED.double()}, ValueError, "out must be what pack_weight returns .*, got torch.float64"),
        ({"out": PACKED.to(META)}, ValueError, "out must be on the device of weight, cpu, got meta"),
    ],
)
def test_bad_input(wrong, error, message):
    with pytest.raises(error, match=f"pack_weight: {message}"):
        ops.pack_weight(**{"weight": WEIGHT} | wrong)


@pytest.mark.parametrize("dtype", HALVES)
def test_every_16_bit_float(dtype):
    """Subnormals among them, whatever torch does with these; but none that is not finite."""
    weight = torch.arange(2**16).to(torch.uint16).view(dtype)
    weight = weight[weight.isfinite()].view(-1, 64)
    want = ops.pack_weight(weight.float())
    same(ops.pack_weight(weight), want)
    torch.set_flush_denormal(True)
    got = ops.pack_weight(weight)
    torch.set_flush_denormal(False)
    if dtype == torch.float16:  # has none that are subnormal in float32, too
        same(got, want)
