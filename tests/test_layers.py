"""The layers as a user of nn.Conv2d and nn.Linear meets them; whole networks are in test_networks.py."""

import contextlib
import copy
import inspect
import io
import math
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import nn

import tandem_cuda
from exact import ENGINES, META, dyadic, everywhere, generator, planes, same, slow, train
from neurons import EVERY_KIND, every_kind
from tandem_cuda import IF, LIF, Decode, Encode, EncodedInput, SpikeTrain, TandemConv2d, TandemLinear, ops
from tandem_cuda import reference as ref


def events(*shape, time_steps=9, dtype=torch.float32, seed=0):
    """A recorded spike train, and the same for the reference."""
    spikes = train(time_steps, *shape, seed=seed).to(dtype)
    return SpikeTrain.from_dense(spikes), ref.DenseTrain(spikes)


def exact_layer(layer, time_steps):
    """Give a layer dyadic parameters whose share per time step is dyadic too."""
    with torch.no_grad():
        layer.weight.copy_(dyadic(*layer.weight.shape, seed=1))
        if layer.bias is not None:
            layer.bias.copy_(time_steps * dyadic(len(layer.bias), seed=2) / 4)
    return layer


def small_network(norm="batch", neuron=IF(), time_steps=8, mode="constant", bias=True):
    torch.manual_seed(0)
    named = {"norm": norm, "neuron": neuron, "bias": bias}
    return nn.Sequential(
        Encode(time_steps, mode),
        TandemConv2d(1, 4, 3, padding=1, **named),
        TandemConv2d(4, 6, 3, stride=2, **named),
        nn.Flatten(),
        TandemLinear(54, 10, **named),
        Decode(),
        nn.Linear(10, 3),
    )


# --- drop-in ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("tandem", "plain", "arguments"), [(TandemConv2d, nn.Conv2d, (4, 6, 3)), (TandemLinear, nn.Linear, (5, 7))]
)
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


@pytest.mark.parametrize(("tandem", "plain"), [(TandemConv2d, nn.Conv2d), (TandemLinear, nn.Linear)])
def test_constructors_begin_as_those_of_torch(tandem, plain):
    ours, theirs = (list(inspect.signature(c).parameters.values()) for c in (tandem, plain))
    assert [(p.name, p.default, p.kind) for p in ours[: len(theirs)]] == [(p.name, p.default, p.kind) for p in theirs]
    assert [(p.name, p.kind) for p in ours[len(theirs) :]] == [
        ("norm", inspect.Parameter.KEYWORD_ONLY),
        ("neuron", inspect.Parameter.KEYWORD_ONLY),
        ("engine", inspect.Parameter.KEYWORD_ONLY),
    ]


def test_same_initial_weights_as_torch():
    for tandem, plain, arguments in ((TandemConv2d, nn.Conv2d, (4, 6, 3)), (TandemLinear, nn.Linear, (5, 7))):
        layers = []
        for layer in (tandem, plain):
            torch.manual_seed(3)
            layers.append(layer(*arguments))
        same(*(tuple(layer.parameters()) for layer in layers))


def test_dtype_and_device_reach_the_norm():
    for layer in (
        TandemConv2d(4, 6, 3, norm="batch", dtype=torch.float64, device=META),
        TandemLinear(4, 6, norm="batch", dtype=torch.float64, device=META),
    ):
        tensors = [*layer.parameters(), *layer.buffers()]
        assert {x.device for x in tensors} == {META}
        assert {x.dtype for x in tensors} == {torch.float64, torch.int64}


def test_norm_classes():
    assert type(TandemConv2d(4, 6, 3, norm="batch").norm) is nn.BatchNorm2d
    assert type(TandemLinear(4, 6, norm="batch").norm) is nn.BatchNorm1d
    assert TandemConv2d(4, 6, 3).norm is None


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
    with pytest.raises(AttributeError):
        IF().threshold = 2.0


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


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, (2, 3), (4, 5), (5, 2)])
@pytest.mark.parametrize("dilation", [1, 2, (3, 2)])
@pytest.mark.parametrize("front", ["events", "constant"])
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


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("front", ["events", "constant", "impulse"])
def test_empty_batch(norm, front):
    x = SpikeTrain.from_dense(torch.zeros(8, 0, 1, 8, 8)) if front == "events" else torch.zeros(0, 1, 8, 8)
    net = small_network(norm, mode="constant" if front == "events" else front).eval()
    out = net[1:](x) if front == "events" else net(x)
    assert out.shape == (0, 3)
    out.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


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


# --- training --------------------------------------------------------------------------------------------------------


def test_running_statistics_move_once_in_training_only():
    net = small_network()
    net(torch.rand(4, 1, 8, 8))
    norms = [layer.norm for layer in net if getattr(layer, "norm", None) is not None]
    assert [n.num_batches_tracked.item() for n in norms] == [1, 1, 1]
    before = [copy.deepcopy(n.state_dict()) for n in norms]
    net.eval()(torch.rand(4, 1, 8, 8))
    for norm, state in zip(norms, before, strict=True):
        same(tuple(norm.state_dict().values()), tuple(state.values()))


def test_user_sets_eps_and_momentum():
    """As for any nn.BatchNorm: the fold follows eps, the update momentum."""
    x, _ = events(6, 5, dtype=torch.float64)
    layer = TandemLinear(5, 7, norm="batch", dtype=torch.float64)
    layer.norm.eps, layer.norm.momentum = 0.5, 0.25
    twin = ref.TandemLinear(5, 7, norm="batch", dtype=torch.float64)
    twin.norm.eps, twin.norm.momentum = 0.5, 0.25
    twin.load_state_dict(layer.state_dict())
    same(layer(x).to_dense(), twin(ref.DenseTrain(x.to_dense())).spikes)
    v = nn.functional.linear(x.count, layer.weight, layer.bias)
    torch.testing.assert_close(layer.norm.running_mean, 0.25 * v.mean(0))
    torch.testing.assert_close(layer.norm.running_var, 0.75 + 0.25 * v.var(0))


def test_frozen_norm_in_training():
    """norm.eval() alone, the usual way to freeze statistics, gives the spikes and gradients of evaluation."""
    x, _ = events(6, 5, dtype=torch.float64)
    torch.manual_seed(0)
    layer = TandemLinear(5, 7, norm="batch", dtype=torch.float64)
    layer(x)
    results = []
    for mode in (layer.eval(), layer.train()):
        mode.norm.eval()
        y = mode(x)
        results.append((y.bits, *torch.autograd.grad(y.count.square().sum(), list(layer.parameters()))))
    same(*results)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("bias", [True, False])
@every_kind
def test_every_parameter_gets_a_gradient(mode, norm, bias, neuron):
    net = small_network(norm, neuron.scaled(0.5), bias=bias).train(mode == "train")
    x = torch.rand(4, 1, 8, 8).requires_grad_()
    net(4 * x).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("front", ["events", "constant", "impulse"])
def test_clip(norm, front):
    """No gradient where v exceeds saturation * T, and the gradient of the reference elsewhere."""
    neurons = [replace(neuron.scaled(0.25), clip=clip) for neuron in EVERY_KIND.values() for clip in (False, True)]
    for neuron in neurons:
        torch.manual_seed(0)
        layer = TandemLinear(5, 40, norm=norm, neuron=neuron, dtype=torch.float64)
        twin = ref.TandemLinear(5, 40, norm=norm, neuron=neuron, dtype=torch.float64)
        if norm:
            nn.init.constant_(layer.norm.weight, 3.0)
        twin.load_state_dict(layer.state_dict())
        x, x_ref = events(6, 5, dtype=torch.float64)
        if front != "events":
            value = 3 * torch.randn(6, 5, generator=generator(1), dtype=torch.float64)
            x, x_ref = Encode(9, front)(value), ref.Encode(9, front)(value)
        grads = []
        for module, inputs in ((layer, x), (twin, x_ref)):
            y = module(inputs)
            seed_grad = torch.randn(y.shape, generator=generator(2), dtype=torch.float64)
            grads.append(torch.autograd.grad(y.count, list(module.parameters()), seed_grad))
        torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


def test_clip_makes_a_difference():
    x = torch.tensor([[0.25], [1.0], [1.25]], requires_grad=True)
    for neuron, want in ((IF(), [4.0, 4, 4]), (IF(clip=True), [4.0, 4, 0])):
        layer = TandemLinear(1, 1, bias=False, neuron=neuron)
        nn.init.ones_(layer.weight)
        (grad,) = torch.autograd.grad(layer(Encode(4)(x)).count.sum(), x)
        assert grad.flatten().tolist() == want


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("front", ["events", "constant", "impulse"])
def test_the_same_spikes_with_and_without_gradients(norm, front):
    net = small_network(norm, mode="constant" if front == "events" else front).eval()
    x = 3 * torch.rand(4, 1, 8, 8)
    if front == "events":
        net, x = net[1:], events(4, 1, 8, 8, time_steps=8)[0]
    with_grad = net(x)
    with torch.no_grad():
        same(net(x), with_grad.detach())
    with torch.inference_mode():
        same(net(x).clone(), with_grad.detach())
    for p in net.parameters():
        p.requires_grad_(False)
    same(net(x), with_grad.detach())


@pytest.mark.parametrize("outputs", [128, 130])
@pytest.mark.parametrize("threads", [1, 2])
def test_exact_gradients_of_many_outputs(outputs, threads):
    """Once, from the events of the layer below, and twice, with create_graph."""
    torch.set_num_threads(threads)
    spikes = train(8, 5, 12, 9, 20, seed=0, rate=0.05).float()
    results = []
    for package, x in ((tandem_cuda, SpikeTrain.from_dense(spikes)), (ref, ref.DenseTrain(spikes))):
        layer = exact_layer(package.TandemConv2d(12, outputs, 3, stride=2, padding=1), 8)
        leaves = (*layer.parameters(), x.count.requires_grad_())
        count = layer(x).count
        once = torch.autograd.grad((count * dyadic(*count.shape, seed=3)).sum(), leaves, retain_graph=True)
        squares = (count.square() * dyadic(*count.shape, seed=4, scale=2)).sum()
        grads = torch.autograd.grad(squares, leaves, create_graph=True)
        twice = torch.autograd.grad(sum((g * dyadic(*g.shape, seed=5, scale=2)).sum() for g in grads), leaves)
        results.append((*once, *twice))
    same(*results)
    assert all(x.abs().sum() > 0 for x in results[0])


def saved_bytes(net, x):
    """Bytes that one forward pass keeps for the backward pass, each storage counted once."""
    storages = {}

    def pack(saved):
        storages[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        out = net(x)
    assert out.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("mode", ["constant", "impulse"])
@every_kind
def test_memory_for_the_backward_pass_does_not_grow_with_time(norm, mode, neuron):
    x = torch.rand(4, 1, 8, 8)
    sizes = [saved_bytes(small_network(norm, neuron, time_steps, mode), x) for time_steps in (8, 64)]
    assert 0 < sizes[1] <= sizes[0]


# --- life in torch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [TandemConv2d(3, 4, 3, norm="batch", neuron=LIF()), TandemLinear(3, 4)])
def test_layers_can_be_copied_and_saved(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    x, _ = events(2, 3, 5, 5) if isinstance(layer, nn.Conv2d) else events(2, 3)
    want = layer.eval()(x)
    others = (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False))
    for other in others:
        assert other.neuron == layer.neuron
        same(other.eval()(x).bits, want.bits)
        assert other.weight is not layer.weight


@pytest.mark.parametrize(
    ("norm", "mode", "neuron"),
    [
        ("batch", "train", IF()),
        (None, "train", LIF()),
        ("batch", "eval", LIF()),
        *(slow(norm, mode, IF()) for norm, mode in ((None, "train"), ("batch", "eval"), (None, "eval"))),
        *(slow(norm, mode, LIF()) for norm, mode in (("batch", "train"), (None, "eval"))),
    ],
)
@pytest.mark.filterwarnings("error:tandem_cuda")
def test_compile(norm, mode, neuron):
    """One graph, forward and backward, with the results of eager mode."""
    torch.compiler.reset()
    nets = [small_network(norm, neuron).train(mode == "train") for _ in range(2)]
    compiled = torch.compile(nets[1], backend="aot_eager", fullgraph=True)
    x = 3 * torch.rand(4, 1, 8, 8, generator=generator(0))
    outputs = [net(x) for net in (nets[0], compiled)]
    same(outputs[1].detach(), outputs[0].detach())
    grads = [torch.autograd.grad(o.square().sum(), list(n.parameters())) for o, n in zip(outputs, nets, strict=True)]
    torch.testing.assert_close(grads[1], grads[0])
    for got, want in zip(nets[1].buffers(), nets[0].buffers(), strict=True):
        same(got, want)
    with torch.no_grad():
        same(compiled.eval()(x), nets[0].eval()(x))


def test_compile_across_a_spike_train():
    """Spike trains enter and leave a compiled function."""
    torch.compiler.reset()
    layer = exact_layer(TandemLinear(5, 7), 9)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x, _ = events(2, 5)
    y = compiled(x)
    assert isinstance(y, SpikeTrain)
    same((y.bits, y.count.detach()), (layer(x).bits, layer(x).count.detach()))
    # Another T is another graph, not a wrong one.
    short, _ = events(2, 5, time_steps=8)
    same(compiled(short).bits, layer(short).bits)


def test_functional_call_and_checkpoint():
    layer = TandemConv2d(3, 4, 3, norm="batch", dtype=torch.float64)
    x, _ = events(4, 3, 6, 6, dtype=torch.float64)
    twin = copy.deepcopy(layer)
    state = dict(twin.named_parameters()) | dict(twin.named_buffers())
    want = layer(x)
    same(torch.func.functional_call(copy.deepcopy(twin), state, (x,)).bits, want.bits)
    (want_grad,) = torch.autograd.grad(want.count.sum(), layer.weight)
    layer.eval()
    want_grad_eval = torch.autograd.grad(layer(x).count.sum(), layer.weight)[0]
    again = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    same(torch.autograd.grad(again.count.sum(), layer.weight)[0], want_grad_eval)
    assert want_grad.abs().sum() > 0


def test_export():
    net = small_network().eval()
    x = torch.rand(2, 1, 8, 8)
    exported = torch.export.export(net, (x,))
    same(exported.module()(x), net(x))


# --- engines, and what frozen layers keep ----------------------------------------------------------------------------

# What a layer can be, and the shape of a sample.
KINDS = {
    "linear": (lambda **named: TandemLinear(5, 7, **named), (5,)),
    "conv2d": (lambda **named: TandemConv2d(4, 6, (2, 3), stride=2, padding=1, groups=2, **named), (4, 5, 6)),
}
every_kind = pytest.mark.parametrize(("make", "sample"), KINDS.values(), ids=KINDS)
every_norm = pytest.mark.parametrize("norm", [None, "batch"])


@every_kind
@every_norm
@pytest.mark.parametrize("training", [True, False])
def test_engines_fire_the_same_spikes(make, sample, norm, training):
    x, _ = events(3, *sample, time_steps=8)
    want = None
    for engine in ENGINES:
        layer = exact_layer(make(norm=norm, engine=engine), 8).train(training)
        if norm:
            # In training too, the spiking twin folds what is dyadic.
            layer.norm.momentum, layer.norm.eps = 0.0, 0.25
            layer.norm.running_var.fill_(3.75)
        got = [layer(x).bits]
        with torch.no_grad():
            got += [layer(x).bits, layer(x).bits]
        want = got[0] if want is None else want
        for bits in got:
            same(bits, want, engine)
    assert 0 < ref.spike_count(want).mean() < 8


def test_engine_shows():
    assert "engine='dense'" in repr(TandemLinear(4, 6, engine="dense"))
    assert "engine" not in repr(TandemLinear(4, 6))


def warm(make, sample, norm):
    """A frozen layer of random state that has run, its input and its spikes."""
    torch.manual_seed(0)
    layer = randomised(make(norm=norm, engine="event").eval())
    x, _ = events(8, *sample)
    with torch.no_grad():
        bits = layer(x).bits
        same(layer(x).bits, bits)
    return layer, x, bits


def randomised(layer):
    """Enough current to fire now and then; statistics of any kind."""
    with torch.no_grad():
        for p in layer.parameters():
            p.uniform_(-1, 2)
        if layer.norm is not None:
            layer.norm.running_mean.uniform_(-1, 1)
            layer.norm.running_var.uniform_(1, 2)
    return layer


def same_as_fresh(layer, make, x):
    """Assert that a layer fires what a new one of the same state fires; return that."""
    named = {"bias": layer.bias is not None, "dtype": layer.weight.dtype, "engine": "event"}
    fresh = make(norm=layer.norm and "batch", **named).eval()
    fresh.load_state_dict(layer.state_dict())
    if layer.norm is not None:
        fresh.norm.eps = layer.norm.eps
    with torch.no_grad():
        want = fresh(x).bits
        same(layer(x).bits, want)
        same(layer(x).bits, want)
    return want


def optimizer_step(layer, x):
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for p in layer.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


def train_norm(layer, x):
    layer.norm.train()
    layer(x)
    layer.norm.eval()


def assign(value, name="weight"):
    def change(layer, x):
        with torch.no_grad():
            setattr(layer, name, value(layer))

    return change


def in_place(operation, *arguments, name="weight", guard=torch.no_grad):
    def change(layer, x):
        with guard():
            getattr(layer.get_parameter(name), operation)(*arguments)

    return change


def behind_autograd(layer, x):
    layer.weight.data.neg_()
    layer.eval()


def data_again(layer, x):
    """Until a new tensor comes to lie where the parameter's data was at first, should that be free."""
    first = layer.weight.data_ptr()
    for _ in range(20):
        layer.weight.data = layer.weight.data - 0.125
        if layer.weight.data_ptr() == first:
            break


def through_vector(layer, x):
    vector = nn.utils.parameters_to_vector(layer.parameters())
    nn.utils.vector_to_parameters(-vector, layer.parameters())


def swapped_to_double(layer, x):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def statistic(name, value):
    def change(layer, x):
        layer.norm.get_buffer(name).fill_(value)

    return change


def set_eps(layer, x):
    layer.norm.eps = 9.0


def new_norm(layer, x):
    norm = copy.deepcopy(layer.norm)
    nn.init.constant_(norm.weight, -2.0)
    layer.norm = norm


# Changes after which a layer fires other spikes ...
CHANGES = {
    "optimizer": optimizer_step,
    "load_state_dict": lambda layer, x: layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()}),
    "in place": in_place("neg_"),
    "in place, inference mode": in_place("neg_", guard=torch.inference_mode),
    "in place, bias": in_place("neg_", name="bias"),
    "part of it": lambda layer, x: nn.init.constant_(layer.weight[:3], -1.0),
    "another parameter": assign(lambda layer: nn.Parameter(-layer.weight)),
    "no bias": assign(lambda layer: None, "bias"),
    "data": lambda layer, x: setattr(layer.weight, "data", -layer.weight.data),
    "data again": data_again,
    "behind autograd, eval()": behind_autograd,
    "vector_to_parameters": through_vector,
}
CHANGES_OF_NORM = {
    "training": train_norm,
    "running_mean": statistic("running_mean", 5.0),
    "running_var": statistic("running_var", 0.01),
    "eps": set_eps,
    "gamma": in_place("neg_", name="norm.weight"),
    "beta": in_place("neg_", name="norm.bias"),
    "another norm": new_norm,
    "reset": lambda layer, x: layer.norm.reset_running_stats(),
}
# ... or, but for rounding, the same.
CONVERSIONS = {
    "double": lambda layer, x: layer.double(),
    "there and back": lambda layer, x: layer.double().float(),
    "bfloat16 and back": lambda layer, x: layer.bfloat16().float(),
    "swapped": swapped_to_double,
}


@every_kind
@pytest.mark.parametrize(
    ("norm", "name"),
    [(norm, name) for norm in (None, "batch") for name in CHANGES] + [("batch", n) for n in CHANGES_OF_NORM],
)
def test_changes_show_at_the_next_call(make, sample, norm, name):
    layer, x, before = warm(make, sample, norm)
    (CHANGES | CHANGES_OF_NORM)[name](layer, x)
    assert not torch.equal(same_as_fresh(layer, make, x), before)


@every_kind
@every_norm
@pytest.mark.parametrize("name", CONVERSIONS)
def test_conversions_show_at_the_next_call(make, sample, norm, name):
    layer, x, _ = warm(make, sample, norm)
    CONVERSIONS[name](layer, x)
    same_as_fresh(layer, make, x)


@every_kind
@every_norm
def test_functional_call_after_a_call(make, sample, norm):
    layer, x, before = warm(make, sample, norm)
    other = randomised(make(norm=norm, engine="event")).eval()
    state = dict(other.named_parameters()) | dict(other.named_buffers())
    with torch.no_grad():
        for _ in range(2):
            want = other(x).bits
            assert not torch.equal(want, before)
            same(torch.func.functional_call(layer, state, (x,)).bits, want)
            same(layer(x).bits, before)
        if norm:  # in training, and without a word to the layer itself
            layer.norm.train()
            torch.func.functional_call(layer, state, (x,))
            layer.norm.eval()
            same(layer(x).bits, before)


@every_kind
def test_parametrized_weights(make, sample):
    """They are another tensor at every call."""
    layer, x, before = warm(make, sample, None)
    nn.utils.parametrizations.weight_norm(layer)
    with torch.no_grad():
        torch.testing.assert_close(layer(x).bits, before)
        layer.parametrizations.weight.original0.neg_()
        got = layer(x).bits
    nn.utils.parametrize.remove_parametrizations(layer, "weight")
    same(same_as_fresh(layer, make, x), got)
    assert not torch.equal(got, before)


@every_kind
@every_norm
def test_copies_keep_nothing(make, sample, norm):
    layer, x, before = warm(make, sample, norm)
    cold = pickle.dumps(copy.deepcopy(layer))
    assert len(pickle.dumps(layer)) == len(cold)
    for other in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer))):
        with torch.no_grad():
            same(other(x).bits, before)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight.neg_()
        same(layer(x).bits, before)
    assert not torch.equal(same_as_fresh(other, make, x), before)


@every_kind
@every_norm
def test_modes_take_turns(make, sample, norm):
    layer, x, before = warm(make, sample, norm)
    layer.requires_grad_(False)
    for guard in (torch.inference_mode, torch.no_grad, contextlib.nullcontext, torch.inference_mode):
        for want in (None, before):
            in_place("neg_", guard=guard)(layer, x)
            with guard():
                got = layer(x).bits.clone()
            assert torch.equal(got, before) == (want is before)
            same(same_as_fresh(layer, make, x), got)
    count = x.count.clone().requires_grad_()
    layer(SpikeTrain(x.bits, 9, count)).count.sum().backward()
    assert count.grad.abs().sum() > 0


@every_kind
@every_norm
def test_time_steps_take_turns(make, sample, norm):
    layer, *_ = warm(make, sample, norm)
    for _ in range(2):
        for time_steps in (9, 4, 3, 9):
            same_as_fresh(layer, make, events(8, *sample, time_steps=time_steps)[0])


def test_threads_take_turns():
    """One layer, several threads, each with another T and so with other weights to keep."""
    layer, *_ = warm(*KINDS["linear"], "batch")
    inputs = [events(8, 5, time_steps=time_steps)[0] for time_steps in (1, 4, 8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def run(x):
        with torch.inference_mode():
            return [layer(x).bits.clone() for _ in range(600)]

    try:
        with ThreadPoolExecutor(len(inputs)) as pool:
            results = list(pool.map(run, inputs))
    finally:
        sys.setswitchinterval(interval)
    for x, got in zip(inputs, results, strict=True):
        want = same_as_fresh(layer, KINDS["linear"][0], x)
        assert all(torch.equal(bits, want) for bits in got)


def test_layers_run_at_the_same_time():
    """In several threads at once, forward and backward: what a call has to itself is its own."""
    shapes = {
        TandemConv2d(16, 128, 3, padding=1): (16, 9, 8),
        TandemConv2d(3, 40, (3, 2), stride=2): (3, 21, 30),
        TandemConv2d(70, 20, 1): (70, 8, 9),
        TandemConv2d(24, 48, 5, groups=24): (24, 9, 8),
        TandemLinear(300, 200): (300,),
    }
    inputs = {}
    for layer, shape in shapes.items():
        exact_layer(layer, 8)
        inputs[layer] = [SpikeTrain.from_dense(train(8, n, *shape, seed=n, rate=0.05).float()) for n in (1, 3, 8)]

    def run(layer, x):
        out = layer(x)
        return out.bits, *torch.autograd.grad(out.count.square().sum(), layer.parameters())

    calls = [(layer, x) for layer, trains in inputs.items() for x in trains]
    want = [run(*call) for call in calls]

    def run_all(seed):
        order = torch.randperm(len(calls), generator=generator(seed)).tolist()
        return [(i, run(*calls[i])) for _ in range(10) for i in order]

    for threads in (1, 2):
        torch.set_num_threads(threads)
        with ThreadPoolExecutor(4) as pool:
            for results in pool.map(run_all, range(4)):
                for i, got in results:
                    same(got, want[i], f"call {i}")


@pytest.fixture
def packs(monkeypatch):
    """What pack_weight has been called with."""
    pack, calls = ops.pack_weight, []

    def pack_weight(weight, *arguments, **named):
        calls.append(weight)
        return pack(weight, *arguments, **named)

    monkeypatch.setattr(ops, "pack_weight", pack_weight)
    return calls


@every_kind
@every_norm
def test_frozen_layers_pack_once(make, sample, norm, packs):
    layer, x, _ = warm(make, sample, norm)
    assert len(packs) == 1
    for guard in (torch.no_grad, torch.inference_mode):
        for time_steps in (4, 9):
            with guard():
                layer(events(8, *sample, time_steps=time_steps)[0])
    assert len(packs) == 1
    for change, more in ((in_place("neg_"), 1), (lambda layer, x: layer.eval(), 0), (lambda layer, x: None, 0)):
        change(layer, x)
        packs.clear()
        with torch.no_grad():
            layer(x)
            layer(x)
        assert len(packs) == more


@every_kind
def test_training_packs_once_a_step(make, sample, packs):
    layer, (x, _) = randomised(make(norm="batch")), events(8, *sample)
    for step in range(1, 4):
        layer(x).count.sum().backward()
        assert len(packs) == step
        optimizer_step(layer, x)


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
        (lambda: IF(0.0), ValueError, "IF: threshold must be positive and finite, got 0"),
        (lambda: IF(-1.0), ValueError, "IF: threshold must be positive and finite, got -1"),
        (lambda: IF(math.inf), ValueError, "IF: threshold must be positive and finite, got inf"),
        (lambda: IF(math.nan), ValueError, "IF: threshold must be positive and finite, got nan"),
        (lambda: IF("1"), TypeError, "IF: threshold must be a number, got str"),
        (lambda: LIF(0.0), ValueError, "LIF: threshold must be positive and finite, got 0"),
        (lambda: LIF(leak=0.0), ValueError, r"LIF: leak must be in \(0, 1\], got 0"),
        (lambda: LIF(leak=1.5), ValueError, r"LIF: leak must be in \(0, 1\], got 1.5"),
        (lambda: LIF(leak=math.nan), ValueError, r"LIF: leak must be in \(0, 1\], got nan"),
        (lambda: LIF(leak="0.5"), TypeError, "LIF: leak must be .*str"),
        (lambda: LIF(leak=None), TypeError, "LIF: leak must be .*NoneType"),
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


@pytest.mark.parametrize("options", [{"track_running_stats": False}, {"affine": False}])
def test_a_norm_that_cannot_be_folded(options):
    layer = TandemLinear(3, 5, norm="batch")
    layer.norm = nn.BatchNorm1d(5, **options)
    for mode in (layer.train(), layer.eval()):
        with pytest.raises(ValueError, match="TandemLinear: norm must keep running statistics and an affine map"):
            mode(spikes_of(2, 3))


def test_public_names():
    assert set(tandem_cuda.__all__) >= {"SpikeTrain", "Encode", "Decode", "IF", "LIF", "TandemConv2d", "TandemLinear"}
    assert all(hasattr(tandem_cuda, name) for name in tandem_cuda.__all__)
