"""What every neuron model promises: its step, its activation and slope, and its forms in files and operators."""

import dataclasses
import json
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cases import raw
from exact import SEEDS
from neurons import EVERY_KIND, NEURONS, THRESHOLDS, any_neuron, every_kind, raw_neuron, state_of
from tandem_cuda import IF, LIF, TandemLinear, convert, ops
from tandem_cuda import reference as ref
from tandem_cuda.neuron import KINDS, MODELS, STATES, Neuron, of_parameters, of_settings
from tandem_cuda.neuron.base import NirForm
from tensors import dyadic, normal

every_neuron = pytest.mark.parametrize("neuron", NEURONS.values(), ids=NEURONS)
every_model = pytest.mark.parametrize("model", MODELS)

DT = (1.0, 0.1, 1e-3, 1 / 3)


def is_same(got: Neuron, want: Neuron) -> bool:
    """Whether one is the other, in its simplest form: a LIF neuron without leak may be an IF neuron."""
    want = dataclasses.replace(want, clip=False)
    return got == want or (want == LIF(want.threshold, 1.0) and got == IF(want.threshold))


def test_the_tests_have_every_model() -> None:
    assert {neuron.kind: type(neuron) for neuron in EVERY_KIND.values()} == KINDS
    assert {*KINDS} == {*STATES} == {*SCALAR_STEPS} == {neuron.kind for neuron, *_ in ERRORS}
    assert {*KINDS.values()} == {*MODELS}
    assert all(neuron.threshold == 1 for neuron in NEURONS.values())


# ---- Across the operator boundary


@given(neuron=any_neuron())
def test_parameters(neuron: Neuron) -> None:
    again = of_parameters(neuron.kind, neuron.parameters)
    assert (type(again), again.kind, again.parameters) == (type(neuron), neuron.kind, neuron.parameters)
    assert len(neuron.parameters) == len(neuron.KINDS[neuron.kind].parameters)
    assert all(type(value) is float for value in neuron.parameters)
    assert again.states == neuron.states == STATES[neuron.kind] >= 1
    assert again == neuron


@every_kind
def test_parameters_of_another_number(neuron: Neuron) -> None:
    for wrong in (neuron.parameters[:-1], [*neuron.parameters, 1.0], []):
        with pytest.raises(ValueError, match="zip"):
            of_parameters(neuron.kind, wrong)


def driven(**named: Any) -> Any:
    wanted = {"want_sum": True, "want_state": True}
    return raw("integrate_and_fire", current=torch.ones(2, 3), time_steps=8, mode=0, **wanted, **named)


@every_kind
def test_the_library_knows_its_kinds(neuron: Neuron) -> None:
    bits, _, state = driven(**raw_neuron(neuron))
    assert bits.any()
    assert state.shape == (neuron.states, 2, 3)


def test_the_library_knows_no_other_kinds() -> None:
    for kind in (min(KINDS) - 1, max(KINDS) + 1):
        with pytest.raises(RuntimeError, match=f"integrate_and_fire: neuron must be .*{kind}"):
            driven(neuron=kind, parameters=[1.0, 0.5])


@every_kind
def test_state_of_another_model(neuron: Neuron) -> None:
    """In the reference; what the operators say of it, their own tests ask."""
    with pytest.raises(ValueError, match="unpack"):
        ref.neuron_loop([torch.ones(2, 3)], neuron, torch.zeros(neuron.states + 1, 2, 3))


# ---- The spiking neuron


def scalar_if(neuron: Any, state: list[float], x: float) -> tuple[int, list[float]]:
    (u,) = state
    if u >= neuron.threshold:
        u -= neuron.threshold
    u += x
    return int(u >= neuron.threshold), [u]


def scalar_lif(neuron: Any, state: list[float], x: float) -> tuple[int, list[float]]:
    (u,) = state
    reset = neuron.threshold if u >= neuron.threshold else 0.0
    u = (neuron.leak * u - reset) + x
    return int(u >= neuron.threshold), [u]


def scalar_refractory(neuron: Any, state: list[float], x: float) -> tuple[int, list[float]]:
    u, left = state
    if left == 0 and u >= neuron.threshold:
        u, left = u - neuron.threshold, neuron.refractory
    else:
        left = max(left - 1, 0.0)
    if left > 0:
        return 0, [u, left]
    u += x
    return int(u >= neuron.threshold), [u, 0.0]


SCALAR_STEPS: dict[int, Any] = {0: scalar_if, 1: scalar_lif, 2: scalar_refractory}


@given(neuron=any_neuron(), time_steps=st.integers(1, 40), carried=st.booleans(), seed=SEEDS)
def test_step_is_that_of_one_neuron(neuron: Neuron, time_steps: int, carried: bool, seed: int) -> None:
    """In Python floats, which are those of float64; by the reference and by the kernels."""
    currents = normal(time_steps, 3, 4, seed=seed, dtype=torch.float64)
    state = state_of(neuron, 3, 4, draw=normal, seed=seed + 1, dtype=torch.float64) if carried else None
    spikes, final = ref.neuron_loop(list(currents), neuron, state)
    start = torch.stack(neuron.rest(currents[0])) if state is None else state
    step = SCALAR_STEPS[neuron.kind]
    for at in torch.cartesian_prod(torch.arange(3), torch.arange(4)).tolist():
        own = [float(variable[tuple(at)]) for variable in start]
        fired = []
        for t in range(time_steps):
            spike, own = step(neuron, own, float(currents[t][tuple(at)]))
            fired.append(spike)
        assert spikes[(slice(None), *at)].tolist() == fired
        assert final[(slice(None), *at)].tolist() == own
    bits, _, state = ops.integrate_and_fire(currents, time_steps, state=state, mode="series", neuron=neuron)
    assert torch.equal(ops.unpack_spikes(bits, time_steps, torch.float64), spikes)
    assert torch.equal(state, final)


@every_neuron
def test_rest(neuron: Neuron) -> None:
    """As many variables as the model has; nobody fires without a current."""
    current = torch.zeros(2, 3, dtype=torch.float64)
    state = neuron.rest(current)
    assert len(state) == neuron.states
    assert all((x.shape, x.dtype) == (current.shape, current.dtype) for x in state)
    assert not ref.neuron_loop([current] * 20, neuron)[0].any()


@every_neuron
@pytest.mark.parametrize("factor", [0.25, 8.0])
def test_scaled(neuron: Neuron, factor: float) -> None:
    """Where currents are measured in other units, spikes are the same and potentials in these units."""
    other = neuron.scaled(factor)
    assert other.threshold == factor * neuron.threshold
    assert dataclasses.replace(other, threshold=neuron.threshold) == neuron
    currents = normal(30, 5, 7, seed=0)
    (spikes, state), (want, before) = (
        ref.neuron_loop(list(scale * currents), model) for scale, model in ((factor, other), (1.0, neuron))
    )
    assert 0.05 < spikes.mean() < 0.9
    assert torch.equal(spikes, want)
    assert torch.equal(state[0], factor * before[0])
    assert other.saturation == factor * neuron.saturation


# ---- Its ANN twin


@every_neuron
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("time_steps", [1, 8, 65])
def test_slope_is_the_derivative_of_the_activation(neuron: Neuron, threshold: float, time_steps: int) -> None:
    neuron = neuron.scaled(threshold)
    v = neuron.saturation * time_steps * (torch.linspace(-0.5, 2, 1001, dtype=torch.float64) + 1e-4)
    leaf = v.clone().requires_grad_()
    (want,) = torch.autograd.grad(neuron.activation(leaf, time_steps).sum(), leaf)
    slope = neuron.slope(v, time_steps)
    torch.testing.assert_close(slope, want, rtol=1e-9, atol=1e-12)
    h = 1e-6 * threshold * time_steps
    above, below = (neuron.activation(v + step, time_steps) for step in (h, -h))
    smooth = (v - h > 0) | (v + h < 0)
    torch.testing.assert_close(slope[smooth], ((above - below) / (2 * h))[smooth], rtol=1e-4, atol=1e-6 / threshold)
    assert (slope >= 0).all()
    assert slope.max() > 0.5 / threshold


@every_neuron
def test_relu(neuron: Neuron) -> None:
    if neuron.relu_threshold is not None:
        v = normal(100, seed=0, dtype=torch.float64)
        assert torch.equal(neuron.activation(v, 8), torch.relu(v) / neuron.relu_threshold)


# Neuron, T, mean and largest error of activation / T against simulated counts / T, as the docstrings state them; the
# activation of an IF neuron is less than a spike above the count.
ERRORS: list[tuple[Neuron, int, float, float]] = [
    (IF(), 8, 0.5 / 8, 1 / 8),
    (IF(), 64, 0.5 / 64, 1 / 64),
    (LIF(leak=0.9), 8, 0.055, 0.153),
    (LIF(leak=0.9), 64, 0.024, 0.060),
    (LIF(leak=0.5), 8, 0.103, 0.258),
    (LIF(leak=0.5), 64, 0.102, 0.256),
    (LIF(leak=1.0), 8, 0.5 / 8, 1 / 8),
    (IF(refractory=1), 8, 0.25 / 8, 0.89 / 8),
    (IF(refractory=4), 64, 0.26 / 64, 0.94 / 64),
]


@pytest.mark.parametrize(("neuron", "time_steps", "mean", "largest"), ERRORS)
def test_activation_is_near_the_count(neuron: Neuron, time_steps: int, mean: float, largest: float) -> None:
    current = neuron.saturation * torch.linspace(-0.2, 1, 2401, dtype=torch.float64)[None]
    bits, v, _ = ref.integrate_and_fire(current, time_steps, neuron=neuron)
    count = ref.spike_count(bits, torch.float64)
    error = (neuron.activation(v, time_steps) - count).abs() / time_steps
    assert error.mean() <= mean + 0.0007
    assert error.max() <= largest + 0.0015
    assert count.max() > 0.8 * neuron.largest(time_steps)


@every_neuron
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_saturation(neuron: Neuron, threshold: float) -> None:
    """From there on as many spikes as there can be, once the neuron has settled; below it fewer."""
    neuron = neuron.scaled(threshold)
    factors = torch.tensor([[0.5, 1.0 + 1e-9, 1.5, 4.0]], dtype=torch.float64)
    spikes, _ = ref.neuron_loop([neuron.saturation * factors] * 840, neuron)
    count = spikes[210:].sum(0).flatten().tolist()  # 630 steps: a multiple of every refractory period
    assert count[0] < neuron.largest(630)
    assert count[1:] == [neuron.largest(630)] * 3


@every_neuron
def test_upper(neuron: Neuron) -> None:
    assert neuron.upper(8) == neuron.upper(8, 3.0) == math.inf
    clipped = dataclasses.replace(neuron, clip=True)
    assert clipped.upper(8) == 8 * neuron.saturation
    assert clipped.upper(8, 3.0) == pytest.approx(24 * neuron.saturation)


@every_neuron
def test_calibrated(neuron: Neuron) -> None:
    """IF neurons count in units of their threshold; a leak bends the rate."""
    if neuron.kind == 0:
        assert neuron.calibrated(0.25) == dataclasses.replace(neuron, threshold=0.25, amplitude=0.25)
        return
    with pytest.raises(ValueError, match=r"^neuron must (be IF\(\.\.\.\)|have no refractory period) with calibrate"):
        neuron.calibrated(0.25)


# ---- In files


@given(neuron=any_neuron(), clip=st.booleans())
def test_settings(neuron: Neuron, clip: bool) -> None:
    """Through JSON. Training alone needs `clip`, which they do not hold."""
    settings = dataclasses.replace(neuron, clip=clip).settings()
    again = of_settings("layer", json.loads(json.dumps(settings)))
    assert is_same(again, neuron)
    assert again.settings() == settings
    assert {*settings} == {*neuron.SETTINGS} | {name for name in neuron.OPTIONAL if getattr(neuron, name) != 0}
    assert neuron.scales().items() <= settings.items()


def test_settings_of_an_amplitude() -> None:
    assert of_settings("layer", IF(0.5, amplitude=2.0).settings()) == IF(0.5, amplitude=2.0)
    with pytest.raises(ValueError, match=r"layer: amplitude of leaky neurons must be 1, got 2\.0"):
        of_settings("layer", LIF().settings() | {"amplitude": 2.0})


@every_neuron
def test_bad_settings(neuron: Neuron) -> None:
    settings = neuron.settings()
    first, *_ = settings
    wrong: list[Any] = [{}, None, [], "IF", settings | {"more": 1.0}, {k: v for k, v in settings.items() if k != first}]
    for value in wrong:
        with pytest.raises(ValueError, match=r"layer: setting neuron must hold .*threshold.*, got"):
            of_settings("layer", value)
    with pytest.raises(
        ValueError, match=r"and perhaps initial, refractory, two_phase \(IF\) or threshold, .* \(LIF\), got"
    ):
        of_settings("layer", {})
    for name in neuron.KINDS[neuron.kind].parameters:
        for number in (-1.0, math.nan, math.inf, *([] if name in neuron.OPTIONAL else [0.0])):
            with pytest.raises(ValueError, match=f"{name} must be .*, got {number}"):
                of_settings("layer", settings | {name: number})


def of_nir(form: NirForm, dt: float) -> tuple[Neuron, float]:
    """Of the first model that takes it."""
    return next(made for model in MODELS if (made := model.of_nir(form, dt)) is not None)


def in_nir() -> st.SearchStrategy[Neuron]:
    """Those that NIR can describe."""
    return any_neuron().filter(lambda neuron: neuron.initial == 0 and getattr(neuron, "refractory", 0) == 0)


@every_neuron
def test_what_nir_cannot_describe(neuron: Neuron) -> None:
    for name in neuron.OPTIONAL:
        if getattr(neuron, name) != 0:
            with pytest.raises(ValueError, match=r"^(initial|refractory) must be 0, since NIR has no"):
                neuron.to_nir(1.0)


@given(neuron=in_nir(), dt=st.sampled_from(DT), clip=st.booleans())
def test_nir(neuron: Neuron, dt: float, clip: bool) -> None:
    form = dataclasses.replace(neuron, clip=clip).to_nir(dt)
    again, gain = of_nir(form, dt)
    assert is_same(again, neuron)
    assert gain == 1
    stronger = form._replace(values=form.values | {"r": 2 * form.values["r"]})
    assert of_nir(stronger, dt) == (again, pytest.approx(2, rel=1e-9))


@given(neuron=in_nir(), dt=st.sampled_from(DT))
def test_bad_nir(neuron: Neuron, dt: float) -> None:
    form = neuron.to_nir(dt)
    for name, value, message in (
        ("r", 0.0, "r * dt.* must be finite and not zero, got 0"),
        ("r", math.inf, "r * dt.* must be finite and not zero, got inf"),
        ("v_reset", form.values["v_reset"] - 0.5 * neuron.threshold, "v_reset must be .*, got"),
    ):
        with pytest.raises(ValueError, match=message.replace("*", r"\*", 1) if name == "r" else message):
            of_nir(form._replace(values=form.values | {name: value}), dt)


@every_model
def test_nir_of_another_node(model: type[Neuron]) -> None:
    assert model.of_nir(NirForm("CubaLIF", {}, {}), 1.0) is None


# ---- As an object


NOT_NUMBERS = (True, "1", None, [1.0], 1j, torch.tensor(1.0))
NOT_POSITIVE = (0, 0.0, -1.0, math.nan, math.inf, -math.inf, 10**400)


@every_model
def test_bad_values(model: type[Neuron]) -> None:
    names = [f.name for f in dataclasses.fields(model) if f.type != "bool"]  # type: ignore[arg-type]  # a dataclass
    assert {name for kind in model.KINDS.values() for name in kind.parameters} <= {*names}
    for name in names:
        for value in NOT_NUMBERS:
            with pytest.raises(
                TypeError, match=f"^{model.__name__}: {name} must be a number, got {type(value).__name__}$"
            ):
                model(**{name: value})
        for value in NOT_POSITIVE[2:] if name in model.OPTIONAL else NOT_POSITIVE:
            with pytest.raises(ValueError, match=f"^{model.__name__}: {name} must be .*, got {value}$"):
                model(**{name: value})


def test_bad_leak() -> None:
    for leak in (1.0000001, 2, 10**30):
        with pytest.raises(ValueError, match=rf"^LIF: leak must be in \(0, 1\], got {leak}$".replace("+", r"\+")):
            LIF(leak=leak)


@every_neuron
def test_is_a_value(neuron: Neuron) -> None:
    for clip in (True, False):
        chosen = dataclasses.replace(neuron.scaled(0.7), clip=clip)
        assert eval(repr(chosen), {"IF": IF, "LIF": LIF}) == chosen
        assert pickle.loads(pickle.dumps(chosen)) == chosen
        assert len({chosen, dataclasses.replace(chosen), neuron}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        neuron.threshold = 2.0


@every_model
def test_whole_numbers_become_floats(model: type[Neuron]) -> None:
    for kind in model.KINDS.values():
        whole = {name: 0 if name == "initial" else 1 for name in kind.parameters}
        assert all(type(value) is float for value in model(**whole).parameters)
    assert model(threshold=10**25).parameters[0] == 1e25


@pytest.mark.parametrize("wrong", [1.0, None, "IF", IF, {"threshold": 1.0}])
def test_no_neuron(wrong: Any) -> None:
    bits = torch.zeros(1, 2, 3, dtype=torch.uint8)
    message = rf"neuron must be IF\(\.\.\.\) or .*, got {type(wrong).__name__}"
    calls = {
        "TandemLinear": lambda: TandemLinear(3, 4, neuron=wrong),
        "convert": lambda: convert(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()), 8, neuron=wrong),
        "spiking_linear": lambda: ops.spiking_linear(bits, dyadic(4, 3, seed=0), time_steps=8, neuron=wrong),
        "tandem_count": lambda: ops.tandem_count(bits, torch.zeros(2, 3), 8, wrong),
    }
    if wrong is None:
        del calls["convert"]  # which has a default of its own
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"{name}: {message}"):
            call()


def test_thresholds_that_float32_does_not_hold() -> None:
    """Refused at the call, where rounding would change which neurons fire; float64 holds them."""
    for neuron, message in ((IF(1e-45, initial=0.9), "initial must leave"), (IF(1e300), "threshold must be finite")):
        ops.integrate_and_fire(torch.zeros(1, 4, dtype=torch.float64), 4, neuron=neuron)
        with pytest.raises(RuntimeError, match=f"integrate_and_fire: {message}"):
            ops.integrate_and_fire(torch.zeros(1, 4), 4, neuron=neuron)
