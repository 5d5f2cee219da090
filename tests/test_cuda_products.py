"""Products on a CUDA device: bit for bit what the CPU computes where sums are exact, close to float64 elsewhere.

Where there is no device the CPU stands in for it, as in test_cuda_operators.py.
"""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tandem_cuda as tc
from exact import (
    ENGINES,
    ISAS,
    RATES,
    SEEDS,
    TIME_STEPS,
    convolutions,
    depthwise_convolutions,
    dyadic,
    examples,
    generator,
    int8,
    out_shape,
    packed_on_cuda,
    planes,
    product_of_values,
    whole_weights,
)
from neurons import BRANCHES, any_neuron, every_kind, joining, state_of
from pairwise import pairs
from tandem_cuda import _C, IF, ops
from tandem_cuda.ops.tandem_norm_count import norm_gradients
from test_cuda_operators import captured, identical, on_device, too_many
from test_pack_weight import placed

KINDS = ("float32", "float64", "float16", "bfloat16", "int8", "int16")
every_engine = pytest.mark.parametrize("engine", ["auto", "event", "dense"])


def operands(kind, *shape, seed):
    """Weights, the scale that they need, and the dtype of the neurons."""
    if kind in ("int8", "int16"):
        whole = int8(*shape, seed=seed)
        # The steps of 16-bit weights are multiples of 128, with the sums and scales of 8-bit ones.
        weight = whole if kind == "int8" else whole.to(torch.int16) * 128
        return weight, dyadic(shape[0], seed=seed + 1) / (1 if kind == "int8" else 128), torch.float32
    dtype = torch.float64 if kind == "float64" else torch.float32
    return dyadic(*shape, seed=seed, dtype=getattr(torch, kind)), None, dtype


def moved(named, device):
    return {k: on_device(v, device) if isinstance(v, torch.Tensor) else v for k, v in named.items()}


def has_tensor_cores(device):
    return device == "cpu" or torch.cuda.get_device_capability() >= (8, 0)


def served(kind, engine, device):
    """Tensor cores have no float64 sums."""
    return engine != "dense" or (kind != "float64" and has_tensor_cores(device))


@every_engine
@examples(200)
@given(
    case=st.one_of(convolutions(), depthwise_convolutions()),
    time_steps=st.one_of(st.sampled_from(TIME_STEPS), st.integers(1, 40)),
    kind=st.sampled_from(KINDS),
    rate=st.sampled_from(RATES),
    neuron=any_neuron((1.0,)),
    optional=st.booleans(),
    branch=st.sampled_from(BRANCHES),
    seed=SEEDS,
)
def test_conv2d(engine, case, time_steps, kind, rate, neuron, optional, branch, seed, device):
    if not served(kind, engine, device) or too_many(device, seed):
        return
    bits = planes(time_steps, *case["input"], seed=seed, rate=rate)
    weight, scale, dtype = operands(kind, *case["weight"], seed=seed + 1)
    bias = dyadic(case["weight"][0], seed=seed + 2, dtype=dtype) if optional else None
    state = state_of(neuron, *out_shape(case), seed=seed + 3, span=2, dtype=dtype) if optional else None
    named = {"scale": scale, "bias": bias, **case["geometry"]}
    spiking = {**named, "state": state, "time_steps": time_steps, "neuron": neuron, "want_sum": True}
    spiking |= joining(branch, time_steps, *out_shape(case), seed=seed + 4, dtype=dtype)
    want = ops.spiking_conv2d(bits, weight, **spiking, want_state=True, engine="event")
    here, there = on_device(bits, device), on_device(weight, device)
    got = ops.spiking_conv2d(here, there, **moved(spiking, device), want_state=True, engine=engine)
    identical(got, want, device)
    want = ops.count_conv2d(bits, weight, **named, engine="event")
    identical(ops.count_conv2d(here, there, **moved(named, device), engine=engine), want, device)


@pairs(
    engine=["auto", "event", "dense"],
    kind=KINDS,
    shape=[(5, 300, 70), (0, 8, 8), (1, 1, 1), (130, 64, 16)],
    time_steps=[1, 8, 19],
)
def test_linear(engine, kind, shape, time_steps, device):
    if not served(kind, engine, device):
        pytest.skip("tensor cores serve no float64, and no device older than 8.0")
    n, inputs, outputs = shape
    bits = planes(time_steps, n, inputs, seed=1)
    weight, scale, dtype = operands(kind, outputs, inputs, seed=2)
    named = {"scale": scale, "bias": dyadic(outputs, seed=3, dtype=dtype)}
    want = ops.spiking_linear(bits, weight, **named, time_steps=time_steps, engine="event")
    here, there = on_device(bits, device), on_device(weight, device)
    got = ops.spiking_linear(here, there, **moved(named, device), time_steps=time_steps, engine=engine)
    identical(got, want, device)
    want = ops.count_linear(bits, weight, **named, engine="event")
    identical(ops.count_linear(here, there, **moved(named, device), engine=engine), want, device)


def a_size_that_fills(kind, device):
    """Arguments of products with large tiles and tiles of warpgroups; smaller products take small tiles."""
    if not has_tensor_cores(device):
        pytest.skip("no tensor cores below compute capability 8.0")
    sizes = (2 if device == "cpu" else 200, 48, 12, 12)  # 450 blocks of large tiles, if not more
    weight, scale, dtype = operands(kind, 72, 48, 3, 3, seed=2)
    return sizes, weight, {"scale": scale, "bias": dyadic(72, seed=3, dtype=dtype), "padding": (1, 1)}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "float64"])
@pytest.mark.parametrize("time_steps", [3, 8, 19])
@every_kind
def test_spikes_that_fill_the_device(kind, time_steps, neuron, device):
    """Every digit, number of time steps and kind of neuron is another kernel."""
    sizes, weight, named = a_size_that_fills(kind, device)
    branch, optional = BRANCHES[1 + time_steps % 3], time_steps == 19
    out = sizes[0], 72, *sizes[2:]
    bits = planes(time_steps, *sizes, seed=1, rate=0.1)
    named |= {"time_steps": time_steps, "neuron": neuron, "want_sum": True, "want_state": True}
    named |= {"state": state_of(neuron, *out, seed=4, span=2) if optional else None}
    named |= joining(branch, time_steps, *out, seed=5)
    want = ops.spiking_conv2d(bits, weight, **named, engine="event")
    here, there = on_device(bits, device), on_device(weight, device)
    identical(ops.spiking_conv2d(here, there, **moved(named, device), engine="dense"), want, device)


@pairs(kind=[kind for kind in KINDS if kind != "float64"], radix=[0, 1, 4, 8])
def test_counts_and_values_that_fill_the_device(kind, radix, device):
    sizes, weight, named = a_size_that_fills(kind, device)
    bits = planes(radix or 19, *sizes, seed=1, rate=0.1)
    want = ops.count_conv2d(bits, weight, **named, radix=radix, engine="event")
    here, there = on_device(bits, device), on_device(weight, device)
    identical(ops.count_conv2d(here, there, **moved(named, device), radix=radix, engine="dense"), want, device)


def check_values(bits, weight, scale, bias, radix, engine, device, **geometry):
    """Assert that a product of the values of radix spikes is that of the CPU, and what it is meant to be."""
    f = ops.count_linear if weight.dim() == 2 else ops.count_conv2d
    named = {"scale": scale, "bias": bias, **geometry}
    want = f(bits, weight, **named, radix=radix, engine="event")
    assert torch.equal(want, product_of_values(bits, weight, **named))
    got = f(on_device(bits, device), on_device(weight, device), **moved(named, device), radix=radix, engine=engine)
    identical(got, want, device)


@every_engine
@examples(200)
@given(
    case=st.one_of(convolutions(), depthwise_convolutions()),
    radix=st.integers(1, 8),
    kind=st.sampled_from(KINDS),
    rate=st.sampled_from(RATES),
    optional=st.booleans(),
    seed=SEEDS,
)
def test_conv2d_of_radix_spikes(engine, case, radix, kind, rate, optional, seed, device):
    if not served(kind, engine, device) or too_many(device, seed):
        return
    bits = planes(radix, *case["input"], seed=seed, rate=rate)
    weight, scale, dtype = operands(kind, *case["weight"], seed=seed + 1)
    bias = dyadic(case["weight"][0], seed=seed + 2, dtype=dtype) if optional else None
    check_values(bits, weight, scale, bias, radix, engine, device, **case["geometry"])


@pairs(
    engine=["auto", "event", "dense"],
    kind=KINDS,
    shape=[(5, 300, 70), (0, 8, 8), (1, 1, 1), (130, 64, 16), (1, 96, 40)],
    radix=range(1, 9),
    offset=[0, 1, 4],
)
def test_linear_of_radix_spikes(engine, kind, shape, radix, offset, device):
    """The planes of any alignment: the integer engine reads them as they are, or copies them."""
    if not served(kind, engine, device):
        pytest.skip("tensor cores serve no float64, and no device older than 8.0")
    n, inputs, outputs = shape
    bits = planes(radix, n, inputs, seed=radix, rate=0.6)
    bits = placed(bits.flatten(), offset).view_as(bits) if n else bits
    weight, scale, dtype = operands(kind, outputs, inputs, seed=2)
    check_values(bits, weight, scale, dyadic(outputs, seed=3, dtype=dtype), radix, engine, device)


@every_engine
@pytest.mark.parametrize("weight", [-128, 127])
@pytest.mark.parametrize("inputs", [65_793, 65_794])
def test_linear_of_the_largest_values(engine, weight, inputs, device):
    """The most inputs of which 32 bits hold the sums whatever the weights, and one more."""
    bits = torch.full((1, 3, inputs), 255, dtype=torch.uint8)
    weights, scale = torch.full((16, inputs), weight, dtype=torch.int8), torch.rand(16, generator=generator(1))
    if engine == "dense" and inputs > 65_793 and device != "cpu":
        named = {"scale": scale.to(device), "radix": 8, "engine": "dense"}
        with pytest.raises(RuntimeError, match=r"counts or values up to a sum of 2\^24"):
            ops.count_linear(bits.to(device), weights.to(device), **named)
    elif served("int8", engine, device):
        check_values(bits, weights, scale, None, 8, engine, device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [1, 10, 17, 40, 200])
def test_packed_weights(kind, outputs, device):
    """Of layers for which tensor cores have no order of their own."""
    weight, _, _ = operands(kind, outputs, 6, 3, 3, seed=outputs)
    packed = ops.pack_weight(weight) if device == "cpu" else packed_on_cuda(weight)
    identical(ops.pack_weight(on_device(weight, device)), packed, device)
    strided = weight.to(memory_format=torch.channels_last)
    identical(ops.pack_weight(on_device(strided, device)), packed, device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [1, 2])
def test_packed_weights_serve_every_engine(kind, groups, device):
    """Rows as of narrow layers, behind them what tensor cores read, and then the units of floats."""
    weight, scale, _ = operands(kind, 48, 64 // groups, 3, 3, seed=3)
    bits = planes(8, 2, 64, 5, 5, seed=4)
    here, there = on_device(bits, device), on_device(weight, device)
    packed = ops.pack_weight(there, groups)
    _C.set_cpu_isa(ISAS[0])  # which appends nothing; with matrix tiles the CPU does
    narrow = ops.pack_weight(weight, groups) if device == "cpu" else packed_on_cuda(weight, groups)
    units = len(weight) if narrow.dtype == torch.int32 else 0
    rows = narrow.numel() - units
    identical(packed[:rows], narrow[:rows], device)
    identical(packed[packed.numel() - units :], narrow[rows:], device)
    assert device == "cpu" or (packed.numel() > narrow.numel()) == (kind != "float64")
    named = {"scale": scale, "padding": 1, "groups": groups, "time_steps": 8}
    want = ops.spiking_conv2d(bits, weight, **named, engine="event")
    for engine in ("auto", "event", "dense"):
        if served(kind, engine, device):
            got = ops.spiking_conv2d(here, there, **moved(named, device), packed=packed, engine=engine)
            identical(got, want, device)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_packed_weights_of_any_alignment(kind, device):
    """Whoever loads packed weights chooses where they lie, and where they are packed to."""
    weight, scale, _ = operands(kind, 48, 64, 3, 3, seed=3)
    bits = planes(8, 2, 64, 5, 5, seed=4)
    here, there = on_device(bits, device), on_device(weight, device)
    packed = ops.pack_weight(there)
    named = {"scale": scale, "padding": 1, "time_steps": 8}
    want = ops.spiking_conv2d(bits, weight, **named, engine="event")
    for offset in (1, 2, 3, 5):
        out = ops.pack_weight(there, out=placed(torch.zeros_like(packed), offset))
        identical(out, packed.cpu(), device)
        identical(ops.spiking_conv2d(here, there, **moved(named, device), packed=out), want, device)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_packed_narrow_weights_under_autocast(kind, device):
    """Which hands the operators the weights in float32: as packed, they have another size on a device."""
    weight, _, _ = operands(kind, 48, 64, 3, 3, seed=3)
    bits = planes(8, 2, 64, 5, 5, seed=4)
    here, there = on_device(bits, device), on_device(weight, device)
    packed = ops.pack_weight(there)
    with torch.autocast(device, dtype=torch.bfloat16):
        got = ops.spiking_conv2d(here, there, padding=1, time_steps=8, packed=packed)
        count = ops.count_conv2d(here, there, padding=1, packed=packed)
    identical(got, ops.spiking_conv2d(bits, weight, padding=1, time_steps=8, engine="event"), device)
    identical(count, ops.count_conv2d(bits, weight, padding=1), device)


@pytest.mark.parametrize("density", [0.0, 0.001, 0.01, 0.03, 0.2, 1.0])
def test_auto_at_densities_on_both_sides_of_the_crossover(density, device):
    bits = planes(8, 4, 64, 16, 16, seed=5, rate=density)
    weight = dyadic(64, 64, 3, 3, seed=6)
    want = ops.spiking_conv2d(bits, weight, padding=1, time_steps=8, want_sum=True, engine="event")
    got = ops.spiking_conv2d(bits.to(device), weight.to(device), padding=1, time_steps=8, want_sum=True)
    identical(got, want, device)


# What the CPU's float32 additions of random weights of both signs may be off, over the sum of the weights' sizes.
ROUNDING = 2**-21


@every_engine
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("channels", "groups"), [(128, 1), (32, 32)])
def test_random_weights(engine, kind, channels, groups, device):
    """On CUDA, every engine's sums are the sums of whole weights, rounded once; the CPU's are close to them."""
    if not served(kind, engine, device):
        pytest.skip("no tensor-core engine below compute capability 8.0")
    bits = planes(8, 2, channels, 8, 8, seed=7, rate=0.2)
    weight = torch.randn(64, channels // groups, 3, 3, generator=generator(8)).to(getattr(torch, kind))
    named = {"padding": 1, "groups": groups}
    whole, unit = whole_weights(weight)
    for radix in (0, 8):
        exact, sizes = (ops.count_conv2d(bits, x, radix=radix, **named, engine="event") for x in (whole, whole.abs()))
        want = exact.float() * unit.float().view(-1, 1, 1)
        there = bits.to(device), weight.to(device)
        got = ops.count_conv2d(*there, radix=radix, **named, engine=engine).cpu()
        if device == "cpu":
            assert ((got - want).double().abs() <= ROUNDING * sizes * unit.view(-1, 1, 1)).all()
        else:
            assert torch.equal(got, want)
    firing = {"time_steps": 8, "neuron": IF(2.0), "want_sum": True, **named}
    got = ops.spiking_conv2d(*there, **firing, engine=engine)
    identical(got, [x.cpu() for x in ops.spiking_conv2d(*there, **firing, engine="event")], device)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weights_that_are_not_finite(value, cuda):
    """They make their own channel's sums NaN, whichever inputs spike."""
    bits, weight = planes(1, 2, 32, 4, 4, seed=1).to(cuda), dyadic(32, 32, 3, 3, seed=2).to(cuda)
    right = ops.count_conv2d(bits, weight, padding=1)
    weight[5, 3, 1, 1] = value
    for engine in ENGINES if has_tensor_cores(cuda) else ENGINES[:2]:
        got = ops.count_conv2d(bits, weight, padding=1, engine=engine)
        assert got[:, 5].isnan().all()
        got[:, 5] = right[:, 5]
        assert torch.equal(got, right)


@pytest.mark.parametrize("rate", [0.001, 0.3])
@pytest.mark.parametrize(("outputs", "kernel"), [(8, "gather_kernel"), (64, "integer_spiking_kernel")])
def test_which_engine_auto_chooses(outputs, kernel, rate, cuda):
    """By the layer alone."""
    if not has_tensor_cores(cuda):
        pytest.skip("no tensor-core engine below compute capability 8.0")
    bits = planes(8, 64, 64, 16, 16, seed=5, rate=rate).to(cuda)
    weight = torch.randn(outputs, 64, 3, 3, generator=generator(8)).to(cuda)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
        ops.spiking_conv2d(bits, weight, padding=1, time_steps=8)
        torch.cuda.synchronize()
    names = [event.name for event in recorded.events() or []]
    if not any("kernel" in name for name in names):
        pytest.skip("this machine does not let programs record their kernels")
    alike = {kernel, kernel.replace("_spiking", "_small_spiking"), kernel.replace("integer", "warpgroup")}
    assert any(each in name for each in alike for name in names)


def test_streams_beside_each_other(device):
    """Each stream its own inputs, results and count of spikes; nothing is shared."""
    module = torch.get_device_module(device)
    weight = dyadic(64, 64, 3, 3, seed=6)
    here, packed = weight.to(device), ops.pack_weight(weight.to(device))
    inputs = [planes(8, 4, 64, 16, 16, seed=i, rate=(0.001, 0.1)[i % 2]) for i in range(6)]
    there = [bits.to(device) for bits in inputs]
    streams = [module.Stream() for _ in inputs]
    module.synchronize()
    results = []
    for _ in range(3):
        for stream, bits in zip(streams, there, strict=True):
            with module.stream(stream):
                results.append(ops.spiking_conv2d(bits, here, packed=packed, padding=1, time_steps=8))
    module.synchronize()
    wants = [ops.spiking_conv2d(bits, weight, padding=1, time_steps=8, engine="event") for bits in inputs]
    for got, want in zip(results, wants * 3, strict=True):
        identical(got, want, device)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch finds fewer than two CUDA devices")
def test_another_device_than_the_current_one(cuda):
    bits, weight = planes(9, 2, 32, 9, 9, seed=1), dyadic(32, 32, 3, 3, seed=2)
    want = ops.spiking_conv2d(bits, weight, padding=1, time_steps=9, engine="event")
    for engine in ENGINES if has_tensor_cores(cuda) else ENGINES[:2]:
        got = ops.spiking_conv2d(bits.to("cuda:1"), weight.to("cuda:1"), padding=1, time_steps=9, engine=engine)
        identical(got, want, "cuda:1")
    with pytest.raises(ValueError, match="spiking_conv2d: weight must be on the device of bits"):
        ops.spiking_conv2d(bits.to("cuda:1"), weight.to("cuda:0"), time_steps=9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(16, 40, 9, 9), (1300, 5), (3, 129, 17, 16)])
def test_gradient_behind_batch_norm(shape, dtype, device):
    random = generator(0)
    product, grad = (torch.randn(shape, generator=random, dtype=dtype) for _ in range(2))
    gamma, beta = (torch.randn(shape[1], generator=random, dtype=dtype) for _ in range(2))
    var, mean = torch.var_mean(product, [d for d in range(product.dim()) if d != 1], correction=0)
    arguments = (grad, product, mean, var, gamma, beta)
    unit = torch.rand(shape[1], generator=random, dtype=dtype)
    want = norm_gradients(*arguments, 1e-5, 0.7, 1.5, unit)
    got = norm_gradients(*(on_device(x, device) for x in arguments), 1e-5, 0.7, 1.5, on_device(unit, device))
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.cpu(), w, rtol=0, atol=tolerance * max(1.0, w.abs().max().item()))


@every_engine
def test_graph_on_a_stream(engine, device):
    if not served("float32", engine, device):
        pytest.skip("no tensor-core engine below compute capability 8.0")
    bits, weight = planes(8, 2, 32, 9, 9, seed=9), dyadic(32, 32, 3, 3, seed=10)
    other = planes(8, 2, 32, 9, 9, seed=11)
    here, there = bits.to(device, copy=True), weight.to(device)
    packed = ops.pack_weight(there)
    named = {"packed": packed, "padding": 1, "time_steps": 8, "engine": engine}
    got, replay = captured(device, lambda: ops.spiking_conv2d(here, there, **named))
    here.copy_(other)
    replay()
    identical(got, ops.spiking_conv2d(other, weight, padding=1, time_steps=8, engine="event"), device)


def dyadic_network():
    """A network all of whose sums are exact, of every kind of layer."""
    net = torch.nn.Sequential(
        tc.Encode(9),
        tc.TandemConv2d(3, 32, 3, padding=1),
        tc.SpikingAvgPool2d(2),
        tc.TandemConv2d(32, 32, 3, groups=2),
        tc.SpikingMaxPool2d(2),
        tc.TandemConvTranspose2d(32, 16, 2, stride=2),
        torch.nn.Flatten(),
        tc.TandemLinear(16 * 36, 20),
        tc.Decode(),
        torch.nn.Linear(20, 10),
    )
    return with_exact_weights(net)


def with_exact_weights(net):
    for i, parameter in enumerate(net.parameters()):
        with torch.no_grad():
            parameter.copy_(dyadic(*parameter.shape, seed=i) / (4 if parameter.dim() > 1 else 1))
    return net.eval()


def dyadic_volumes():
    """The same of volumes."""
    net = torch.nn.Sequential(
        tc.Encode(9),
        tc.TandemConv3d(3, 32, 3, padding=1),
        tc.SpikingMaxPool3d((1, 2, 2)),
        tc.TandemConv3d(32, 16, (2, 3, 3), stride=(2, 1, 1), groups=2),
        tc.SpikingAvgPool3d((1, 2, 2)),
        torch.nn.Flatten(),
        tc.TandemLinear(16 * 2 * 9, 20),
        tc.Decode(),
        torch.nn.Linear(20, 10),
    )
    return with_exact_weights(net)


@pytest.mark.parametrize(("make", "size"), [(dyadic_network, (16, 16)), (dyadic_volumes, (4, 16, 16))])
def test_network_of_the_cpu(device, make, size):
    """The spikes and read-outs of the CPU, in eager mode, frozen, and in a graph."""
    net, x = make(), dyadic(4, 3, *size, seed=1)
    # cuDNN may multiply real input by transforms of the weights, whose factors are not dyadic.
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
        want, counts = net(x), net[:-2](x).count
        assert 0 < counts.mean() < 9
        twin, moved = copy.deepcopy(net).to(device), x.to(device, copy=True)
        identical(twin(moved), want, device)
        frozen = tc.freeze(net).to(device)
        identical(frozen(moved), want, device)
        got, replay = captured(device, lambda: frozen(moved))
        moved.copy_(x.flip(0))
        replay()
        identical(got, want.flip(0), device)


@pytest.mark.parametrize("norm", [None, "batch"])
def test_training_step(norm, device):
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
    results = []
    for place in ("cpu", device):
        twin = copy.deepcopy(net).to(place)  # each with running statistics of its own, which move
        torch.nn.functional.cross_entropy(twin(x.to(place)), torch.arange(4, device=place)).backward()
        results.append([y.cpu() for y in (*(p.grad for p in twin.parameters()), *twin.buffers())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert any(a.any() for a in results[0])


def test_bad_input(device):
    bits, weight = planes(8, 1, 4, 5, 5, seed=1).to(device), dyadic(4, 4, 3, 3, seed=2).to(device)
    with pytest.raises(ValueError, match="spiking_conv2d: weight must be on the device of bits"):
        ops.spiking_conv2d(bits, weight.to("cpu" if device == "cuda" else "meta"), time_steps=8)
    with pytest.raises(ValueError, match=r"spiking_conv2d: weight must be \[O"):
        ops.spiking_conv2d(bits, weight[0], time_steps=8)


def test_weights_that_tensor_cores_do_not_take(cuda):
    bits, weight = planes(8, 1, 4, 5, 5, seed=1).to(cuda), dyadic(4, 4, 3, 3, seed=2).to(cuda)
    with pytest.raises(RuntimeError, match="engine must be 'event' or 'auto' for Double weights on a CUDA device"):
        ops.spiking_conv2d(bits, weight.double(), time_steps=8, engine="dense")


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.int8, 16_777_215), (torch.int16, 65_536), (torch.float32, 16_843_009)]
)
def test_sums_that_do_not_fit(cuda, dtype, most):
    bits, scale = torch.zeros(1, 1, most + 1, dtype=torch.uint8, device=cuda), torch.ones(1, device=cuda)
    weight = torch.ones(1, most + 1, dtype=dtype, device=cuda)
    with pytest.raises(RuntimeError, match=f"must have at most {most} inputs per neuron on a CUDA device"):
        ops.count_linear(bits, weight, scale=scale, radix=8)


@every_engine
def test_packed_weights_that_have_changed(engine, cuda):
    """A call reads the packed weights it is given or the weights as they are, never one in units of the other."""
    if not served("float32", engine, cuda):
        pytest.skip("no tensor-core engine below compute capability 8.0")
    bits, weight = planes(8, 2, 8, 5, 5, seed=1).to(cuda), dyadic(8, 8, 3, 3, seed=2).to(cuda)
    packed, old = ops.pack_weight(weight), ops.count_conv2d(bits, weight)
    weight *= 8
    got = ops.count_conv2d(bits, weight, packed=packed, engine=engine)
    assert torch.equal(got, old) or torch.equal(got, 8 * old)
