"""Products on matrix tiles (AMX). That they equal every other path to the bit is in test_products.py and its kin."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from exact import generator, integers, same
from tandem_cuda import _C, ops

pytestmark = pytest.mark.skipif("amx" not in _C.build_info()["cpu_isas_runnable"], reason="no matrix tiles here")
WITHOUT = "avx512vbmi2"


@pytest.fixture(autouse=True)
def tiles():
    _C.set_cpu_isa("amx")


def product(bits, weight, **how):
    how |= {"scale": torch.ones(len(weight))} if weight.dtype in (torch.int8, torch.int16) else {}
    run = ops.count_linear if weight.dim() == 2 else ops.count_conv2d
    return run(bits, weight, radix=8, engine="dense", **how)


def values(*shape, seed, rate=0.5):
    number = torch.randint(0, 256, shape, generator=generator(seed))
    return (number * (torch.rand(shape, generator=generator(seed + 1)) < rate)).to(torch.uint8)


@given(
    batch=st.integers(0, 3),
    groups=st.integers(1, 3),
    channels=st.sampled_from([8, 9, 15, 16, 17, 63, 64, 65, 130]),
    outputs=st.sampled_from([1, 15, 16, 17, 31, 32, 33, 64, 65, 129]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    dtype=st.sampled_from([torch.int8, torch.int16, torch.float32]),
    threads=st.integers(1, 3),
)
def test_convolutions(batch, groups, channels, outputs, size, kernel, stride, padding, dilation, dtype, threads):
    """Sums of 64-bit integers, at values up to 255 and, of floats, weights of 24 bits."""
    size = tuple(max(n, dilation * (k - 1) + 1) for n, k in zip(size, kernel, strict=True))
    bits, shape = values(1, batch, groups * channels, *size, seed=1), (groups * outputs, channels, *kernel)
    if dtype == torch.float32:
        weight = torch.randint(-(2**23) + 2**16, 2**23 - 2**16, shape, generator=generator(2)).float()
    else:
        weight = integers(*shape, seed=2, dtype=dtype)
    where = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    want = F.conv2d(bits[0].double(), weight.double(), **where).float()
    torch.set_num_threads(threads)
    for packed in (None, ops.pack_weight(weight, groups)):
        same(product(bits, weight, packed=packed, **where), want)


@given(
    batch=st.integers(1, 9),
    groups=st.integers(1, 2),
    channels=st.sampled_from([64, 128, 192]),
    outputs=st.sampled_from([16, 48, 64, 80, 200]),
    size=st.sampled_from([(1, 16), (4, 4), (2, 8), (8, 8), (16, 2), (4, 32), (28, 28), (40, 24)]),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.integers(0, 2),
    dtype=st.sampled_from([torch.int8, torch.int16, torch.float32]),
    threads=st.integers(1, 3),
)
@settings(max_examples=60)
def test_whole_tiles_of_output_pixels(
    batch, groups, channels, outputs, size, kernel, stride, dilation, padding, dtype, threads
):
    """Where the inputs of 16 output pixels can lie at one distance from each other."""
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    image = [max(1, (n - 1) * s + r - 2 * padding) for n, s, r in zip(size, stride, reach, strict=True)]
    image = [max(n, r - 2 * padding) for n, r in zip(image, reach, strict=True)]
    bits, shape = values(1, batch, groups * channels, *image, seed=1), (groups * outputs, channels, *kernel)
    weight = integers(*shape, seed=2, dtype=torch.int8).to(dtype)
    where = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    want = F.conv2d(bits[0].double(), weight.double(), **where).float()
    torch.set_num_threads(threads)
    same(product(bits, weight, packed=ops.pack_weight(weight, groups), **where), want)


@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 31, 32, 33, 100])
@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.float32])
def test_linear_layers(rows, dtype):
    bits = values(1, rows, 200, seed=1)
    weight = integers(70, 200, seed=2, dtype=torch.int8).to(dtype)
    bias = torch.arange(70.0)
    same(product(bits, weight, bias=bias), F.linear(bits[0].double(), weight.double()).float() + bias)


@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-38, 2.0**-100, 1e-3, 1.0, 2.0**24 - 1, 1e33])
def test_floats_of_any_size(largest):
    """Each output has a unit of its own, whatever stands beside it. Errors are at most half of it for each input."""
    weight = torch.rand(40, 64, generator=generator(0)) * 2 - 1
    weight[3] = weight[3] / weight[3].abs().max() * largest
    weight[4, :5] *= 1e6  # other weights of the output lose bits
    bits = values(1, 16, 64, seed=1, rate=0.3)
    bits[0, 0] = 0
    got = product(bits, weight).double()
    want = F.linear(bits[0].double(), weight.double())
    unit = torch.exp2(torch.ceil(torch.log2(weight.abs().amax(1).double().clamp(min=2.0**-100))) - 22)
    bound = bits[0].double().sum(1, keepdim=True) * unit / 2 + want.abs() * 2.0**-23 + 2.0**-149
    assert ((got - want).abs() <= bound).all()
    assert not got[0].any()


def test_sums_do_not_depend_on_the_order_of_inputs():
    """Those of floats, too, since integers are what is added."""
    weight, bits = torch.randn(32, 300, generator=generator(0)), values(1, 8, 300, seed=1)
    order = torch.randperm(300, generator=generator(2))
    same(product(bits[..., order], weight[:, order]), product(bits, weight))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.float32])
def test_weights_that_were_packed_on_another_instruction_set(dtype):
    weight, bits = integers(40, 64, seed=2, dtype=torch.int8).to(dtype), values(1, 8, 64, seed=1)
    want, with_tiles = product(bits, weight), ops.pack_weight(weight)
    _C.set_cpu_isa(WITHOUT)
    without = ops.pack_weight(weight)
    # Without tiles, integers are multiplied as bytes, too; floats are not.
    assert (without.numel() < with_tiles.numel()) == (dtype == torch.float32)
    same(product(bits, weight, packed=with_tiles), want)
    with pytest.raises(ValueError, match="packed must be what pack_weight returns"):
        product(bits, weight, packed=with_tiles[:-1])
    _C.set_cpu_isa("amx")
    same(product(bits, weight, packed=without), want)


@pytest.mark.parametrize(("share", "engine"), [(0.3, "dense"), (0.01, "event")])
@pytest.mark.parametrize("batch", [1, 3])
def test_auto_goes_by_the_share_of_counts(share, engine, batch):
    """Of floats each sample by its own, for then its sums do not depend on its batch: they tell which engine ran."""
    weight = torch.randn(64, 64, 3, 3, generator=generator(1))
    bits = values(1, batch, 64, 16, 16, seed=0, rate=share)
    got, event, dense = (
        ops.count_conv2d(bits, weight, padding=1, engine=which, radix=8) for which in ("auto", "event", "dense")
    )
    assert not torch.equal(event, dense)
    same(got, event if engine == "event" else dense)


def test_too_many_inputs_take_another_way():
    """More than 65,793 bytes of 255 would overflow a sum of 32 bits."""
    features = 66000
    bits = torch.full((1, 1, features), 255, dtype=torch.uint8)
    weight = torch.full((1, features), 127, dtype=torch.int8)
    same(product(bits, weight), torch.tensor([[float(255 * 127 * features)]]))
