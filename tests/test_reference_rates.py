"""The derivative of the spike count in the specification: rates of IF and LIF neurons."""

import math

import pytest
import torch

from tandem_cuda import reference as ref
from tandem_cuda.neuron import IF, LIF
from tandem_cuda.neuron.lif import lif_rate, lif_rate_derivative


def test_tandem_count_if() -> None:
    v = torch.tensor([[-1.0, 0.0, 1e-30, 4.0, 4.5, math.inf, math.nan]], requires_grad=True)
    bits = torch.full((1, 1, 7), 0b101, dtype=torch.uint8)
    count = ref.tandem_count(bits, v, 8, IF(0.5), upper=4.0)
    assert torch.equal(count, torch.full((1, 7), 2.0))
    (grad,) = torch.autograd.grad(count.sum(), v)
    assert torch.equal(grad, torch.tensor([[0.0, 0, 2, 2, 0, 0, 0]]))
    (grad,) = torch.autograd.grad(ref.tandem_count(bits, v, 8, IF(0.5)).sum(), v)
    assert torch.equal(grad, torch.tensor([[0.0, 0, 2, 2, 2, 2, 0]]))


def test_tandem_count_lif() -> None:
    v = torch.tensor([[0.5, 3.0, 6.0, math.nan]], dtype=torch.float64, requires_grad=True)
    bits = torch.zeros(1, 1, 4, dtype=torch.uint8)
    (grad,) = torch.autograd.grad(ref.tandem_count(bits, v, 8, LIF(1.0, 0.9), upper=5.0).sum(), v)
    want = lif_rate_derivative(v.detach(), 8, 1.0, 0.9)
    assert torch.equal(grad[0, :2], want[0, :2])
    assert torch.equal(grad[0, 2:], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("leak", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("threshold", [0.25, 1.0, 3.0])
def test_lif_rate_derivative(leak: float, threshold: float) -> None:
    at_threshold = 8 * threshold * (1 - leak)  # where the neuron starts to fire
    v = at_threshold * torch.cat([torch.linspace(-50, 50, 1001), torch.linspace(0.5, 2, 1001)]).double()
    v.requires_grad_()
    (want,) = torch.autograd.grad((8 * lif_rate(v, 8, threshold, leak)).sum(), v)
    got = lif_rate_derivative(v.detach(), 8, threshold, leak)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)
    assert torch.autograd.gradcheck(lambda x: lif_rate(x, 8, threshold, leak), v[::40].detach().requires_grad_())
    assert (got > 0).all()
    assert got.max() < 1.15 / threshold

    rough = lif_rate_derivative(v.detach().float(), 8, threshold, leak)
    torch.testing.assert_close(rough.double(), got, rtol=1e-3, atol=0)
    far = torch.tensor([-1e6, -1e3, 1e3, 1e6], dtype=torch.float32)
    assert lif_rate_derivative(far, 8, threshold, leak).isfinite().all()
    assert lif_rate(far, 8, threshold, leak).isfinite().all()


# Leak: mean and max error in spikes per step for each of 4, 8, 16, 64 time steps; what the docstring states.
LIF_ERRORS = {
    0.5: ((0.104, 0.281), (0.103, 0.258), (0.102, 0.256), (0.102, 0.256)),
    0.7: ((0.082, 0.247), (0.072, 0.191), (0.065, 0.158), (0.061, 0.151)),
    0.9: ((0.090, 0.256), (0.055, 0.153), (0.037, 0.099), (0.024, 0.060)),
    0.95: ((0.096, 0.251), (0.052, 0.138), (0.031, 0.080), (0.015, 0.038)),
    0.99: ((0.102, 0.250), (0.052, 0.127), (0.027, 0.066), (0.008, 0.020)),
}


@pytest.mark.parametrize("threshold", [1.0, 0.25])
@pytest.mark.parametrize("leak", LIF_ERRORS)
def test_lif_rate_has_the_error_it_states(leak: float, threshold: float) -> None:
    """The rate predicted against simulated counts; it is 1 where the count saturates."""
    current = threshold * (2 - leak) * torch.linspace(-0.2, 1, 2401, dtype=torch.float64).unsqueeze(0)
    for time_steps, (mean, largest) in zip((4, 8, 16, 64), LIF_ERRORS[leak], strict=True):
        bits, v, _ = ref.integrate_and_fire(current, time_steps, neuron=LIF(threshold, leak))
        rate = lif_rate(v, time_steps, threshold, leak)
        error = rate - ref.spike_count(bits) / time_steps
        assert error.abs().mean().item() == pytest.approx(mean, abs=0.0007)
        assert error.abs().max().item() == pytest.approx(largest, abs=0.0015)
        assert (error > 0).double().mean() > 0.8
        assert rate[0, -1].item() == pytest.approx(1, abs=1e-3)


def test_lif_rate_error_table_is_the_docstring() -> None:
    rows = [line.split() for line in (lif_rate.__doc__ or "").splitlines() if line.strip().startswith("0.")]
    stated = {float(leak): [float(x) for x in errors] for leak, *errors in rows}
    assert stated == {leak: [x for pair in errors for x in pair] for leak, errors in LIF_ERRORS.items()}


def test_lif_rate_tends_to_if() -> None:
    v = torch.linspace(0.5, 8, 16, dtype=torch.float64)
    torch.testing.assert_close(8 * lif_rate(v, 8, 0.5, 1 - 1e-6), v / 0.5, rtol=1e-5, atol=0)
