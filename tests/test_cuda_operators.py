"""Every operator on a CUDA device: bit for bit what the CPU computes, whose tests say that it is right.

Where there is no device the CPU stands in for it. Such a run says nothing of kernels. It shows that the tests are
right, and that operators which Python computes on CUDA return what the CPU's kernels do.
"""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cases import CASES, ELEMENT_WISE, MODES, RAW, outputs_of, tensors_of
from exact import SEEDS, as_on_cuda, packed_on_cuda
from neurons import any_neuron, raw_neuron, state_of
from pairwise import pairs
from tandem_cuda import IF, LIF, ops
from tandem_cuda.ops.gradient import ON_CUDA
from tensors import FLOATS, generator, planes, views

TIME_STEPS = (1, 7, 8, 9, 20)
DENSE = (*FLOATS, torch.float16, torch.bool, torch.uint8)


def on_device(x, device):
    """The same values at the same places of memory: strides, gaps and the offset of the first element."""
    elements = x.untyped_storage().nbytes() // x.element_size()
    memory = x.as_strided((elements,), (1,), 0).to(device, copy=True)
    return memory.as_strided(x.shape, x.stride(), x.storage_offset())


def identical(got, want, device):
    """Assert that tensors, or tuples of them, agree in dtype, shape, strides and every bit; NaN is NaN."""
    if isinstance(want, torch.Tensor):
        got, want = (got,), (want,)
    for g, w in zip(got, want, strict=True):
        assert str(g.device).startswith(device)
        assert (g.dtype, g.shape, g.stride()) == (w.dtype, w.shape, w.stride())
        torch.testing.assert_close(g.cpu(), w, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(g.cpu().signbit()[w == 0], w.signbit()[w == 0])


def too_many(device, seed):
    """Whether an example can be left out: where the CPU stands in, one of eight will do."""
    return device == "cpu" and seed % 8 != 0


def captured(device, f):
    """What f returned while a CUDA graph captured it, and what computes that anew; on the CPU a plain call."""
    if device == "cpu":
        got = f()
        outputs = (got,) if isinstance(got, torch.Tensor) else got

        def replay():
            again = f()
            for to, x in zip(outputs, (again,) if isinstance(again, torch.Tensor) else again, strict=True):
                to.copy_(x)

        return got, replay
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            f()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = f()
    return got, graph.replay


def moved(arguments, device):
    return {name: on_device(x, device) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}


def expected(case, arguments, device):
    """What a case computes here, but of float weights, which a device packs as whole numbers."""
    packs = case.operator == "pack_weight" and device != "cpu"
    return packed_on_cuda(**arguments) if packs else case.run(**arguments)


def check(case, arguments, device, **others):
    """Assert that a case computes on the device what is expected, of these arguments or of others there."""
    with as_on_cuda(device):
        got = case.run(**(moved(arguments, device) | others))
    identical(got, expected(case, arguments, device), device)


@pytest.mark.parametrize("name", ["ordered_spikes", "step_product"])
def test_the_stand_in_runs_what_python_computes_on_a_device(name, monkeypatch):
    case = next(case for case in CASES if case.operator == name)
    called, implementation = [], ON_CUDA[name]
    monkeypatch.setitem(ON_CUDA, name, lambda *arguments: called.append(name) or implementation(*arguments))
    check(case, case.arguments(case.dtypes[0]), "cpu")
    assert called == [name]  # and the kernel of the CPU computed what it was compared with


def pooled(*arguments, time_steps):
    def f(bits, count=None):
        return ops.max_pool_spikes(bits, *arguments, time_steps=time_steps, count=count, want_count=True)

    return f


@pairs(
    arguments=[(2,), (3, 2, 1), ((2, 3), 1, 1, (3, 1)), (2, 3, 1, 1, True)],
    time_steps=[*TIME_STEPS, 128, 129, 300],
    shape=[(3, 5, 9, 7), (0, 3, 8, 8), (2, 64, 16, 16)],
)
def test_max_pool_spikes(device, arguments, time_steps, shape):
    bits = planes(time_steps, *shape, seed=time_steps, rate=0.6)
    count = torch.randint(0, 40, shape, generator=generator(1), dtype=torch.int32)
    f = pooled(*arguments, time_steps=time_steps)
    identical(f(on_device(bits, device)), f(bits), device)
    identical(f(on_device(bits, device), on_device(count, device)), f(bits, count), device)
    for view in views(bits):
        identical(f(on_device(view, device)), f(view), device)


def on_devices(cases):
    """These cases; without a device, one of each kernel will do, since test_operators.py has all of them."""
    first = {case.operator: case for case in reversed(cases)}
    few = [case for case in cases if case is first[case.operator] or case.operator in ON_CUDA]
    return pytest.mark.parametrize("case", cases if torch.cuda.is_available() else few, ids=str)


# The gradient of weights is torch's own there.
every_case = on_devices([case for case in CASES if case.operator != "conv2d_weight_gradient"])
every_element_wise = on_devices(ELEMENT_WISE)
every_length = pytest.mark.parametrize("time_steps", TIME_STEPS)


@every_case
@every_length
@pytest.mark.parametrize("optional", [True, False])
def test_every_dtype(case, time_steps, optional, device):
    for dtype in case.dtypes:
        check(case, case.arguments(dtype, 0, time_steps, optional=optional), device)


@given(
    case=st.sampled_from(ELEMENT_WISE),
    time_steps=st.sampled_from(TIME_STEPS),
    neurons=st.lists(st.integers(0, 9), min_size=2, max_size=4),
    dtype=st.sampled_from(FLOATS),
    optional=st.booleans(),
    seed=SEEDS,
)
def test_random_shapes(case, time_steps, neurons, dtype, optional, seed, device):
    check(case, case.arguments(dtype, seed, time_steps, neurons, optional), device)


@given(
    time_steps=st.sampled_from(TIME_STEPS),
    mode=st.sampled_from(MODES),
    neuron=any_neuron(),
    dtype=st.sampled_from(FLOATS),
    absent=st.sets(st.sampled_from(("scale", "bias", "state"))),
    seed=SEEDS,
)
def test_integrate_and_fire_of_any_neuron(time_steps, mode, neuron, dtype, absent, seed, device):
    case = next(case for case in ELEMENT_WISE if case.name == f"integrate_and_fire, {mode}")
    arguments = case.arguments(dtype, seed, time_steps) | {"neuron": neuron}
    arguments["state"] = state_of(neuron, *case.neurons, seed=seed + 3, dtype=dtype)
    check(case, {name: x for name, x in arguments.items() if name not in absent}, device)


@every_element_wise
@every_length
@pytest.mark.parametrize("neurons", [(16, 64, 28, 28), (3, 129, 31, 33)])
def test_many_neurons(case, time_steps, neurons, device):
    """Rows that are aligned and rows that are not, many blocks of them."""
    if device == "cpu":
        neurons = (2, *neurons[1:2], 3, 3)
    for dtype in FLOATS:
        check(case, case.arguments(dtype, 0, time_steps, neurons), device)


@every_case
def test_any_strides(case, device):
    for time_steps in (8, 9):
        arguments = case.arguments(case.dtypes[0], time_steps=time_steps)
        for name, x in tensors_of(arguments).items():
            for view in views(x):
                check(case, arguments | {name: view}, device)


@every_case
def test_misaligned(case, device):
    """Contiguous memory that begins one element behind a boundary."""
    arguments = case.arguments(case.dtypes[0], time_steps=8)
    for name, x in tensors_of(arguments).items():
        memory = torch.zeros(x.numel() + 1, dtype=x.dtype)
        memory[1:] = x.flatten()
        arguments[name] = memory[1:].view(x.shape)
    check(case, arguments, device)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("size", [1, 31, 256, 257, 4608])
def test_quantise_weight_of_every_magnitude(bits, size, device):
    """Ties, subnormal numbers, channels of zeros, and those whose scale would be 0."""
    halves = torch.randint(-254, 255, (300, size), generator=generator(1)) / 2
    halves[:, -1] = 127
    weight = torch.ldexp(halves, torch.arange(-149, 151)[:, None].clamp(max=120))
    weight[7], weight[8] = 0, 63 * 2.0**-149
    identical(ops.quantise_weight(weight.to(device), bits), ops.quantise_weight(weight, bits), device)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_quantise_weight_that_is_not_finite_has_no_scale(value, cuda):
    """The CPU raises an error; a device is not waited for."""
    weight = torch.ones(3, 300)
    weight[1, 256] = value
    q, scale = ops.quantise_weight(weight.to(cuda), 8)
    assert scale.isnan().tolist() == [False, True, False]
    assert q.tolist() == [[127] * 300, [0] * 300, [127] * 300]


@every_case
@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches(case, batch, device):
    if case.operator in ("pack_weight", "quantise_weight"):
        pytest.skip("weights have no batch")
    for time_steps in TIME_STEPS:
        check(case, case.arguments(case.dtypes[0], 0, time_steps, (batch, *case.neurons[1:])), device)


@every_case
def test_current_stream(case, cuda):
    """What the current stream has yet to write is what the operator reads."""
    arguments = case.arguments(case.dtypes[0])
    late = moved(arguments, cuda)
    early = late | {name: torch.zeros_like(x) for name, x in tensors_of(late).items()}
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        # So that nothing has to be loaded, and no memory to be had, while the stream sleeps.
        for name, to in tensors_of(early).items():
            to.copy_(late[name]).zero_()
        case.run(**early)
        torch.cuda.synchronize()
        torch.cuda._sleep(1_000_000_000)
        for name, to in tensors_of(early).items():
            to.copy_(late[name])
        got = case.run(**early)
        assert not stream.query(), "the operator waited, or the stream did not sleep for long enough"
    stream.synchronize()
    want = expected(case, arguments, cuda)
    assert any(x.any() for x in outputs_of(want))
    identical(got, want, cuda)


@every_case
def test_graph_capture(case, device):
    """A captured call computes anew from what its arguments hold when it is replayed."""
    for dtype in case.dtypes[:2]:
        first, second = (case.arguments(dtype, seed) for seed in (0, 10))
        there = moved(first, device)
        with as_on_cuda(device):
            got, replay = captured(device, lambda there=there: case.run(**there))
        for arguments in (first, second):
            for name, x in tensors_of(arguments).items():
                there[name].copy_(x)
            replay()
            identical(got, expected(case, arguments, device), device)


@every_case
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch finds fewer than two CUDA devices")
def test_another_device_than_the_current_one(case, cuda):
    arguments = case.arguments(case.dtypes[0])
    identical(case.run(**moved(arguments, f"{cuda}:1")), expected(case, arguments, cuda), f"{cuda}:1")
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("odd", [2.0, 0.5, -1.0])
def test_pack_spikes_of_other_numbers_ends_the_context(odd, cuda):
    script = f"""
import torch
from tandem_cuda import ops
spikes = torch.ones(9, 2, 5, device="{cuda}")
spikes[3, 1, 2] = {odd}
ops.pack_spikes(spikes)
print("not waited for", flush=True)
torch.cuda.synchronize()
print("not reached")
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "not waited for" in result.stdout
    assert "not reached" not in result.stdout
    assert "CUDA error" in result.stderr
    # The host may not get to see what a kernel prints before it traps.
    said = [line for line in result.stdout.splitlines() if line != "not waited for"]
    assert {*said} <= {f"pack_spikes: spikes must be 0 or 1, got {odd:g}"}


def test_bad_input_has_the_messages_of_the_cpu(device):
    """Of the operators themselves, which the checks in Python precede."""
    bits, v = torch.zeros(2, 2, 3, dtype=torch.uint8), torch.zeros(2, 3)
    coupled = {"bits": bits, "pre_activation": v, "time_steps": 9, "upper": 1.0, **raw_neuron(IF())}
    driven = {"current": v, "scale": None, "bias": None, "state": None, "time_steps": 9, "mode": 0}
    driven |= {**raw_neuron(LIF()), "want_sum": True, "want_state": True}
    gated = {"grad": v, "pre_activation": v, "threshold": 1.0, "upper": 1.0}
    digits = {"current": v, "scale": None, "bias": None, "time_steps": 4}
    digits |= {"threshold": 1.0, "initial": 0.5, "want_state": True}
    calls = [
        (RAW.pack_spikes, {"spikes": v[0]}),
        (RAW.pack_spikes, {"spikes": torch.zeros(0, 3)}),
        (RAW.pack_spikes, {"spikes": v.long()}),
        (RAW.unpack_spikes, {"bits": bits.float(), "time_steps": 9, "dtype": torch.float32}),
        (RAW.unpack_spikes, {"bits": bits, "time_steps": 8, "dtype": torch.float32}),
        (RAW.unpack_spikes, {"bits": bits, "time_steps": 9, "dtype": torch.int64}),
        (RAW.spike_count, {"bits": bits[0, 0], "dtype": torch.float32}),
        (RAW.spike_count, {"bits": bits, "dtype": torch.float16}),
        (RAW.tandem_count, coupled | {"pre_activation": v.half()}),
        (RAW.tandem_count, coupled | {"pre_activation": v[0]}),
        (RAW.tandem_count, coupled | {"parameters": [0.0]}),
        (RAW.tandem_count, coupled | {"neuron": -1}),
        (RAW.tandem_count, coupled | {"upper": 0.0}),
        (RAW.integrate_and_fire, driven | {"parameters": [1.0]}),
        (RAW.integrate_and_fire, driven | {"parameters": [1.0, 1.5]}),
        (RAW.integrate_and_fire, driven | {"state": v}),
        (RAW.integrate_and_fire, driven | {"state": torch.zeros(2, 2, 3)}),
        (RAW.tandem_count, coupled | {"radix": True}),
        (RAW.radix_spikes, digits | {"time_steps": 0}),
        (RAW.radix_spikes, digits | {"time_steps": 9}),
        (RAW.radix_spikes, digits | {"threshold": math.nan}),
        (RAW.radix_spikes, digits | {"threshold": 1e38}),
        (RAW.radix_spikes, digits | {"initial": 1.0}),
        (RAW.radix_spikes, digits | {"current": v.half()}),
        (RAW.radix_spikes, digits | {"scale": v}),
        (RAW.quantise_weight, {"weight": v.double(), "largest": 127}),
        (RAW.quantise_weight, {"weight": v[0], "largest": 127}),
        (RAW.quantise_weight, {"weight": v[:0], "largest": 127}),
        (RAW.quantise_weight, {"weight": v, "largest": 128}),
        (RAW.tandem_count_backward, gated | {"grad": v.double()}),
        (RAW.tandem_count_backward, gated | {"grad": v[0]}),
        (RAW.tandem_count_backward, gated | {"threshold": math.inf}),
        (RAW.tandem_count_backward, gated | {"upper": math.nan}),
    ]
    for op, arguments in calls:
        messages = []
        for place in ("cpu", device):
            with pytest.raises(RuntimeError) as error:
                op(**moved(arguments, place))
            messages.append(next(line for line in str(error.value).splitlines() if f"{op.__name__}: " in line))
        assert messages[0] == messages[1]
