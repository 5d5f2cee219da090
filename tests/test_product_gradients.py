"""Gradients of the products of spikes, of every kind of weight. Operators in general are in test_operators.py."""

import pytest
import torch
import torch.nn.functional as F

from exact import RADIX, same
from pairwise import pairs
from tandem_cuda import ops
from tandem_cuda import reference as ref
from tensors import FLOATS, INTEGERS, WEIGHTS, dyadic, generator, normal, planes


@pytest.mark.parametrize("dtype", FLOATS)
def test_gradients_in_huge_pages(dtype):
    """Of weights of several MiB, whose gradient is computed into memory that was allocated for it."""
    bits, weight = planes(8, 3, 1500, seed=0), dyadic(1000, 1500, seed=1, dtype=dtype).requires_grad_()
    arriving = dyadic(3, 1000, seed=2, dtype=dtype)
    ops.count_linear(bits, weight).backward(arriving)
    same(weight.grad, arriving.t() @ ref.spike_count(bits, dtype))
    # Twice differentiable all the same
    count = ref.spike_count(bits, dtype).requires_grad_()
    (grad,) = torch.autograd.grad(
        (ops.count_linear(bits, weight, count=count) * arriving).sum(), weight, create_graph=True
    )
    (of_count,) = torch.autograd.grad(grad.sum(), count)
    same(of_count, arriving.sum(1, keepdim=True).expand_as(count))


@pairs(kind=["linear", "conv2d", "depthwise"], dtype=WEIGHTS, radix=RADIX, given=["count", "bits"])
def test_gradients_of_values(kind, dtype, radix, given):
    """Of radix spikes: torch's gradients of the product with these numbers, whether `count` holds them or not."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    inputs, shape, geometry = {
        "linear": ((3, 5, 33), (7, 33), {}),
        "conv2d": ((2, 6, 5, 4), (8, 3, 3, 2), {"stride": (2, 1), "padding": (1, 0), "groups": 2}),
        "depthwise": ((2, 6, 5, 4), (12, 1, 3, 2), {"padding": (1, 0), "groups": 6}),
    }[kind]
    bits = planes(radix, *inputs, seed=0, rate=0.5)
    values = bits[0].to(wide).requires_grad_()
    integer = dtype in INTEGERS
    whole = torch.randint(-9, 10, shape, generator=generator(1)).to(dtype)
    weight = whole if integer else whole.requires_grad_()
    leaf = torch.zeros(shape, requires_grad=True) if integer else weight
    named = {"master": leaf, "scale": torch.ones(len(whole))} if integer else {}
    bias = dyadic(len(whole), seed=2, dtype=wide).requires_grad_()
    count = values if given == "count" else None
    product = ops.count_linear if kind == "linear" else ops.count_conv2d
    y = product(bits, weight, bias, **named, **geometry, count=count, radix=radix)
    plain = whole.detach().to(wide).requires_grad_()
    want = F.linear(values, plain, bias) if kind == "linear" else F.conv2d(values, plain, bias, **geometry)
    same(y.detach(), want.detach())
    arriving = dyadic(*y.shape, seed=3, scale=1, span=2, dtype=wide)
    got = torch.autograd.grad(y, [leaf, bias, *([values] if given == "count" else [])], arriving)
    for g, w in zip(got, torch.autograd.grad(want, [plain, bias, values], arriving), strict=False):
        same(g, w.to(g.dtype))


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("of_count", [False, True])
@pytest.mark.parametrize("dtype", WEIGHTS)
def test_gradients_of_scaled_products(dtype, of_count, rows):
    """Whichever is larger, the weights or the gradient that arrives, and whoever needs one."""
    integers = not dtype.is_floating_point
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    bits, grad = planes(9, rows, 5, seed=0), normal(rows, 4, seed=1, dtype=wide)
    weight = torch.randint(-9, 10, (4, 5), generator=generator(2)).to(dtype)
    scale, unit = (normal(4, seed=seed, dtype=wide).abs() + 0.1 for seed in (3, 4))
    count = ref.spike_count(bits, wide).requires_grad_(of_count)
    leaf = torch.zeros(4, 5, requires_grad=True) if integers else weight.requires_grad_()
    named = {"master": leaf, "unit": unit} if integers else {}
    y = ops.count_linear(bits, weight, scale=scale, count=count, **named)
    got = torch.autograd.grad(y, [leaf, *([count] if of_count else [])], grad)
    scaled = grad * scale
    want = [(scaled / unit if integers else scaled).t() @ count.detach(), scaled @ weight.detach().to(wide)]
    for g, w in zip(got, want, strict=False):
        torch.testing.assert_close(g, w.to(g.dtype), rtol=max(1e-5, 2 * torch.finfo(g.dtype).eps), atol=1e-5)


def test_gradients_of_half_weights_are_rounded_once():
    """In between, they may be larger than any number in half precision."""
    bits = torch.full((1, 2000, 1), 255, dtype=torch.uint8)
    weight = torch.ones(1, 1, dtype=torch.float16, requires_grad=True)
    y = ops.count_linear(bits, weight, scale=torch.tensor([0.01]))
    (got,) = torch.autograd.grad(y, weight, torch.full_like(y, 10.0))
    assert got.item() == 1600


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_of_tiny_units(scaled, rows):
    """Their reciprocals are infinite."""
    unit, count = torch.full((4,), 1e-39), torch.ones(rows, 5)
    master = torch.zeros(4, 5, requires_grad=True)
    weight = torch.ones(4, 5, dtype=torch.int8)
    scale = unit if scaled else torch.ones(4)
    y = ops.count_linear(torch.ones(1, rows, 5, dtype=torch.uint8), weight, scale=scale, master=master, unit=unit)
    (got,) = torch.autograd.grad(y, master, torch.full_like(y, 1.0 if scaled else 1e-39))
    torch.testing.assert_close(got, count.sum(0).expand(4, 5), rtol=1e-4, atol=0)
