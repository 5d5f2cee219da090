"""The element-wise operators on a CUDA device: bit for bit what the CPU computes, whose tests say that it is right.

Where there is no device the CPU stands in for it: such a run says nothing of kernels, but that the tests are right.
"""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exact import FLOATS, LEAKS, SEEDS, THRESHOLDS, generator, planes, train, views
from tandem_cuda import ops

TIME_STEPS = (1, 7, 8, 9, 20)
DENSE = (*FLOATS, torch.float16, torch.bool, torch.uint8)
MODES = ("constant", "impulse", "series")


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


def random(*shape, dtype, seed):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def gates(*shape, dtype, seed):
    """Pre-activations among them 0, the bound 1.5, and what is not finite."""
    v = random(*shape, dtype=dtype, seed=seed)
    special = torch.tensor([0.0, -0.0, 1.5, math.inf, -math.inf, math.nan], dtype=dtype)
    which = torch.randint(0, 12, shape, generator=generator(seed + 1))
    return torch.where(which < len(special), special[which.clamp(max=len(special) - 1)], v)


def backward(grad, v):
    return torch.ops.tandem_cuda.tandem_count_backward(grad, v, 0.7, 1.5)


def fire(time_steps, mode, threshold=0.7, leak=0.9):
    def f(current, scale, bias, potential):
        return ops.integrate_and_fire(
            current, time_steps, bias, potential, scale=scale, mode=mode, threshold=threshold, leak=leak
        )

    return f


def operators(time_steps, neurons, dtype, seed):
    """Every operator as name -> (f, its tensors). `neurons`: [N, C, *spatial]."""
    bits = planes(time_steps, *neurons, seed=seed)
    v = gates(*neurons, dtype=dtype, seed=seed + 1)
    cases = {
        "pack_spikes": (ops.pack_spikes, (train(time_steps, *neurons, seed=seed).to(dtype),)),
        "unpack_spikes": (lambda bits: ops.unpack_spikes(bits, time_steps, dtype), (bits,)),
        "spike_count": (lambda bits: ops.spike_count(bits, dtype), (bits,)),
        "tandem_count": (lambda bits, v: ops.tandem_count(bits, v, time_steps), (bits, v)),
        "tandem_count_backward": (backward, (random(*neurons, dtype=dtype, seed=seed), v)),
    }
    channels = neurons[1]
    affine = [random(channels, dtype=dtype, seed=seed + i) for i in range(2)]
    for mode in MODES:
        shape = (time_steps, *neurons) if mode == "series" else neurons
        current = 2 * random(*shape, dtype=dtype, seed=seed + 2)
        tensors = (current, *affine, random(*neurons, dtype=dtype, seed=seed + 3))
        cases[f"integrate_and_fire {mode}"] = (fire(time_steps, mode), tensors)
    return cases


def pooled(*arguments, time_steps):
    def f(bits, count=None):
        return ops.max_pool_spikes(bits, *arguments, time_steps=time_steps, count=count, want_count=True)

    return f


@pytest.mark.parametrize("arguments", [(2,), (3, 2, 1), ((2, 3), 1, 1, (3, 1)), (2, 3, 1, 1, True)])
@pytest.mark.parametrize("time_steps", [*TIME_STEPS, 128, 129, 300])
@pytest.mark.parametrize("shape", [(3, 5, 9, 7), (0, 3, 8, 8), (2, 64, 16, 16)])
def test_max_pool_spikes(device, arguments, time_steps, shape):
    bits = planes(time_steps, *shape, seed=time_steps, rate=0.6)
    count = torch.randint(0, 40, shape, generator=generator(1), dtype=torch.int32)
    f = pooled(*arguments, time_steps=time_steps)
    identical(f(on_device(bits, device)), f(bits), device)
    identical(f(on_device(bits, device), on_device(count, device)), f(bits, count), device)
    for view in views(bits):
        identical(f(on_device(view, device)), f(view), device)


NAMES = tuple(operators(1, (1, 1), torch.float32, 0))
every_operator = pytest.mark.parametrize("name", NAMES)
every_dtype = pytest.mark.parametrize("dtype", FLOATS)
every_length = pytest.mark.parametrize("time_steps", TIME_STEPS)


@given(
    time_steps=st.sampled_from(TIME_STEPS),
    neurons=st.lists(st.integers(0, 9), min_size=2, max_size=4),
    dtype=st.sampled_from(FLOATS),
    seed=SEEDS,
)
def test_random_shapes(time_steps, neurons, dtype, seed, device):
    if too_many(device, seed):
        return
    for f, tensors in operators(time_steps, neurons, dtype, seed).values():
        identical(f(*(on_device(x, device) for x in tensors)), f(*tensors), device)


@given(
    time_steps=st.sampled_from(TIME_STEPS),
    neurons=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    dtype=st.sampled_from(DENSE),
    seed=SEEDS,
)
def test_dense_dtypes(time_steps, neurons, dtype, seed, device):
    spikes = train(time_steps, *neurons, seed=seed).to(dtype)
    bits = ops.pack_spikes(spikes)
    identical(ops.pack_spikes(on_device(spikes, device)), bits, device)
    if dtype != torch.float16:
        got = ops.unpack_spikes(on_device(bits, device), time_steps, dtype)
        identical(got, ops.unpack_spikes(bits, time_steps, dtype), device)


@given(
    time_steps=st.sampled_from(TIME_STEPS),
    mode=st.sampled_from(MODES),
    threshold=st.sampled_from(THRESHOLDS),
    leak=st.sampled_from(LEAKS),
    dtype=st.sampled_from(FLOATS),
    given_=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    seed=SEEDS,
)
def test_integrate_and_fire_of_any_neuron(time_steps, mode, threshold, leak, dtype, given_, seed, device):
    shape = (2, 7, 3)
    current = 2 * random(*((time_steps, *shape) if mode == "series" else shape), dtype=dtype, seed=seed)
    optional = [random(*s, dtype=dtype, seed=seed + i) for i, s in enumerate([(7,), (7,), shape], 1)]
    tensors = [current, *(x if present else None for x, present in zip(optional, given_, strict=True))]
    f = fire(time_steps, mode, threshold, leak)
    identical(f(*(None if x is None else on_device(x, device) for x in tensors)), f(*tensors), device)


@every_operator
@every_dtype
@every_length
@pytest.mark.parametrize("neurons", [(16, 64, 28, 28), (3, 129, 31, 33)])
def test_many_neurons(name, dtype, time_steps, neurons, device):
    """Rows that are aligned and rows that are not, many blocks of them."""
    if device == "cpu":
        neurons = (2, *neurons[1:2], 3, 3)
    f, tensors = operators(time_steps, neurons, dtype, 0)[name]
    identical(f(*(on_device(x, device) for x in tensors)), f(*tensors), device)


@every_operator
@every_length
def test_any_strides(name, time_steps, device):
    f, tensors = operators(time_steps, (2, 5, 4, 3), torch.float32, 0)[name]
    for i, tensor in enumerate(tensors):
        for view in views(tensor):
            arguments = [*tensors[:i], view, *tensors[i + 1 :]]
            identical(f(*(on_device(x, device) for x in arguments)), f(*arguments), device)


@every_operator
def test_misaligned(name, device):
    """Contiguous memory that begins one element behind a boundary."""
    f, tensors = operators(8, (2, 8, 4, 4), torch.float32, 0)[name]
    moved = []
    for x in tensors:
        memory = torch.zeros(x.numel() + 1, dtype=x.dtype)
        memory[1:] = x.flatten()
        moved.append(memory[1:].view(x.shape))
    identical(f(*(on_device(x, device) for x in moved)), f(*tensors), device)


@every_operator
@every_length
def test_empty_batch(name, time_steps, device):
    f, tensors = operators(time_steps, (0, 3, 2), torch.float32, 0)[name]
    identical(f(*(x.to(device) for x in tensors)), f(*tensors), device)


@every_operator
def test_current_stream(name, cuda):
    """What the current stream has yet to write is what the operator reads."""
    f, tensors = operators(9, (4, 16, 8, 8), torch.float32, 0)[name]
    late = [x.to(cuda) for x in tensors]
    early = [torch.zeros_like(x) for x in late]
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        f(*early)  # so that nothing has to be loaded, and no memory to be had, while the stream sleeps: both may wait
        torch.cuda.synchronize()
        torch.cuda._sleep(1_000_000_000)
        for to, x in zip(early, late, strict=True):
            to.copy_(x)
        got = f(*early)
        assert not stream.query(), "the operator waited, or the stream did not sleep for long enough"
    stream.synchronize()
    want = f(*tensors)
    assert any(x.any() for x in ([want] if isinstance(want, torch.Tensor) else want))
    identical(got, want, cuda)


@every_operator
@every_dtype
def test_graph_capture(name, dtype, device):
    """A captured call computes anew from what its arguments hold when it is replayed."""
    (f, first), (_, second) = (operators(9, (4, 16, 8, 8), dtype, seed)[name] for seed in (0, 10))
    arguments = [x.to(device, copy=True) for x in first]
    got, replay = captured(device, lambda: f(*arguments))
    for tensors in (first, second):
        for to, x in zip(arguments, tensors, strict=True):
            to.copy_(x)
        replay()
        identical(got, f(*tensors), device)


@every_operator
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch finds fewer than two CUDA devices")
def test_another_device_than_the_current_one(name, cuda):
    f, tensors = operators(9, (2, 5, 4, 3), torch.float32, 0)[name]
    identical(f(*(x.to(f"{cuda}:1") for x in tensors)), f(*tensors), f"{cuda}:1")
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
    assert f"pack_spikes: spikes must be 0 or 1, got {odd:g}" in result.stdout


def test_bad_input_has_the_messages_of_the_cpu(device):
    """Of the operators themselves, which the checks in Python precede."""
    raw = torch.ops.tandem_cuda
    bits, v = torch.zeros(2, 2, 3, dtype=torch.uint8), torch.zeros(2, 3)
    calls = [
        (raw.pack_spikes, (v[0],)),
        (raw.pack_spikes, (torch.zeros(0, 3),)),
        (raw.pack_spikes, (v.long(),)),
        (raw.unpack_spikes, (bits.float(), 9, torch.float32)),
        (raw.unpack_spikes, (bits, 8, torch.float32)),
        (raw.unpack_spikes, (bits, 9, torch.int64)),
        (raw.spike_count, (bits[0, 0], torch.float32)),
        (raw.spike_count, (bits, torch.float16)),
        (raw.tandem_count, (bits, v.half(), 9, 1.0, 1.0, 1.0)),
        (raw.tandem_count, (bits, v[0], 9, 1.0, 1.0, 1.0)),
        (raw.tandem_count, (bits, v, 9, 0.0, 1.0, 1.0)),
        (raw.tandem_count, (bits, v, 9, 1.0, 1.0, 0.0)),
        (raw.tandem_count_backward, (v.double(), v, 1.0, 1.0)),
        (raw.tandem_count_backward, (v[0], v, 1.0, 1.0)),
        (raw.tandem_count_backward, (v, v, math.inf, 1.0)),
        (raw.tandem_count_backward, (v, v, 1.0, math.nan)),
    ]
    for op, arguments in calls:
        messages = []
        for place in ("cpu", device):
            with pytest.raises(RuntimeError) as error:
                op(*(x.to(place) if isinstance(x, torch.Tensor) else x for x in arguments))
            messages.append(next(line for line in str(error.value).splitlines() if f"{op.__name__}: " in line))
        assert messages[0] == messages[1]
