"""Products on a CUDA device: bit for bit what the CPU computes where sums are exact, close to float64 elsewhere."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tandem_cuda as tc
from exact import (
    ENGINES,
    LEAKS,
    RATES,
    SEEDS,
    TIME_STEPS,
    convolutions,
    depthwise_convolutions,
    dyadic,
    int8,
    out_shape,
    planes,
)
from tandem_cuda import ops
from tandem_cuda import reference as ref
from test_cuda_operators import DEVICE, identical, on_device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

KINDS = ("float32", "float64", "float16", "bfloat16", "int8")
every_engine = pytest.mark.parametrize("engine", ["auto", "event", "dense"])


def operands(kind, *shape, seed):
    """Weights, the scale that they need, and the dtype of the neurons."""
    if kind == "int8":
        return int8(*shape, seed=seed), dyadic(shape[0], seed=seed + 1), torch.float32
    dtype = torch.float64 if kind == "float64" else torch.float32
    return dyadic(*shape, seed=seed, dtype=getattr(torch, kind)), None, dtype


def moved(named):
    return {k: on_device(v) if isinstance(v, torch.Tensor) else v for k, v in named.items()}


def served(kind, engine):
    """The tensor-core engine has float32 sums of floating-point weights."""
    return engine != "dense" or kind in ("float32", "float16", "bfloat16")


@every_engine
@settings(max_examples=200)
@given(
    case=st.one_of(convolutions(), depthwise_convolutions()),
    time_steps=st.one_of(st.sampled_from(TIME_STEPS), st.integers(1, 40)),
    kind=st.sampled_from(KINDS),
    rate=st.sampled_from(RATES),
    leak=st.sampled_from(LEAKS),
    optional=st.booleans(),
    seed=SEEDS,
)
def test_conv2d(engine, case, time_steps, kind, rate, leak, optional, seed):
    if not served(kind, engine):
        return
    bits = planes(time_steps, *case["input"], seed=seed, rate=rate)
    weight, scale, dtype = operands(kind, *case["weight"], seed=seed + 1)
    bias = dyadic(case["weight"][0], seed=seed + 2, dtype=dtype) if optional else None
    potential = dyadic(*out_shape(case), seed=seed + 3, span=2, dtype=dtype) if optional else None
    named = {"scale": scale, "bias": bias, **case["geometry"]}
    spiking = {**named, "potential": potential, "time_steps": time_steps, "leak": leak, "want_sum": True}
    want = ops.spiking_conv2d(bits, weight, **spiking, want_potential=True, engine="event")
    got = ops.spiking_conv2d(on_device(bits), on_device(weight), **moved(spiking), want_potential=True, engine=engine)
    identical(got, want)
    want = ops.count_conv2d(bits, weight, **named, engine="event")
    identical(ops.count_conv2d(on_device(bits), on_device(weight), **moved(named), engine=engine), want)


@every_engine
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(5, 300, 70), (0, 8, 8), (1, 1, 1), (130, 64, 16)])
@pytest.mark.parametrize("time_steps", [1, 8, 19])
def test_linear(engine, kind, shape, time_steps):
    if not served(kind, engine):
        pytest.skip("the tensor-core engine serves neither float64 nor int8")
    n, inputs, outputs = shape
    bits = planes(time_steps, n, inputs, seed=1)
    weight, scale, dtype = operands(kind, outputs, inputs, seed=2)
    named = {"scale": scale, "bias": dyadic(outputs, seed=3, dtype=dtype)}
    want = ops.spiking_linear(bits, weight, **named, time_steps=time_steps, engine="event")
    got = ops.spiking_linear(on_device(bits), on_device(weight), **moved(named), time_steps=time_steps, engine=engine)
    identical(got, want)
    want = ops.count_linear(bits, weight, **named, engine="event")
    identical(ops.count_linear(on_device(bits), on_device(weight), **moved(named), engine=engine), want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [1, 10, 17, 40, 200])
def test_packed_weights_are_the_same_on_both_devices(kind, outputs):
    weight, _, _ = operands(kind, outputs, 6, 3, 3, seed=outputs)
    packed = ops.pack_weight(weight)
    identical(ops.pack_weight(on_device(weight)), packed)
    strided = weight.to(memory_format=torch.channels_last)
    identical(ops.pack_weight(on_device(strided)), packed)


@pytest.mark.parametrize("density", [0.0, 0.001, 0.01, 0.03, 0.2, 1.0])
def test_auto_at_densities_on_both_sides_of_the_crossover(density):
    bits = planes(8, 4, 64, 16, 16, seed=5, rate=density)
    weight = dyadic(64, 64, 3, 3, seed=6)
    want = ops.spiking_conv2d(bits, weight, padding=1, time_steps=8, want_sum=True, engine="event")
    identical(ops.spiking_conv2d(bits.cuda(), weight.cuda(), padding=1, time_steps=8, want_sum=True), want)


def test_float32_accuracy():
    """Three bf16 terms are as good as float32: no further from float64 than its own sums are."""
    bits = planes(8, 8, 128, 8, 8, seed=7, rate=0.2)
    weight = torch.randn(128, 128, 3, 3, generator=torch.Generator().manual_seed(8))
    exact = ref.spiking_conv2d(bits, weight.double(), padding=1, time_steps=8, threshold=1e9, want_sum=True)[1]
    plain = ops.spiking_conv2d(bits, weight, padding=1, time_steps=8, threshold=1e9, want_sum=True, engine="event")[1]
    got = ops.spiking_conv2d(
        bits.cuda(), weight.cuda(), padding=1, time_steps=8, threshold=1e9, want_sum=True, engine="dense"
    )[1]
    assert (got.cpu() - exact).abs().max() <= 2 * (plain - exact).abs().max()


def sums(bits, weight, engine, terms=3):
    """Of random weights, whose rounding gives away who computed them."""
    arguments = (bits, None, weight, None, None, None, None, [1, 1], [1, 1], [1, 1], 1, 8, 1e9, 1.0)
    return torch.ops.tandem_cuda.spiking_conv2d(*arguments, ENGINES.index(engine), terms, True, False)[1]


@pytest.mark.parametrize(
    ("precision", "terms", "error"), [("highest", 3, 0), ("high", 2, 2**-15), ("medium", 1, 2**-8)]
)
def test_precision_is_that_of_torch(precision, terms, error):
    """Fewer terms spoil a sum by no more than its weights together; 3 are as good as float32."""
    bits = planes(8, 8, 128, 8, 8, seed=7, rate=0.2)
    weight = torch.randn(128, 128, 3, 3, generator=torch.Generator().manual_seed(8))
    exact = sums(bits, weight.double(), "event")
    allowed = error * sums(bits, weight.double().abs(), "event") + 2 * (sums(bits, weight, "event") - exact).abs().max()
    torch.set_float32_matmul_precision(precision)
    try:
        got = ops.spiking_conv2d(
            bits.cuda(), weight.cuda(), padding=1, time_steps=8, threshold=1e9, want_sum=True, engine="dense"
        )[1].cpu()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert ((got - exact).abs() <= allowed).all()
    identical(sums(bits.cuda(), weight.cuda(), "dense", terms), got)
    if error:
        assert (got - exact).abs().max() > 100 * (sums(bits, weight, "event") - exact).abs().max()


@pytest.mark.parametrize(("rate", "engine"), [(0.001, "event"), (0.3, "dense")])
def test_which_engine_auto_chooses(rate, engine):
    """With one term the tensor cores' sums are far from the gather engine's."""
    bits = planes(8, 4, 64, 16, 16, seed=5, rate=rate).cuda()
    weight = torch.randn(64, 64, 3, 3, generator=torch.Generator().manual_seed(8)).cuda()
    engines = {name: sums(bits, weight, name, terms=1) for name in ("event", "dense", "auto")}
    assert not torch.equal(engines["event"], engines["dense"])
    assert torch.equal(engines["auto"], engines[engine])


def test_streams_beside_each_other():
    """Each stream its own inputs, results and count of spikes; nothing is shared."""
    weight = dyadic(64, 64, 3, 3, seed=6)
    here, packed = weight.cuda(), ops.pack_weight(weight.cuda())
    inputs = [planes(8, 4, 64, 16, 16, seed=i, rate=(0.001, 0.1)[i % 2]) for i in range(6)]
    there = [bits.cuda() for bits in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    results = []
    for _ in range(3):
        for stream, bits in zip(streams, there, strict=True):
            with torch.cuda.stream(stream):
                results.append(ops.spiking_conv2d(bits, here, packed=packed, padding=1, time_steps=8))
    torch.cuda.synchronize()
    wants = [ops.spiking_conv2d(bits, weight, padding=1, time_steps=8, engine="event") for bits in inputs]
    for got, want in zip(results, wants * 3, strict=True):
        identical(got, want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch finds fewer than two CUDA devices")
def test_another_device_than_the_current_one():
    bits, weight = planes(9, 2, 32, 9, 9, seed=1), dyadic(32, 32, 3, 3, seed=2)
    want = ops.spiking_conv2d(bits, weight, padding=1, time_steps=9, engine="event")
    for engine in ("auto", "event", "dense"):
        got = ops.spiking_conv2d(bits.to("cuda:1"), weight.to("cuda:1"), padding=1, time_steps=9, engine=engine)
        assert all(x.device.index == 1 for x in got)
        identical(got, want)
    with pytest.raises(ValueError, match="spiking_conv2d: weight must be on the device of bits"):
        ops.spiking_conv2d(bits.to("cuda:1"), weight.to("cuda:0"), time_steps=9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(16, 40, 9, 9), (1300, 5), (3, 129, 17, 16)])
def test_gradient_behind_batch_norm(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    product, grad = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    gamma, beta = (torch.randn(shape[1], generator=generator, dtype=dtype) for _ in range(2))
    var, mean = torch.var_mean(product, [d for d in range(product.dim()) if d != 1], correction=0)
    arguments = (grad, product, mean, var, gamma, beta)
    f = torch.ops.tandem_cuda.tandem_norm_count_backward
    want, got = f(*arguments, 1e-5, 0.7, 1.5), f(*map(on_device, arguments), 1e-5, 0.7, 1.5)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.cpu(), w, rtol=0, atol=tolerance * max(1.0, w.abs().max().item()))


@every_engine
def test_cuda_graph_and_stream(engine):
    bits, weight = planes(8, 2, 32, 9, 9, seed=9), dyadic(32, 32, 3, 3, seed=10)
    other = planes(8, 2, 32, 9, 9, seed=11)
    here, there = bits.cuda(), weight.cuda()
    packed = ops.pack_weight(there)

    def f():
        return ops.spiking_conv2d(here, there, packed=packed, padding=1, time_steps=8, engine=engine)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            f()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = f()
    here.copy_(other)
    graph.replay()
    identical(got, ops.spiking_conv2d(other, weight, padding=1, time_steps=8, engine="event"))


@pytest.mark.parametrize("norm", [None, "batch"])
def test_training_step(norm):
    """A network's loss and gradients on both devices."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        tc.Encode(8),
        tc.TandemConv2d(3, 32, 3, padding=1, norm=norm),
        tc.TandemConv2d(32, 32, 3, stride=2, padding=1, norm=norm),
        torch.nn.Flatten(),
        tc.TandemLinear(32 * 16, 20, norm=norm),
        tc.Decode(),
        torch.nn.Linear(20, 10),
    ).double()
    x = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    gradients = []
    for device in ("cpu", DEVICE):
        twin = net.to(device)
        twin.zero_grad()
        torch.nn.functional.cross_entropy(twin(x.to(device)), torch.arange(4, device=device)).backward()
        gradients.append([p.grad.cpu().clone() for p in twin.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_bad_input():
    bits, weight = planes(8, 1, 4, 5, 5, seed=1), dyadic(4, 4, 3, 3, seed=2)
    with pytest.raises(ValueError, match="spiking_conv2d: weight must be on the device"):
        ops.spiking_conv2d(bits.cuda(), weight, time_steps=8)
    with pytest.raises(RuntimeError, match="engine dense cannot serve float64 weights on a CUDA device"):
        ops.spiking_conv2d(bits.cuda(), weight.double().cuda(), time_steps=8, engine="dense")
    with pytest.raises(ValueError, match=r"spiking_conv2d: weight must be \[O"):
        ops.spiking_conv2d(bits.cuda(), weight[0].cuda(), time_steps=8)
