"""The plain-PyTorch specification against cases worked out by hand; test_oracle.py has the authors' golden values."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tensors
from neurons import every_kind
from tandem_cuda import reference as ref
from tandem_cuda.neuron import IF, LIF, Neuron

FORMS = ["loop", "folded"]
dyadic = partial(tensors.dyadic, dtype=torch.float64)


def steps(*values: float) -> Tensor:
    """One neuron's values over time: [T, N = 1, C = 1]."""
    return torch.tensor(values).reshape(-1, 1, 1)


def fired(bits: Tensor, time_steps: int) -> list[int]:
    """The spikes of the only neuron of bits [P, 1, 1]."""
    return [int(s) for s in ref.unpack_spikes(bits, time_steps).flatten()]


def random_train(*shape: int) -> Tensor:
    return tensors.train(*shape, seed=0).double()


# --- the neuron, by hand ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("currents", "neuron", "spikes", "potential"),
    [
        pytest.param([1.0], IF(), [1], 1.0, id="exactly at threshold, T=1"),
        pytest.param([0.5, 0.5, 0.5, 0.5], IF(), [0, 1, 0, 1], 1.0, id="every second step"),
        # u: -1, 1, 0, 1: a negative potential is kept
        pytest.param([-1.0, 2.0, 0.0, 1.0], IF(), [0, 1, 0, 1], 1.0, id="negative then positive"),
        # u: 1, -0.75, 0.25, 1.25: one step after the spike
        pytest.param([1.0, -0.75, 1.0, 1.0], IF(), [1, 0, 0, 1], 1.25, id="reset below zero"),
        # u: 3, 2, 1, 0: at most one spike per step, the rest is paid out later
        pytest.param([3.0, 0.0, 0.0, 0.0], IF(), [1, 1, 1, 0], 0.0, id="surplus"),
        # u: 0.75, 1.125, 0.5 * 1.125 - 1 + 0.75 = 0.3125, 0.90625
        pytest.param([0.75] * 4, LIF(leak=0.5), [0, 1, 0, 0], 0.90625, id="leak"),
        # u: 0.25 to 2 in steps of 0.25, fires at 2, then 2 - 2 + 0.25
        pytest.param([0.25] * 9, IF(2.0), [0] * 7 + [1, 0], 0.25, id="T=9, two planes"),
        # (1 - 1) + 2^-30; the other orders of addition lose the current in float32
        pytest.param([1.0, 2**-30], IF(), [1, 0], 2**-30, id="order of operations"),
        pytest.param([2.0, math.nan, 2.0], IF(), [1, 0, 0], math.nan, id="NaN never fires"),
    ],
)
def test_neuron(currents: list[float], neuron: Neuron, spikes: list[int], potential: float) -> None:
    bits, total, final = ref.integrate_and_fire(steps(*currents), len(currents), mode="series", neuron=neuron)
    assert bits.shape == (math.ceil(len(currents) / 8), 1, 1)
    assert fired(bits, len(currents)) == spikes
    np.testing.assert_equal(final.tolist(), [[[potential]]])
    np.testing.assert_equal(total.item(), float(np.float32(sum(currents))))


def test_modes_and_bias() -> None:
    current, bias = torch.tensor([[0.5, 1.0]]), torch.tensor([0.25, -0.5])
    # constant: currents 0.75 and 0.5; u: 0.75, 1.5, 1.25 and 0.5, 1, 0.5
    bits, total, state = ref.integrate_and_fire(current, 3, bias)
    assert torch.equal(ref.unpack_spikes(bits, 3)[:, 0], torch.tensor([[0.0, 0], [1, 1], [1, 0]]))
    assert torch.equal(total, torch.tensor([[2.25, 1.5]]))
    assert torch.equal(state, torch.tensor([[[1.25, 0.5]]]))
    # impulse: 0.75, 0.25, 0.25 and 0.5, -0.5, -0.5
    bits, total, state = ref.integrate_and_fire(current, 3, bias, mode="impulse")
    assert torch.equal(ref.unpack_spikes(bits, 3)[:, 0], torch.tensor([[0.0, 0], [1, 0], [0, 0]]))
    assert torch.equal(total, torch.tensor([[1.25, -0.5]]))
    assert torch.equal(state, torch.tensor([[[0.25, -0.5]]]))
    # series with a bias per channel, over an image
    image = torch.zeros(2, 1, 2, 3, 3)
    _, total, _ = ref.integrate_and_fire(image, 2, bias, mode="series")
    assert torch.equal(total, (2 * bias).reshape(1, 2, 1, 1).expand(1, 2, 3, 3))


def test_unwanted_outputs_are_empty() -> None:
    bits, total, state = ref.integrate_and_fire(torch.ones(2, 3), 4, want_sum=False, want_state=False)
    assert bits.shape == (1, 2, 3)
    assert total.shape == state.shape == (0,)


@every_kind
@pytest.mark.parametrize("cut", [1, 5, 8])
def test_streaming(cut: int, neuron: Neuron) -> None:
    """Two calls, the second with the state of the first, fire as one call does."""
    spikes = random_train(11, 2, 6)
    weight, bias = dyadic(4, 6, seed=1), dyadic(4, seed=2)
    whole, total, state = ref.spiking_linear(ref.pack_spikes(spikes), weight, bias, time_steps=11, neuron=neuron)
    head, head_total, carried = ref.spiking_linear(
        ref.pack_spikes(spikes[:cut]), weight, bias, time_steps=cut, neuron=neuron
    )
    tail, tail_total, final = ref.spiking_linear(
        ref.pack_spikes(spikes[cut:]), weight, bias, carried, time_steps=11 - cut, neuron=neuron
    )
    parts = torch.cat([ref.unpack_spikes(head, cut), ref.unpack_spikes(tail, 11 - cut)])
    assert torch.equal(parts, ref.unpack_spikes(whole, 11))
    assert torch.equal(final, state)
    assert torch.equal(head_total + tail_total, total)


# --- bits ------------------------------------------------------------------------------------------------------------


def test_bit_order() -> None:
    spikes = steps(1, 0, 1, 0, 0, 0, 0, 0, 0, 1)  # steps 0, 2 and 9
    bits = ref.pack_spikes(spikes)
    assert bits.dtype == torch.uint8
    assert bits.flatten().tolist() == [0b101, 0b10]
    assert ref.spike_count(bits, torch.float64).item() == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool, torch.uint8])
@pytest.mark.parametrize("time_steps", [1, 7, 8, 9, 17])
def test_pack_unpack(time_steps: int, dtype: torch.dtype) -> None:
    spikes = random_train(time_steps, 2, 3, 4, 5).to(dtype)
    bits = ref.pack_spikes(spikes)
    assert bits.shape == (math.ceil(time_steps / 8), 2, 3, 4, 5)
    assert torch.equal(ref.unpack_spikes(bits, time_steps, dtype), spikes)
    assert torch.equal(ref.spike_count(bits), spikes.float().sum(0))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("time_steps", [1, 9])
def test_empty_batch(form: str, time_steps: int) -> None:
    train = ref.DenseTrain(torch.zeros(time_steps, 0, 3, 8, 8))
    out = ref.TandemConv2d(3, 4, 3, form=form)(train)
    assert out.spikes.shape == (time_steps, 0, 4, 6, 6)
    out = ref.TandemLinear(4 * 36, 5, form=form)(out.flatten())
    assert out.spikes.shape == (time_steps, 0, 5)
    planes = math.ceil(time_steps / 8)
    bits, total, _ = ref.spiking_linear(
        torch.zeros(planes, 0, 3, dtype=torch.uint8), torch.ones(2, 3), time_steps=time_steps
    )
    assert bits.shape == (planes, 0, 2)
    assert total.shape == (0, 2)
    assert ref.spike_count(bits).shape == (0, 2)


def test_bad_input() -> None:
    bits = torch.zeros(1, 2, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="unpack_spikes: bits must have 2 planes for 9 time steps, got 1"):
        ref.unpack_spikes(bits, 9)
    with pytest.raises(TypeError, match=r"spiking_linear: bits must be uint8, got torch.float32"):
        ref.spiking_linear(bits.float(), torch.ones(2, 3), time_steps=8)
    with pytest.raises(ValueError, match="tandem_count: time_steps must be at least 1, got 0"):
        ref.tandem_count(bits, torch.ones(2, 3), 0)
    with pytest.raises(ValueError, match=r"integrate_and_fire: mode must be .* got 'ramp'"):
        ref.integrate_and_fire(torch.ones(2, 3), 4, mode="ramp")
    with pytest.raises(ValueError, match="integrate_and_fire: current must hold 4 time steps, got 2"):
        ref.integrate_and_fire(torch.ones(2, 3, 1), 4, mode="series")
    with pytest.raises(ValueError, match=r"Encode: mode must be .* got 'series'"):
        ref.Encode(4, "series")
    with pytest.raises(ValueError, match=r"TandemLinear: norm must be .* got 'layer'"):
        ref.TandemLinear(3, 2, norm="layer")
    with pytest.raises(ValueError, match=r"TandemLinear: form must be .* got 'fast'"):
        ref.TandemLinear(3, 2, form="fast")
    with pytest.raises(TypeError, match=r"TandemConv2d: input must be spikes, .* put Encode"):
        ref.TandemConv2d(1, 2, 3)(torch.ones(1, 1, 4, 4))


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_bias", [True, False])
def test_sum_gradients(with_bias: bool) -> None:
    """The sum is that of the currents, its gradient that of weight * count + T * bias."""
    spikes = random_train(9, 2, 4, 7, 7)
    bits, count = ref.pack_spikes(spikes), spikes.sum(0)
    weight, bias = dyadic(6, 2, 3, 3, seed=3), dyadic(6, seed=4) if with_bias else None
    arguments: dict[str, Any] = {"stride": 2, "padding": 1, "groups": 2}
    leaves = [x.clone().requires_grad_() for x in (weight, count, bias) if x is not None]

    def gradients(total: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((total * dyadic(*total.shape, seed=5)).sum(), leaves)

    w, c = leaves[:2]
    b = leaves[2] if with_bias else None
    # The values of `count` are not read: neither the sum nor the weight's gradient may see the error of 100.
    _, total, _ = ref.spiking_conv2d(bits, w, b, **arguments, count=c + 100, time_steps=9)
    want = nn.functional.conv2d(c, w, None if b is None else 9 * b, **arguments)
    assert torch.equal(total, want)
    for got_grad, want_grad in zip(gradients(total), gradients(want), strict=True):
        assert torch.equal(got_grad, want_grad)

    got = ref.count_conv2d(bits, w, b, **arguments, count=c + 100)
    want = nn.functional.conv2d(c, w, b, **arguments)
    assert torch.equal(got, want)
    for got_grad, want_grad in zip(gradients(got), gradients(want), strict=True):
        assert torch.equal(got_grad, want_grad)


def test_linear_sum_gradients() -> None:
    spikes = random_train(5, 2, 3, 6)  # features last, another dimension before them
    weight, bias = dyadic(4, 6, seed=3).requires_grad_(), dyadic(4, seed=4).requires_grad_()
    count = spikes.sum(0).requires_grad_()
    _, total, _ = ref.spiking_linear(ref.pack_spikes(spikes), weight, bias, count=count, time_steps=5)
    want = nn.functional.linear(count, weight, 5 * bias)
    assert torch.equal(total, want)
    for got_grad, want_grad in zip(
        torch.autograd.grad(total.square().sum(), [weight, bias, count]),
        torch.autograd.grad(want.square().sum(), [weight, bias, count]),
        strict=True,
    ):
        assert torch.equal(got_grad, want_grad)


def test_scale_of_integers() -> None:
    """By hand: x[t] = scale * (weight * s[t]) + bias, the bias not scaled."""
    bits = torch.tensor([[[0b011, 0b110]]], dtype=torch.uint8)  # [1, 0], [1, 1], [0, 1]
    weight = torch.tensor([[100, -128], [3, 4]], dtype=torch.int8)
    scale, bias = torch.tensor([0.5, -2.0]), torch.tensor([1.0, 0.5])
    want = torch.tensor([[[51.0, -5.5]], [[-13.0, -13.5]], [[-63.0, -7.5]]])
    _, total, state = ref.spiking_linear(bits, weight, bias, scale=scale, time_steps=3, neuron=IF(8.0))
    assert torch.equal(total, want.sum(0))
    assert torch.equal(state, torch.tensor([[[51.0 - 8 - 13 - 8 - 63, -26.5]]]))
    assert torch.equal(ref.count_linear(bits, weight, bias, scale=scale), torch.tensor([[-27.0, -27.5]]))
    image = {"bits": bits[..., None, None], "weight": weight[..., None, None], "bias": bias, "scale": scale}
    assert torch.equal(ref.spiking_conv2d(**image, time_steps=3)[1], total[..., None, None])
    assert torch.equal(ref.count_conv2d(**image).flatten(), torch.tensor([-27.0, -27.5]))


def test_gradients_of_scaled_sums() -> None:
    """As if the weights were scaled; nothing flows to the scale."""
    bits, scale = ref.pack_spikes(random_train(9, 2, 4, 5, 5)), dyadic(6, seed=1).requires_grad_()
    leaves = [dyadic(6, 4, 3, 3, seed=2), dyadic(6, seed=3), ref.spike_count(bits, torch.float64)]
    weight, bias, count = (x.requires_grad_() for x in leaves)
    scaled = scale.detach().reshape(-1, 1, 1, 1) * weight
    for op, named in ((ref.spiking_conv2d, {"time_steps": 9}), (ref.count_conv2d, {})):
        results = (
            op(bits, weight, bias, count=count, scale=scale, **named),
            op(bits, scaled, bias, count=count, **named),
        )
        got, want = (x[1] if isinstance(x, tuple) else x for x in results)
        assert torch.equal(got, want)
        grads = [torch.autograd.grad(x.square().sum(), [weight, bias, count], retain_graph=True) for x in (got, want)]
        assert all(torch.equal(g, w) for g, w in zip(*grads, strict=True))
        assert torch.autograd.grad(got.sum(), scale, allow_unused=True) == (None,)


# --- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mode", ["constant", "impulse"])
def test_encoded_input(mode: str, bias: bool, form: str) -> None:
    x = dyadic(2, 3, 5, 5, seed=1).requires_grad_()
    layer = ref.TandemConv2d(3, 4, 3, bias=bias, form=form, neuron=IF(threshold=0.5)).double()
    with torch.no_grad():
        for seed, p in enumerate(layer.parameters()):
            p.copy_(dyadic(*p.shape, seed=seed))
    out = layer(ref.Encode(4, mode)(x))

    drive = nn.functional.conv2d(x, layer.weight).detach()
    per_step = None if layer.bias is None else layer.bias.detach() / 4
    bits, v, _ = ref.integrate_and_fire(drive, 4, per_step, mode=mode, neuron=IF(0.5))
    assert torch.equal(out.spikes, ref.unpack_spikes(bits, 4, torch.float64))
    assert 0 < out.firing_rate() < 1

    ann = nn.functional.conv2d(4 * x if mode == "constant" else x, layer.weight, layer.bias)
    assert torch.equal(ann, v)
    seed_grad = dyadic(*ann.shape, seed=9)
    leaves = [x, *layer.parameters()]
    got = torch.autograd.grad(out.count, leaves, seed_grad)
    want = torch.autograd.grad(torch.relu(ann) / 0.5, leaves, seed_grad)
    for got_grad, want_grad in zip(got, want, strict=True):
        torch.testing.assert_close(got_grad, want_grad, rtol=1e-12, atol=1e-12)


def test_clip() -> None:
    x = torch.tensor([[0.25], [1.0], [1.25]], requires_grad=True)
    for neuron, want in ((IF(), [1.0, 1, 1]), (IF(clip=True), [1.0, 1, 0])):
        layer = ref.TandemLinear(1, 1, bias=False, neuron=neuron)
        nn.init.ones_(layer.weight)
        out = layer(ref.Encode(4)(x))
        assert out.count.flatten().tolist() == [1, 4, 4]
        (grad,) = torch.autograd.grad(out.count.sum(), x)
        assert (grad / 4).flatten().tolist() == want


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bias", [True, False])
def test_norm_folds_running_statistics(bias: bool, form: str) -> None:
    """In training the ANN uses the batch's statistics and the SNN the running ones, updated; in evaluation both do."""
    generator = torch.Generator().manual_seed(0)
    spikes = random_train(4, 5, 3, 6, 6)
    layer = ref.TandemConv2d(3, 4, 3, bias=bias, norm="batch", form=form).double()
    assert isinstance(layer.norm, nn.BatchNorm2d)
    nn.init.uniform_(layer.norm.weight, -1, 1, generator=generator)
    nn.init.uniform_(layer.norm.bias, 0, 1, generator=generator)
    count = spikes.sum(0).requires_grad_()
    out = layer(ref.DenseTrain(spikes, count))
    assert layer.norm.num_batches_tracked == 1

    twin = nn.BatchNorm2d(4).double()
    twin.load_state_dict({**layer.norm.state_dict(), "running_mean": torch.zeros(4), "running_var": torch.ones(4)})
    v = twin(nn.functional.conv2d(count, layer.weight, layer.bias))
    torch.testing.assert_close(twin.running_var, layer.norm.running_var, rtol=0, atol=0)
    seed_grad = torch.rand(v.shape, generator=generator, dtype=torch.float64)
    got_grads = torch.autograd.grad(out.count, [count, layer.weight, layer.norm.weight, layer.norm.bias], seed_grad)
    want_grads = torch.autograd.grad(torch.relu(v), [count, layer.weight, twin.weight, twin.bias], seed_grad)
    for got, want in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)

    # The statistics have not moved since, so evaluation fires the same spikes, with the gradient of the folded norm.
    layer.eval()
    evaluated = layer(ref.DenseTrain(spikes))
    assert torch.equal(evaluated.spikes, out.spikes)
    v = twin.eval()(nn.functional.conv2d(spikes.sum(0), layer.weight, layer.bias))
    got_grads = torch.autograd.grad(evaluated.count, [layer.weight, layer.norm.weight, layer.norm.bias], seed_grad)
    want_grads = torch.autograd.grad(torch.relu(v), [layer.weight, twin.weight, twin.bias], seed_grad)
    for got, want in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(layer(ref.DenseTrain(spikes)).count, evaluated.count)


def test_accepts_other_trains_and_flattens() -> None:
    class Other:
        """What a layer needs of a spike train."""

        time_steps = 3
        amplitude = 1.0
        count = torch.ones(2, 4, requires_grad=True)

        def to_dense(self) -> Tensor:
            return torch.ones(3, 2, 4)

    out = ref.TandemLinear(4, 5)(Other())
    assert out.time_steps == 3
    assert out.shape == (2, 5)
    assert ref.Decode()(Other()) is Other.count
    train = ref.DenseTrain(random_train(3, 2, 4, 5, 6))
    flat = nn.Flatten()(train)
    assert torch.equal(flat.spikes, train.spikes.reshape(3, 2, 120))
    assert torch.equal(flat.count, train.count.reshape(2, 120))
    assert nn.Flatten(2, 3)(train).shape == (2, 4, 30)
    assert nn.Flatten(-2)(train).spikes.shape == (3, 2, 4, 30)
    assert nn.Flatten()(ref.Encode(3)(train.count)).value.shape == (2, 120)
