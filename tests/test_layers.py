"""The layers as a user of nn.Conv2d and nn.Linear meets them; whole networks are in test_networks.py."""

import copy
import inspect
import math

import pytest
import torch
from torch import nn

from exact import META, dyadic, everywhere, planes, same
from layer_cases import every_drop_in
from layers import events, exact_layer
from pairwise import pairs
from tandem_cuda import IF, LIF, Decode, Encode, EncodedInput, SpikeTrain, TandemConv2d, TandemLinear
from tandem_cuda import reference as ref

# --- drop-in ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@every_drop_in
def test_state_dicts_are_those_of_torch(tandem, plain, arguments, bias):
    ours, theirs = tandem(*arguments, bias=bias), plain(*arguments, bias=bias)
    assert isinstance(ours, plain)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    same(tuple(ours.parameters()), tuple(theirs.parameters()))
    other = tandem(*arguments, bias=bias)
    theirs.load_state_dict(other.state_dict())
    same(tuple(theirs.parameters()), tuple(other.parameters()))
    # With norm, what is new is the norm's.
    normed = tandem(*arguments, bias=bias, norm="batch")
    missing, unexpected = normed.load_state_dict(theirs.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("norm.") for name in missing)


@every_drop_in
def test_constructors_begin_as_those_of_torch(tandem, plain, arguments):
    ours, theirs = (list(inspect.signature(c).parameters.values()) for c in (tandem, plain))
    assert [(p.name, p.default, p.kind) for p in ours[: len(theirs)]] == [(p.name, p.default, p.kind) for p in theirs]
    assert [(p.name, p.kind) for p in ours[len(theirs) :]] == [
        ("norm", inspect.Parameter.KEYWORD_ONLY),
        ("neuron", inspect.Parameter.KEYWORD_ONLY),
        ("engine", inspect.Parameter.KEYWORD_ONLY),
        ("learn_threshold", inspect.Parameter.KEYWORD_ONLY),
    ]


@every_drop_in
def test_same_initial_weights_as_torch(tandem, plain, arguments):
    layers = []
    for layer in (tandem, plain):
        torch.manual_seed(3)
        layers.append(layer(*arguments))
    same(*(tuple(layer.parameters()) for layer in layers))


@every_drop_in
def test_dtype_and_device_reach_the_norm(tandem, plain, arguments):
    layer = tandem(*arguments, norm="batch", dtype=torch.float64, device=META)
    norms = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    assert type(layer.norm) is norms[layer.weight.dim()]
    assert layer.norm.num_features == arguments[1]
    assert tandem(*arguments).norm is None
    tensors = [*layer.parameters(), *layer.buffers()]
    assert {x.device for x in tensors} == {META}
    assert {x.dtype for x in tensors} == {torch.float64, torch.int64}


def test_repr():
    text = repr(TandemConv2d(4, 6, 3, padding="same", norm="batch", neuron=LIF(leak=0.5, clip=True)))
    for part in (
        "4, 6",
        "kernel_size=(3, 3)",
        "padding=same",
        "LIF(threshold=1.0, leak=0.5, clip=True)",
        "BatchNorm2d",
    ):
        assert part in text
    assert "in_features=4, out_features=6" in repr(TandemLinear(4, 6))
    assert repr(Encode(8, "impulse")) == "Encode(8, mode='impulse')"


def test_neurons():
    assert IF() == IF(threshold=1.0, clip=False)
    assert (IF().leak, LIF().leak) == (1.0, 0.9)


def test_numbers_beyond_64_bits():
    """Which torch takes as floats alone."""
    big = 10**25
    assert (LIF(big).threshold, IF(big, amplitude=big).amplitude) == (1e25, 1e25)
    spikes, _ = events(2, 5)
    layer = exact_layer(TandemLinear(5, 7, neuron=IF(big)), 9)
    same(layer(spikes.replace(amplitude=big)).bits, layer(spikes.replace(amplitude=1e25)).bits)


def test_a_leak_of_one_is_no_leak():
    x, _ = events(2, 5)
    layers = [exact_layer(TandemLinear(5, 7, neuron=neuron), 9) for neuron in (IF(0.5), LIF(0.5, leak=1.0))]
    results = []
    for layer in layers:
        y = layer(x)
        results.append((y.bits, y.count.detach(), *torch.autograd.grad(y.count.sum(), list(layer.parameters()))))
    same(*results)


# --- what enters and leaves ------------------------------------------------------------------------------------------


@pairs(
    padding=["same", "valid"],
    kernel=[1, 2, 3, 4, (2, 3), (4, 5), (5, 2)],
    dilation=[1, 2, (3, 2)],
    front=["events", "constant"],
)
def test_padding_by_name(padding, kernel, dilation, front):
    arguments = (3, 5, kernel)
    named = {"padding": padding, "dilation": dilation}
    x, x_ref = events(2, 3, 14, 13, dtype=torch.float64)
    if front == "constant":
        x, x_ref = Encode(9)(x.count), ref.Encode(9)(x.count)
    layer = exact_layer(TandemConv2d(*arguments, **named, dtype=torch.float64), 9)
    layer_ref = ref.TandemConv2d(*arguments, **named, dtype=torch.float64)
    layer_ref.load_state_dict(layer.state_dict())
    want = layer_ref(x_ref)
    if padding == "same":
        assert want.shape[2:] == (14, 13)
    everywhere(want.spikes, lambda: layer(x).to_dense())
    seed_grad = dyadic(*want.shape, seed=3, dtype=torch.float64)
    same(
        torch.autograd.grad(layer(x).count, list(layer.parameters()), seed_grad),
        torch.autograd.grad(want.count, list(layer_ref.parameters()), seed_grad),
    )


def test_padding_by_name_hands_the_gradient_on():
    x, _ = events(2, 3, 6, 5, dtype=torch.float64)
    counts = [x.count.clone().requires_grad_() for _ in range(2)]
    layer = exact_layer(TandemConv2d(3, 5, (2, 4), padding="same", dtype=torch.float64), 9)
    layer_ref = ref.TandemConv2d(3, 5, (2, 4), padding="same", dtype=torch.float64)
    layer_ref.load_state_dict(layer.state_dict())
    (got,) = torch.autograd.grad(layer(SpikeTrain(x.bits, 9, counts[0])).count.sum(), counts[0])
    (want,) = torch.autograd.grad(layer_ref(ref.DenseTrain(x.to_dense(), counts[1])).count.sum(), counts[1])
    same(got, want)


@pytest.mark.parametrize("norm", [None, "batch"])
def test_linear_over_more_dimensions(norm):
    x, x_ref = events(4, 3, 2, 5, dtype=torch.float64)
    layer = exact_layer(TandemLinear(5, 7, norm=norm, dtype=torch.float64), 9)
    layer_ref = ref.TandemLinear(5, 7, norm=None, dtype=torch.float64)
    layer_ref.load_state_dict({k: v for k, v in layer.state_dict().items() if not k.startswith("norm")})
    y = layer.eval()(x)
    assert y.shape == (4, 3, 2, 7)
    if norm is None:
        same(y.to_dense(), layer_ref(x_ref).spikes)
    else:
        flat = SpikeTrain(x.bits.flatten(1, 3), 9)
        same(y.bits.flatten(1, 3), layer(flat).bits)
        same(layer.train()(x).bits.flatten(1, 3), copy.deepcopy(layer).eval()(flat).bits)


def test_encode_and_decode():
    x = torch.rand(2, 3, 4, 4)
    encoded = Encode(8, "impulse")(x)
    assert isinstance(encoded, EncodedInput)
    assert encoded.value is x
    assert (encoded.time_steps, encoded.mode) == (8, "impulse")
    flat = nn.Flatten()(encoded)
    assert flat == EncodedInput(flat.value, 8, "impulse")
    same(flat.value, x.flatten(1))
    train_, _ = events(2, 3)
    assert Decode()(train_) is train_.count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_of_the_count(dtype):
    """It is that of the layer, whatever the input's default, with and without gradients."""
    layer = TandemLinear(5, 7, dtype=dtype)
    x = SpikeTrain(planes(9, 2, 5, seed=0), 9)
    assert layer(x).count.dtype == layer(x).dtype == dtype
    with torch.no_grad():
        assert layer(x).count.dtype == layer(x).dtype == dtype
        assert layer(Encode(8)(torch.rand(2, 5, dtype=dtype))).count.dtype == dtype


def test_weights_that_are_not_numbers_are_refused():
    """Their neurons would be silent, and nobody would know why."""
    layer = exact_layer(TandemLinear(5, 7), 9)
    with torch.no_grad():
        layer.weight[3] = math.nan
    with pytest.raises(RuntimeError, match=r"weight must be finite, got nan at \[3, 0\]"):
        layer(events(2, 5)[0])


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Encode(0), ValueError, "Encode: time_steps must be at least 1, got 0"),
        (lambda: Encode(-8), ValueError, "Encode: time_steps must be at least 1, got -8"),
        (lambda: Encode(8.0), TypeError, "Encode: time_steps must be an int, got float"),
        (lambda: Encode(True), TypeError, "Encode: time_steps must be an int, got bool"),
        (lambda: Encode(None), TypeError, "Encode: time_steps must be an int, got NoneType"),
        (lambda: Encode(8, "series"), ValueError, "Encode: mode must be .*, got 'series'"),
        (
            lambda: TandemLinear(3, 4, norm="layer"),
            ValueError,
            "TandemLinear: norm must be None or 'batch', got 'layer'",
        ),
        (lambda: TandemLinear(3, 4, norm=True), ValueError, "TandemLinear: norm must be None or 'batch', got True"),
        (
            lambda: TandemLinear(3, 4, engine="fast"),
            ValueError,
            "TandemLinear: engine must be one of auto, event, dense, got 'fast'",
        ),
        (lambda: TandemConv2d(3, 4, 3, engine=None), ValueError, "TandemConv2d: engine must be one of .*, got None"),
        (lambda: TandemConv2d(3, 4, 3, neuron=1.0), TypeError, "TandemConv2d: neuron must be .*, got float"),
        (lambda: TandemConv2d(3, 4, 3, neuron=IF), TypeError, "TandemConv2d: neuron must be .*"),
        (lambda: TandemConv2d(3, 4, 3, padding="full"), ValueError, "padding"),
        (lambda: TandemConv2d(3, 4, 3, stride=2, padding="same"), ValueError, "padding='same' is not supported"),
        (lambda: TandemConv2d(3, 4, 3, groups=2), ValueError, "groups"),
        (lambda: TandemConv2d(3, 4, 3, stride=0), ValueError, "TandemConv2d: stride must be at least 1, got"),
        (lambda: TandemConv2d(3, 4, 3, padding=(1, -1)), ValueError, "TandemConv2d: padding must be at least 0, got"),
        (lambda: TandemConv2d(3, 4, 3, dilation=1.5), TypeError, "TandemConv2d: dilation must be an int or a pair"),
    ],
)
def test_bad_constructor(make, error, message):
    with pytest.raises(error, match=message):
        make()


def spikes_of(*shape, **named):
    return SpikeTrain(torch.zeros(1, *shape, dtype=torch.uint8), 8, **named)


def encoded(*shape, **named):
    return EncodedInput(torch.zeros(*shape, **named), 8, "constant")


@pytest.mark.parametrize(
    ("module", "x", "error", "message"),
    [
        ("linear", torch.zeros(2, 3), TypeError, r"TandemLinear: input must be a SpikeTrain.*got Tensor.*Encode"),
        ("conv2d", torch.zeros(2, 3, 4, 4), TypeError, r"TandemConv2d: input must be a SpikeTrain.*got Tensor.*Encode"),
        ("conv2d", None, TypeError, r"TandemConv2d: input must be a SpikeTrain.*got NoneType"),
        ("decode", torch.zeros(2, 3), TypeError, "Decode: input must be a SpikeTrain, got Tensor"),
        ("decode", encoded(2, 3), TypeError, "Decode: input must be a SpikeTrain, got EncodedInput"),
        ("encode", [1.0], TypeError, "Encode: input must be a Tensor, got list"),
        ("encode", spikes_of(2, 3), TypeError, "Encode: input must be a Tensor, got SpikeTrain"),
        ("encode", torch.zeros(2, 3, dtype=torch.int64), TypeError, "Encode: input must be .*got torch.int64"),
        ("linear", spikes_of(2, 4), ValueError, r"weight must be \[O, 4\] for bits of shape \[1, 2, 4\], got \[5, 3\]"),
        ("linear", spikes_of(2, 3, 4, 4), ValueError, r"weight must be \[O, 4\]"),
        ("conv2d", spikes_of(2, 4, 6, 6), ValueError, r"input must be \[N, 3, H, W\], got \[2, 4, 6, 6\]"),
        ("conv2d", spikes_of(2, 3), ValueError, r"input must be \[N, 3, H, W\], got \[2, 3\]"),
        ("conv2d", spikes_of(2, 3, 2, 6), ValueError, "kernel is larger than the padded input along the height"),
        ("linear", spikes_of(2, 3, count=torch.zeros(2, 3).double()), TypeError, "count must have the dtype of weight"),
        ("linear", spikes_of(2, 3).to(META), ValueError, "on the device of"),
        ("conv2d", spikes_of(2, 3, 4, 4).to(META), ValueError, "on the device of"),
        ("linear", encoded(2, 3, dtype=torch.float64), TypeError, r"TandemLinear: input must .*float32.*float64"),
        ("conv2d", encoded(2, 3, 4, 4, dtype=torch.float64), TypeError, r"TandemConv2d: input must .*float32.*float64"),
        ("linear", encoded(2, 4), ValueError, r"TandemLinear: input must be \[N, .*3\], got \[2, 4\]"),
        ("linear", encoded(3), ValueError, r"got \[\d\]"),
        ("conv2d", encoded(2, 4, 4, 4), ValueError, r"TandemConv2d: input must be \[N, 3, H, W\], got \[2, 4, 4, 4\]"),
        ("conv2d", encoded(3, 4, 4), ValueError, r"TandemConv2d: input must be .*, got \[3, 4, 4\]"),
        ("conv2d", encoded(2, 3, 2, 6), ValueError, "TandemConv2d: .*kernel"),
        ("linear", encoded(2, 3, device=META), ValueError, "on the device of"),
        ("conv2d", encoded(2, 3, 4, 4, device=META), ValueError, "on the device of"),
    ],
)
@pytest.mark.parametrize("norm", [None, "batch"])
def test_bad_input(module, x, error, message, norm):
    modules = {
        "linear": TandemLinear(3, 5, norm=norm),
        "conv2d": TandemConv2d(3, 5, 3, norm=norm),
        "encode": Encode(8),
        "decode": Decode(),
    }
    with pytest.raises(error, match=message):
        modules[module](x)


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(norm, dtype):
    """Nothing in half precision is computed in silence."""
    message = r"must be float32 or float64, got torch\.b?float16"
    for layer, shape in ((TandemLinear(3, 5, norm=norm), (2, 3)), (TandemConv2d(3, 5, 1, norm=norm), (2, 3, 4, 4))):
        layer.to(dtype)
        for x in (spikes_of(*shape), encoded(*shape, dtype=dtype)):
            with pytest.raises(TypeError, match=message):
                layer(x)


def test_a_norm_that_cannot_be_folded():
    layer = TandemLinear(3, 5, norm="batch")
    layer.norm = nn.BatchNorm1d(5, track_running_stats=False)
    for mode in (layer.train(), layer.eval()):
        with pytest.raises(ValueError, match="TandemLinear: norm must keep running statistics"):
            mode(spikes_of(2, 3))


@pytest.mark.parametrize("neuron", [IF(), IF(two_phase=True)])
def test_a_norm_without_an_affine_map(neuron):
    """It is one with weight 1 and bias 0."""
    plain, mapped = (TandemLinear(3, 5, norm="batch", neuron=neuron) for _ in range(2))
    plain.load_state_dict(mapped.state_dict())
    plain.norm = nn.BatchNorm1d(5, affine=False)
    x = spikes_of(6, 3)
    for mode in (True, True, False):
        got, want = (layer.train(mode)(x) for layer in (plain, mapped))
        assert torch.equal(got.bits, want.bits)
        grads = [
            torch.autograd.grad(y.count.square().sum(), layer.weight)[0] for y, layer in ((got, plain), (want, mapped))
        ]
        torch.testing.assert_close(*grads)
    assert torch.equal(plain.norm.running_var, mapped.norm.running_var)
