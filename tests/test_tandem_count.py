"""tandem_count against the reference: the actual count forward, the ANN's gradient backward."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exact import (
    FLOATS,
    SEEDS,
    TIME_STEPS,
    dyadic,
    every_path,
    everywhere,
    generator,
    planes,
    same,
    views,
)
from neurons import NEURONS, THRESHOLDS, every_kind
from tandem_cuda import IF, LIF, ops
from tandem_cuda import reference as ref
from tandem_cuda.neuron.lif import lif_rate

UPPERS = (math.inf, 0.5, 4.0, 1e-3)


def gradient(op, bits, v, *arguments, seed_grad):
    leaf = v.detach().requires_grad_()
    count = op(bits, leaf, *arguments)
    return count.detach(), torch.autograd.grad(count, leaf, seed_grad)[0]


@given(
    time_steps=st.sampled_from(TIME_STEPS),
    neurons=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    dtype=st.sampled_from(FLOATS),
    threshold=st.sampled_from(THRESHOLDS),
    neuron=st.sampled_from([*NEURONS.values(), LIF(leak=0.999)]),
    upper=st.sampled_from(UPPERS),
    seed=SEEDS,
)
def test_matches_reference(time_steps, neurons, dtype, threshold, neuron, upper, seed):
    bits = planes(time_steps, *neurons, seed=seed)
    v = dyadic(*neurons, seed=seed, scale=2, span=8, dtype=dtype)  # often 0 and often at `upper`
    seed_grad = dyadic(*neurons, seed=seed + 1, dtype=dtype)
    arguments = (time_steps, neuron.scaled(threshold), upper)
    want_count, want_grad = gradient(ref.tandem_count, bits, v, *arguments, seed_grad=seed_grad)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    got = every_path(gradient, ops.tandem_count, bits, v, *arguments, seed_grad=seed_grad)
    for path, (count, grad) in got:
        same(count, want_count, path)
        # grad * (1 / threshold) and grad / threshold round differently
        torch.testing.assert_close(grad, want_grad, rtol=tolerance, atol=0)
        assert torch.equal(grad == 0, want_grad == 0), path


def test_borders():
    """The gradient is that of relu(v) / threshold: none at 0, none above `upper`, none for NaN."""
    v = torch.tensor([[-1.0, -0.0, 0.0, 1e-38, 4.0, 4.0000005, math.inf, -math.inf, math.nan]])
    bits = torch.full((1, 1, 9), 0b101, dtype=torch.uint8)
    for upper, want in ((4.0, [0, 0, 0, 2, 2, 0, 0, 0, 0]), (math.inf, [0, 0, 0, 2, 2, 2, 2, 0, 0])):
        count, grad = gradient(ops.tandem_count, bits, v, 8, IF(0.5), upper, seed_grad=torch.ones_like(v))
        assert count.tolist() == [[2.0] * 9]
        assert grad.tolist() == [want]
        same(gradient(ref.tandem_count, bits, v, 8, IF(0.5), upper, seed_grad=torch.ones_like(v))[1], grad)


def test_lif_gradient_is_that_of_the_soft_rate():
    v = torch.linspace(-4, 20, 97, dtype=torch.float64).unsqueeze(0)
    bits = torch.zeros(1, 1, 97, dtype=torch.uint8)
    _, grad = gradient(ops.tandem_count, bits, v, 8, LIF(1.5, 0.8), seed_grad=torch.ones_like(v))
    leaf = v.requires_grad_()
    (want,) = torch.autograd.grad((8 * lif_rate(leaf, 8, 1.5, 0.8)).sum(), leaf)
    torch.testing.assert_close(grad, want, rtol=1e-9, atol=1e-12)


def backward(grad, v, threshold=0.7, upper=math.inf):
    return torch.ops.tandem_cuda.tandem_count_backward(grad, v, threshold, upper)


def gated(grad, v, threshold=0.7, upper=math.inf):
    """What the operator must return, to the bit."""
    return torch.where((v > 0) & (v <= upper), grad / threshold, 0.0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("upper", UPPERS)
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_backward_of_every_number(dtype, upper, threshold):
    """Each of the values that matter in v against each of them in grad: what is not finite never leaks."""
    tiny = torch.finfo(dtype).smallest_normal
    limit = torch.tensor(upper, dtype=dtype)
    next_up, next_down = (torch.nextafter(limit, torch.tensor(to, dtype=dtype)).item() for to in (math.inf, -math.inf))
    special = (0.0, -0.0, tiny / 2, -tiny / 2, 1.0, -1.0, upper, next_up, next_down, math.inf, -math.inf, math.nan)
    values = torch.tensor(special, dtype=dtype)
    v, grad = torch.meshgrid(values, values, indexing="ij")
    want = gated(grad, v, threshold, upper)
    assert not want[~((v > 0) & (v <= upper))].any()
    everywhere(want, backward, grad.contiguous(), v.contiguous(), threshold, upper)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("neurons", [*range(1, 35), 40_003])
def test_backward_of_any_size(dtype, neurons):
    """Around the borders of vectors; and enough for two threads."""
    grad, v = (torch.randn(1, neurons, generator=generator(seed), dtype=dtype) for seed in (0, 1))
    everywhere(gated(grad, v, 0.7, 1.5), backward, grad, v, 0.7, 1.5)


def test_backward_of_any_strides():
    """The result lies in memory as pre_activation does, however that and grad do."""
    grad, v = (torch.randn(2, 5, 4, 3, generator=generator(seed)) for seed in (0, 1))
    grad, v = grad[..., :1].expand_as(grad), v[..., :1].expand_as(v)
    copies = grad.clone(), v.clone()
    want = gated(grad, v)
    for given_v in views(v):
        for given_grad in views(grad):
            got = backward(given_grad, given_v)
            same(got, want)
            assert got.stride() == torch.empty_like(given_v).stride()
            assert got.data_ptr() not in (given_grad.data_ptr(), given_v.data_ptr())
    same((grad, v), copies)


@every_kind
def test_gradient_of_the_gradient(neuron):
    """The gradient is linear in the one that arrives, and that is what the second one is of."""
    bits = planes(9, 2, 5, seed=0)
    v = dyadic(2, 5, seed=1, span=4, dtype=torch.float64).requires_grad_()
    seed_grad = dyadic(2, 5, seed=2, dtype=torch.float64).requires_grad_()

    def first(seed_grad):
        count = ops.tandem_count(bits, v, 9, neuron.scaled(0.5), 2.0)
        return torch.autograd.grad(count, v, seed_grad, create_graph=True)[0]

    assert first(seed_grad).abs().sum() > 0
    assert torch.autograd.gradcheck(first, seed_grad)
    assert torch.autograd.gradgradcheck(first, seed_grad)


BITS = torch.zeros(2, 2, 3, dtype=torch.uint8)
V = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((BITS.float(), V, 9), TypeError, "bits must be uint8, got torch.float32"),
        ((BITS, V, 8), ValueError, "bits must have .* 1 planes for 8 time steps"),
        ((BITS, V, 0), ValueError, "time_steps must be at least 1, got 0"),
        ((BITS, V, 9.0), TypeError, "time_steps must be an int, got float"),
        ((BITS, V, None), TypeError, "time_steps must be an int, got NoneType"),
        ((BITS, None, 9), TypeError, "pre_activation must be a Tensor, got NoneType"),
        ((BITS, V.half(), 9), TypeError, "pre_activation must be float32 or float64, got torch.float16"),
        ((BITS, V.long(), 9), TypeError, "pre_activation must be float32 or float64, got torch.int64"),
        ((BITS, V.mT, 9), ValueError, r"pre_activation must be \[2, 3\], got \[3, 2\]"),
        ((BITS, V[0], 9), ValueError, r"pre_activation must be \[2, 3\], got \[3\]"),
        ((BITS, V.to("meta"), 9), ValueError, "pre_activation must be on the device of bits, cpu, got meta"),
        ((BITS, V, 9, 1.0), TypeError, "neuron must be .*, got float"),
        ((BITS, V, 9, "IF"), TypeError, "neuron must be .*, got str"),
        ((BITS, V, 9, None), TypeError, "neuron must be .*, got NoneType"),
        ((BITS, V, 9, IF), TypeError, "neuron must be .*, got type"),
        ((BITS, V, 9, IF(), 0.0), ValueError, "upper must be positive, got 0"),
        ((BITS, V, 9, IF(), math.nan), ValueError, "upper must be positive, got nan"),
        ((BITS, V, 9, IF(), "inf"), TypeError, "upper must be .*str"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=f"tandem_count: {message}"):
        ops.tandem_count(*arguments)
