"""conv2d_weight_gradient against torch's own gradient, bit for bit where sums are exact."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exact import (
    FLOATS,
    SEEDS,
    dyadic,
    every_path,
    everywhere,
    examples,
    generator,
    out_shape,
    planes,
    same,
    sized,
    slow,
)
from pairwise import pairs
from tandem_cuda import TandemConv2d
from tandem_cuda import reference as ref
from tandem_cuda.ops.product_gradient import _conv2d_gradients

OP = torch.ops.tandem_cuda.conv2d_weight_gradient
# The fewest that rows of gradients are picked for, and one less, for which torch computes the gradient.
MANY, FEW = 128, 127
SIMPLE = ([1, 1], [0, 0], [1, 1], 1)


def of_torch(grad, count, weight, stride, padding, dilation, groups):
    """Of float64, in which all sums that are drawn here are exact."""
    settings = (None, stride, padding, dilation, False, [0, 0], groups, [False, True, False])
    doubles = (x.double() for x in (grad, count, weight))
    return torch.ops.aten.convolution_backward(*doubles, *settings)[1].to(weight.dtype)


def weights(*shape, dtype):
    """What nobody must read: only its shape matters."""
    return torch.full((1,), math.nan, dtype=dtype).expand(shape)


def few(*shape, seed=0, dtype=torch.float32):
    """Spike counts with few binary ones: events."""
    return ref.spike_count(planes(8, *shape, seed=seed, rate=0.05), dtype)


def bytes_here_and_there(*shape, seed, dtype):
    count = torch.randint(0, 256, shape, generator=generator(seed)).to(dtype)
    return count * (torch.rand(shape, generator=generator(seed + 1)) < 0.1)


def one_beyond(value):
    """What torch has to compute because of a single count."""

    def draw(*shape, seed, dtype):
        count = few(*shape, seed=seed, dtype=dtype).contiguous()
        if count.numel():
            count.view(-1)[seed % count.numel()] = value
        return count

    return draw


COUNTS = {
    "few": few,
    "none": lambda *shape, seed, dtype: torch.zeros(shape, dtype=dtype),
    "bytes": bytes_here_and_there,
    "all bytes": lambda *shape, seed, dtype: torch.randint(0, 256, shape, generator=generator(seed)).to(dtype),
    "all ones": lambda *shape, seed, dtype: torch.full(shape, 255, dtype=dtype),
    "above a byte": one_beyond(256),
    "negative": one_beyond(-1),
    "no whole number": one_beyond(0.5),
}


@st.composite
def gradients(draw):
    """Sizes as `convolutions` draws them, with output rows from one pixel to several times 16."""
    groups = draw(st.sampled_from((1, 1, 1, 1, 2, 3)))
    channels = groups * draw(st.sampled_from((1, 2, 3, 16, 17, 64, 65)))
    outputs = groups * draw(st.sampled_from((1, 5, FEW, MANY, MANY, 129, 192, 257)))
    return sized(draw, groups, channels, outputs, wider=(0, 1, 2, 3, 4, 14, 15, 16, 17, 31, 32, 33, 50))


@examples(300)
@given(case=gradients(), counts=st.sampled_from(tuple(COUNTS)), dtype=st.sampled_from(FLOATS), seed=SEEDS)
def test_matches_torch(case, counts, dtype, seed):
    grad = dyadic(*out_shape(case), seed=seed, scale=4, dtype=dtype)
    count = COUNTS[counts](*case["input"], seed=seed + 1, dtype=dtype)
    stride, padding, dilation, groups = case["geometry"].values()
    arguments = (grad, count, weights(*case["weight"], dtype=dtype), stride, padding, dilation, groups)
    everywhere(of_torch(*arguments), OP, *arguments)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("batch", "outputs", "channels", "size"),
    [
        (2, 2048, 30, 8),  # more weights than their sums have room for
        (3, MANY, 57, 80),  # more samples than the counts that these weights meet have room for, one at a time
        (11, MANY, 57, 30),  # nine at a time, fewer in the last turn
    ],
)
def test_larger(batch, outputs, channels, size, dtype):
    grad = dyadic(batch, outputs, size, size, seed=0, scale=4, dtype=dtype)
    count = few(batch, channels, size, size, seed=1, dtype=dtype)
    arguments = (grad, count, weights(outputs, channels, 3, 3, dtype=dtype), [1, 1], [1, 1], [1, 1], 1)
    everywhere(of_torch(*arguments), OP, *arguments)


@pairs(dtype=FLOATS, place=[0, 16383, 16384, -1], value=[math.nan, math.inf, -math.inf, -1, 0.5, 254.5, 256])
def test_one_count_that_is_no_byte(value, place, dtype):
    """Wherever it is: at both ends of the range of each thread."""
    grad = dyadic(2, MANY, 59, 61, seed=0, dtype=dtype)
    count = few(2, 60, 61, 3, seed=1, dtype=dtype)
    count.view(-1)[place] = value
    count = count.permute(0, 3, 1, 2)  # the order in which it is read
    arguments = (grad, count, weights(MANY, 3, 2, 1, dtype=dtype), *SIMPLE)
    everywhere(of_torch(*arguments), OP, *arguments)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("outputs", [FEW, MANY, 256])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_gradients_that_are_not_finite(value, outputs, dtype):
    """As torch's: NaN times a count of 0 is NaN, and so is infinity times it."""
    grad, count = dyadic(2, outputs, 5, 6, seed=0, dtype=dtype), few(2, 9, 6, 7, dtype=dtype)
    count[1, :, 2:4, 3:5] = 0
    count[1, 4, 2, 3] = 1
    grad[1, 70, 2, 3] = value
    arguments = (grad, count, weights(outputs, 9, 2, 2, dtype=dtype), *SIMPLE)
    want = of_torch(*arguments)
    assert want[70].isnan().sum() >= want[70].numel() - 1
    assert want[:70].isfinite().all()
    everywhere(want, OP, *arguments)


@pytest.mark.parametrize("outputs", [FEW, MANY])
@pytest.mark.parametrize(
    ("kernel", "image", "stride", "padding", "dilation"),
    [
        (1, (1, 1), 1, 7, 1),  # 15 x 15 pixels with the padding, which are written down
        (1, (1, 1), 1, 8, 1),  # 17 x 17, which are not
        (3, (5, 4), 3, 9, 4),
        (3, (1, 1), 1, 2**20, 2**20),
        (3, (2, 3), 1, 2**30, 2**30),
        (1, (1, 1), 2**20, 2**20, 1),
        (2, (3, 2), 2**30, 2**30, 3),
    ],
)
def test_padding_far_beyond_the_image(kernel, image, stride, padding, dilation, outputs):
    case = {
        "input": (2, 3, *image),
        "weight": (outputs, 3, kernel, kernel),
        "geometry": {"stride": stride, "padding": padding, "dilation": dilation, "groups": 1},
    }
    grad, count = dyadic(*out_shape(case), seed=0), torch.zeros(case["input"])
    count[1, 2] = 1  # not many events
    weight = weights(*case["weight"], dtype=torch.float32)
    arguments = (grad, count, weight, [stride] * 2, [padding] * 2, [dilation] * 2, 1)
    want = of_torch(*arguments)
    assert want.abs().sum() > 0
    everywhere(want, OP, *arguments)


every_route = pytest.mark.parametrize(
    ("outputs", "counts", "groups"), [(FEW, "few", 1), (MANY, "few", 1), (MANY, "all ones", 1), (2 * MANY, "few", 2)]
)


@every_route
@pytest.mark.parametrize("batch", [2, slow(0)])
@pytest.mark.parametrize("layout", [slow(torch.contiguous_format), torch.channels_last])
def test_opcheck(outputs, counts, groups, batch, layout):
    """With its memory: contiguous, whatever that of the arguments."""
    grad = dyadic(batch, outputs, 4, 5, seed=0).contiguous(memory_format=layout)
    count = COUNTS[counts](batch, 6, 5, 7, seed=1, dtype=torch.float32).contiguous(memory_format=layout)
    weight = dyadic(outputs, 6 // groups, 2, 3, seed=2).contiguous(memory_format=layout)
    arguments = (grad, count, weight, *SIMPLE[:3], groups)
    assert OP(*arguments).is_contiguous()
    torch.library.opcheck(OP.default, arguments)


@pytest.mark.parametrize("dtype", FLOATS)
def test_inexact_gradients(dtype):
    """Close to torch's, and the same for any number of threads."""
    grad, count = torch.randn(5, 200, 11, 19, generator=generator(0), dtype=dtype), few(5, 40, 12, 20, dtype=dtype)
    arguments = (grad, count, weights(200, 40, 2, 2, dtype=dtype), *SIMPLE)
    want, results = of_torch(*arguments), {}
    for path, got in every_path(OP, *arguments):
        torch.testing.assert_close(got, want, rtol=0, atol=2e-4 if dtype == torch.float32 else 1e-12)
        same(got, results.setdefault(path.split(",")[0], got), path)


@pairs(
    dtype=FLOATS,
    shape=[(9, 8), (9, 3), (9, 2), (9, 1), (3, 9)],
    convolution=[([1, 1], [1, 1], [1, 1]), ([2, 3], [0, 2], [1, 1]), ([3, 2], [2, 1], [2, 1])],
)
def test_one_channel(convolution, shape, dtype):
    """A count that has either layout, with a gradient of each."""
    count = dyadic(4, 1, *shape, seed=0, dtype=dtype)
    weight = weights(5, 1, 3, 3, dtype=dtype)
    outputs = torch.nn.functional.conv2d(count, torch.zeros(5, 1, 3, 3, dtype=dtype), None, *convolution).shape
    grad = dyadic(*outputs, seed=1, dtype=dtype)
    want = of_torch(grad, count, weight, *convolution, 1)
    for gradient in (grad, grad.contiguous(memory_format=torch.channels_last)):
        everywhere(want, OP, gradient, count, weight, *convolution, 1)


@pytest.mark.parametrize("channels", [1, 3, 6, 12])
@pytest.mark.parametrize("stride", [(2, 2), (1, 3), (4, 1)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_single_taps_with_a_stride(channels, stride, layout):
    """oneDNN's gradients of these may be wrong, and not in every call: uxlfoundation/oneDNN#6035."""
    height, width = ((8 - 1) // s + 1 for s in stride)
    for seed in range(20):
        count = dyadic(32, channels, 8, 8, seed=seed).to(memory_format=layout)
        grad = dyadic(32, 8, height, width, seed=seed + 100).to(memory_format=layout)
        weight = dyadic(8, channels, 1, 1, seed=seed + 200).requires_grad_()
        settings = ([*stride], [0, 0], [1, 1], 1)
        want = of_torch(grad, count, weight, *settings)
        same(OP(grad, count, weight, *settings), want)
        for differentiable in (False, True):
            with torch.set_grad_enabled(differentiable):
                _, got = _conv2d_gradients(grad, count, weight, (True, True), settings)
                same(got.detach(), want)


@pytest.mark.parametrize("padding", [0, "valid"])
@pytest.mark.parametrize(("samples", "channels", "size"), [(32, 6, 8), (32, 1, 8), (1, 3, 2), (1, 1, 2), (4, 12, 3)])
def test_single_taps_with_a_stride_of_real_values(samples, channels, size, padding):
    """A layer's products of real values, which are torch's."""
    layer = TandemConv2d(channels, 8, 1, stride=2, padding=padding)
    with torch.no_grad():
        layer.weight.copy_(dyadic(8, channels, 1, 1, seed=300))
    for seed in range(20):
        x = dyadic(samples, channels, size, size, seed=seed)
        grad = dyadic(samples, 8, (size + 1) // 2, (size + 1) // 2, seed=seed + 100)
        v = layer.synapses.dense_product(x.to(memory_format=torch.channels_last), layer.weight, None)
        same(v.detach(), torch.nn.functional.conv2d(x.double(), layer.weight.detach().double(), None, 2).float())
        (got,) = torch.autograd.grad(v, layer.weight, grad)
        same(got, of_torch(grad, x, layer.weight.detach(), [2, 2], [0, 0], [1, 1], 1))
