"""What every neuron model promises: its step, its activation and slope, and its forms in files and operators."""

import dataclasses
import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cases import raw
from exact import FLOATS, SEEDS, same
from fuzz import oracle
from neurons import (
    ERRORS,
    EVERY_KIND,
    NEURONS,
    THRESHOLDS,
    any_neuron,
    edges,
    every_kind,
    raw_neuron,
    refused,
    state_of,
)
from tandem_cuda import _C, IF, LIF, RadixIF, TandemLinear, convert, ops
from tandem_cuda import reference as ref
from tandem_cuda.neuron import KINDS, MODELS, STATES, Neuron, of_parameters, of_settings
from tandem_cuda.neuron.base import NirForm
from tensors import dyadic, normal

every_neuron = pytest.mark.parametrize("neuron", NEURONS.values(), ids=NEURONS)
every_model = pytest.mark.parametrize("model", MODELS)

CURRENT = np.ones((2, 3))
DT = (1.0, 0.1, 1e-3, 1 / 3)


def is_same(got: Neuron, want: Neuron) -> bool:
    """Whether one is the other, in its simplest form: a LIF neuron without leak may be an IF neuron."""
    want = dataclasses.replace(want, clip=False)
    return got == want or (want == LIF(want.threshold, 1.0) and got == IF(want.threshold))


def test_the_tests_have_every_model() -> None:
    assert {neuron.kind: type(neuron) for neuron in EVERY_KIND.values()} == KINDS
    assert {*KINDS} == {*STATES} == {*oracle.MODELS} == {neuron.kind for neuron, *_ in ERRORS}
    assert {*KINDS.values()} == {*MODELS} - {RadixIF}  # which has no time loop
    assert all(neuron.threshold == 1 for neuron in NEURONS.values())


@every_model
def test_every_field_is_a_parameter(model: type[Neuron]) -> None:
    """But for ``clip``. What the library takes, and what files hold, are parameters, too."""
    names = [parameter.name for parameter in model.PARAMETERS]
    assert len({*names}) == len(names)
    assert {f.name for f in dataclasses.fields(model)} - {"clip"} == {p.name for p in model.PARAMETERS}  # type: ignore[arg-type]  # a dataclass
    assert all({*kind.parameters} <= {*model.PARAMETERS} for kind in model.KINDS.values())
    assert all(parameter.holds(getattr(model, parameter.name)) for parameter in model.PARAMETERS)


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


@given(
    neuron=any_neuron(),
    time_steps=st.integers(1, 40),
    carried=st.booleans(),
    dtype=st.sampled_from(FLOATS),
    seed=SEEDS,
)
def test_step_is_that_of_the_oracle(
    neuron: Neuron, time_steps: int, carried: bool, dtype: torch.dtype, seed: int
) -> None:
    """By the reference and by the kernels."""
    currents = normal(time_steps, 3, 4, seed=seed, dtype=dtype)
    state = state_of(neuron, 3, 4, draw=normal, seed=seed + 1, dtype=dtype) if carried else None
    spikes, _, final = oracle.neurons(currents.numpy(), neuron, None if state is None else state.numpy())
    want = torch.from_numpy(spikes).to(dtype), torch.from_numpy(final)
    same(ref.neuron_loop(list(currents), neuron, state), want)
    bits, _, last = ops.integrate_and_fire(currents, time_steps, state=state, mode="series", neuron=neuron)
    same((ops.unpack_spikes(bits, time_steps, dtype), last), want)


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
    for parameter in neuron.PARAMETERS:
        unit = factor if parameter.potential else 1
        assert getattr(other, parameter.name) == unit * getattr(neuron, parameter.name)
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


@pytest.mark.parametrize(("neuron", "time_steps", "mean", "largest"), ERRORS)
def test_activation_is_near_the_count(neuron: Neuron, time_steps: int, mean: float, largest: float) -> None:
    current = neuron.saturation * torch.linspace(-0.2, 1, 2401, dtype=torch.float64)[None]
    bits, v, _ = ref.integrate_and_fire(current, time_steps, neuron=neuron)
    count = ref.spike_count(bits, torch.float64)
    activation = neuron.activation(v, time_steps).clamp(max=neuron.largest(time_steps))
    error = (activation - count).abs() / time_steps
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
    """With it the gradient ends where the activation is the largest count."""
    assert neuron.upper(8) == neuron.upper(8, 3.0) == math.inf
    clipped = dataclasses.replace(neuron, clip=True)
    upper = clipped.upper(8)
    assert neuron.activation(torch.tensor(upper, dtype=torch.float64), 8).item() == pytest.approx(neuron.largest(8))
    assert upper <= 8 * neuron.saturation
    assert clipped.upper(8, 3.0) == pytest.approx(3 * upper)


@every_neuron
@pytest.mark.parametrize("wrong", [1, "no", None])
def test_clip_is_a_bool(neuron: Neuron, wrong: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{type(neuron).__name__}: clip must be True or False, got"):
        dataclasses.replace(neuron, clip=wrong)


@every_neuron
def test_calibrated(neuron: Neuron) -> None:
    """IF neurons count in units of their threshold; the rate of other models bends."""
    if neuron.kind == IF().kind:
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
    parameters = {p.name: getattr(neuron, p.name) for p in neuron.PARAMETERS}
    assert settings == {"model": type(neuron).__name__, **parameters}
    assert neuron.scales().items() <= settings.items()
    assert neuron.scaled(0.5).scales().keys() == neuron.scales().keys() >= {"threshold"}
    assert all(value > 0 for value in neuron.scales().values())


@every_neuron
def test_bad_settings(neuron: Neuron) -> None:
    settings = neuron.settings()
    *_, last = settings
    without = {key: value for key, value in settings.items() if key != last}
    wrong: list[Any] = [{}, None, [], "IF", without | {"model": "X"}, without | {"model": ["IF"]}]
    for value in wrong:
        with pytest.raises(ValueError, match=r"layer: setting neuron must have a model, one of IF, LIF, .*, got"):
            of_settings("layer", value)
    for value in (settings | {"more": 1.0}, without):
        with pytest.raises(ValueError, match=rf"layer: setting neuron must hold .*{last} of the model .*, got"):
            of_settings("layer", value)
    for parameter in neuron.KINDS[neuron.kind].parameters:
        for number in edges(parameter):
            if not parameter.holds(number):
                with pytest.raises(ValueError, match=f"{parameter.name} must be .*, got"):
                    of_settings("layer", settings | {parameter.name: number})


def of_nir(form: NirForm, dt: float) -> tuple[Neuron, float]:
    """Of the first model that takes it."""
    return next(made for model in MODELS if (made := model.of_nir(form, dt)) is not None)


def is_in_nir(neuron: Neuron) -> bool:
    try:
        neuron.to_nir(1.0)
    except ValueError:
        return False
    return True


def in_nir() -> st.SearchStrategy[Neuron]:
    """Those that NIR can describe."""
    return any_neuron().filter(is_in_nir)


@every_neuron
def test_what_nir_cannot_describe(neuron: Neuron) -> None:
    """Some models, and of the others those with a parameter that NIR lacks."""
    lacking = [p for p in neuron.PARAMETERS if p.optional and getattr(neuron, p.name) != 0]
    plain = dataclasses.replace(neuron, **{p.name: 0 for p in lacking})
    if not is_in_nir(plain):
        assert not isinstance(neuron, (IF, LIF))
        assert all(model.of_nir(NirForm(type(neuron).__name__, {}, {}), 1.0) is None for model in MODELS)
        return
    for parameter in lacking:
        alone = dataclasses.replace(plain, **{parameter.name: getattr(neuron, parameter.name)})
        with pytest.raises(ValueError, match=f"^{parameter.name} must be .*, since {parameter.not_in_nir}, got"):
            alone.to_nir(1.0)


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


@every_model
def test_bad_values(model: type[Neuron]) -> None:
    for parameter in model.PARAMETERS:
        if parameter.flag:
            continue
        name = parameter.name
        for value in NOT_NUMBERS:
            with pytest.raises(
                TypeError, match=f"^{model.__name__}: {name} must be a number, got {type(value).__name__}$"
            ):
                model(**{name: value})
        for value in (*edges(parameter), -1, 10**400):
            if not parameter.holds(value):
                with pytest.raises(ValueError) as error:  # noqa: PT011  # its whole text is asserted
                    model(**{name: value})
                assert str(error.value) == f"{model.__name__}: {name} must be {parameter.rule}, got {value}"


@every_kind
def test_the_library_refuses_the_same_values(neuron: Neuron) -> None:
    """Python and C++ state the ranges independently."""
    for i, parameter in enumerate(neuron.KINDS[neuron.kind].parameters):
        bad = refused(neuron, parameter)
        assert len(bad) > 3
        for value in edges(parameter):
            parameters = [*neuron.parameters[:i], value, *neuron.parameters[i + 1 :]]
            if value in bad:
                with pytest.raises(ValueError, match=f"{parameter.name} must be .*, got"):
                    _C.integrate_and_fire(CURRENT, neuron.kind, parameters)
            else:
                assert of_parameters(neuron.kind, parameters).kind == neuron.kind
                assert _C.integrate_and_fire(CURRENT, neuron.kind, parameters).shape == CURRENT.shape


@every_neuron
def test_is_a_value(neuron: Neuron) -> None:
    for clip in (True, False):
        chosen = dataclasses.replace(neuron.scaled(0.7), clip=clip)
        assert eval(repr(chosen), {model.__name__: model for model in MODELS}) == chosen
        assert pickle.loads(pickle.dumps(chosen)) == chosen
        assert len({chosen, dataclasses.replace(chosen), neuron}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        neuron.threshold = 2.0


@every_model
def test_whole_numbers_become_floats(model: type[Neuron]) -> None:
    for kind in model.KINDS.values():
        whole = {parameter.name: n for parameter in kind.parameters for n in (0, 1) if parameter.holds(n)}
        assert whole
        assert all(type(value) is float for value in model(**whole).parameters)
    name = model.PARAMETERS[0].name
    assert getattr(model(**{name: 10**25}), name) == 1e25


@pytest.mark.parametrize("wrong", [1.0, None, "IF", IF, {"threshold": 1.0}])
def test_no_neuron(wrong: Any) -> None:
    bits = torch.zeros(1, 2, 3, dtype=torch.uint8)
    message = rf"neuron must be IF\(\.\.\.\), .* or .*\(\.\.\.\), got {type(wrong).__name__}"
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
