"""freeze: the same outputs as eval mode, whole or in chunks of time, also from a file."""

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn.utils import prune

import tandem_cuda
from exact import FLOATS, SEEDS, examples, generator, same, slow, train
from neurons import NEURONS, every_kind
from pairwise import pairs
from tandem_cuda import (
    IF,
    Decode,
    Encode,
    FrozenNetwork,
    RadixIF,
    SpikeTrain,
    TandemAdd,
    TandemConv2d,
    TandemLinear,
    convert,
    freeze,
    quantise,
    synops,
)
from tandem_cuda.freeze import Node
from tandem_cuda.nn.computed import Computed
from tandem_cuda.nn.sizes import ENCODED, SPIKES
from test_networks import build, networks

pytest.importorskip("safetensors")
from freezable import (
    MODES,
    Everything,
    converted,
    every_mode,
    graph_module,
    graph_of,
    in_chunks,
    input_of,
    line,
    randomised,
    result,
    small_network,
    upwards,
)

# --- the same as eval mode -------------------------------------------------------------------------------------------


@examples(60)
@given(
    network=networks(),
    encoding=st.sampled_from(MODES),
    batch=st.integers(0, 3),
    dtype=st.sampled_from(FLOATS),
    decode=st.booleans(),
    integers=st.booleans(),
    seed=SEEDS,
)
def test_frozen_networks_compute_what_eval_mode_does(
    tmp_path_factory, network, encoding, batch, dtype, decode, integers, seed
):
    time_steps, sample, layers = network
    if encoding == "events":
        front, x = (), SpikeTrain.from_dense(train(time_steps, batch, *sample, seed=seed).to(dtype))
    else:
        front, x = (Encode(time_steps, encoding),), 3 * torch.randn(batch, *sample, generator=generator(seed)).to(dtype)
    net = randomised(build(tandem_cuda, front, layers, dtype), seed)
    if not decode:
        net = net[:-1]
    if integers:
        quantise(net, 8)
    frozen = freeze(net.train())  # whatever the mode
    with torch.no_grad():
        want = result(net.eval()(x))
    same(result(frozen(x)), want)
    path = tmp_path_factory.mktemp("frozen") / "net.safetensors"
    frozen.save(path)
    same(result(FrozenNetwork.load(path)(x)), want)


@pairs(
    dtype=FLOATS,
    neuron=[neuron.scaled(0.7) for neuron in NEURONS.values()],
    norm=[None, "batch"],
    time_steps=[1, 9, 21],
    mode=MODES,
)
def test_chunks_of_time_are_the_whole(mode, time_steps, norm, neuron, dtype):
    net = small_network(mode, norm, neuron, time_steps, bias=time_steps != 9, dtype=dtype)
    x = input_of(mode, time_steps, dtype=dtype)
    frozen = freeze(net)
    with torch.no_grad():
        want = net(x)
    assert want.std() > 0
    for sizes in ((1,), (8,), (3,), (2, 5, 1, 8), (16, 1), (100,)):
        same(in_chunks(frozen.stream(x), sizes), want, str(sizes))
        if mode == "events":
            same(in_chunks(frozen.stream(time_steps=time_steps), sizes, x), want, f"{sizes}, arriving")


@pairs(dtype=FLOATS, calibrated=[False, True], time_steps=[1, 11], make=[Everything, line, upwards], mode=MODES)
def test_converted_networks(mode, make, time_steps, calibrated, dtype, tmp_path):
    """Whole, from a file, and in chunks."""
    if mode == "events" and make is line:
        pytest.skip("its first layer flattens in another way than trains do")
    net, x = converted(make, mode, time_steps, calibrated, dtype), input_of(mode, time_steps, dtype=dtype)
    frozen = freeze(net)
    with torch.no_grad():
        want = net(x)
    assert want.std() > 0
    same(frozen(x), want)
    frozen.save(tmp_path / "net.safetensors")
    loaded = FrozenNetwork.load(tmp_path / "net.safetensors")
    same(loaded(x), want)
    for sizes in ((1,), (3, 8)):
        same(in_chunks(loaded.stream(x), sizes), want, str(sizes))


def test_converted_networks_elsewhere():
    """Copied, pickled, exported; left by some samples."""
    net, x = converted(Everything, calibrated=True), input_of("constant", batch=6)
    frozen = freeze(net)
    want = frozen(x)
    for twin in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        same(twin(x), want)
    same(torch.export.export(frozen, (x,)).module()(x), want)
    stream = frozen.stream(x)
    stream.advance(3)
    stream.select(torch.tensor([4, 1]))
    torch.testing.assert_close(in_chunks(stream, (2,)), want[[4, 1]], rtol=0, atol=1e-5)
    read: list[torch.Tensor] = []
    (decode,) = (module for module in net.snn.modules() if isinstance(module, Decode))
    decode.register_forward_hook(lambda module, args, output: read.append(args[0].count))
    layers = [layer.synops for layer in synops(net, x) if layer.firing_rate is not None]
    curve = frozen.accuracy_curve([(x, torch.zeros(6, dtype=torch.int64))])
    assert len(layers) == 5
    assert curve.over_time[-1].synops == pytest.approx(sum(layers) + float(read[0].sum()) / 6 * 5)


@every_mode
def test_trains_of_chunks_are_those_of_the_whole(mode):
    """A network that ends in a spiking layer; and it does spike."""
    net = small_network(mode, time_steps=21)[:-3]
    x = input_of(mode, 21)
    stream = freeze(net).stream(x)
    chunks = [stream.advance(steps).to_dense() for steps in (1, 9, 3, 8)]
    with torch.no_grad():
        want = net(x).to_dense()
    same(torch.cat(chunks), want)
    assert 0.02 < want.mean() < 0.9


@every_mode
def test_readout_on_the_way_estimates_the_counts_to_come(mode):
    net = small_network(mode, time_steps=10)
    x = input_of(mode, 10)
    with torch.no_grad():
        spikes = net[:-3](x).to_dense()
    stream = freeze(net).stream(x)
    for t in range(1, 11):
        counts = spikes[:t].sum(0) * (1 if mode == "impulse" else 10 / t)
        torch.testing.assert_close(stream.advance(), net[-1](counts).detach(), rtol=1e-5, atol=1e-5)


@every_mode
@every_kind
def test_samples_may_leave_a_stream(mode, neuron, tmp_path):
    """What stays is bit for bit what it is without the others."""
    net = small_network(mode, neuron=neuron, time_steps=11, dtype=torch.float64)
    frozen, x = freeze(net), input_of(mode, 11, batch=6, dtype=torch.float64)
    frozen.save(tmp_path / "net.safetensors")
    for form in (frozen, FrozenNetwork.load(tmp_path / "net.safetensors")):
        stream = form.stream(x)
        stream.advance(3)
        stream.select(torch.tensor([4, 1, 0]))
        stream.advance(5)
        stream.select(torch.tensor([2, 1]))
        torch.testing.assert_close(in_chunks(stream, (2,)), net(x)[[0, 1]].detach(), rtol=0, atol=1e-12)


def test_it_shares_nothing_and_has_no_parameters():
    net = small_network()
    x = input_of("constant")
    frozen = freeze(net)
    want = frozen(x)
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.zero_()
    same(frozen(x), want)
    assert not list(frozen.parameters())
    assert not frozen(x.requires_grad_()).requires_grad
    same(frozen.train()(x), want)


@every_mode
def test_copies_pickles_state_dicts_and_conversions(mode):
    frozen, x = freeze(small_network(mode)), input_of(mode)
    want = frozen(x)
    for twin in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen)), copy.deepcopy(frozen).double().float()):
        same(twin(x), want)
    other = freeze(randomised(small_network(mode), seed=5))
    assert not torch.equal(other(x), want)
    other.load_state_dict(frozen.state_dict())
    same(other(x), want)
    double = copy.deepcopy(frozen).double()
    x64 = x.to(torch.float64)
    torch.testing.assert_close(double(x64), small_network(mode).double()(x64).detach(), rtol=0, atol=1e-6)


def calibrated(seed, **how):
    torch.manual_seed(seed)
    ann = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    return freeze(convert(ann, 4, calibrate=torch.rand(8, 1, 8, 8), **how))


@pytest.mark.parametrize("weights", [None, "int8"])
def test_state_dicts_hold_all_that_differs(weights):
    how = {"per_channel": True, "weights": weights}
    x = torch.rand(5, 1, 8, 8)
    old, new = calibrated(0, **how), calibrated(1, **how)
    want = new(x)
    assert not torch.equal(old(x), want)
    old.load_state_dict(new.state_dict())
    same(old(x), want)
    empty = copy.deepcopy(new).to_empty(device="cpu")
    empty.load_state_dict(new.state_dict())
    same(empty(x), want)
    on_meta = copy.deepcopy(new).to("meta")
    on_meta.load_state_dict(new.state_dict(), assign=True)
    same(on_meta(x), want)


@pytest.mark.parametrize(
    ("ours", "theirs", "where"),
    [
        ({}, {}, "layers or their settings differ in _0"),
        ({"neuron": IF(two_phase=True)}, {}, "layers or their settings differ in"),
        ({}, {"weights": "int8"}, "layers or their settings differ"),
    ],
)
def test_state_dicts_of_other_settings_are_refused(ours, theirs, where):
    network, other = calibrated(0, **ours), calibrated(1, **theirs)
    before = {name: x.clone() for name, x in network.named_buffers()}
    with pytest.raises(ValueError, match=rf"FrozenNetwork.load_state_dict: .*{where}.*FrozenNetwork.load\(\) keep"):
        network.load_state_dict(other.state_dict())
    for name, x in network.named_buffers():
        same(x, before[name])
    with pytest.raises(ValueError, match="_extra_state must be a frozen network's, got 3"):
        network.load_state_dict({**network.state_dict(), "_extra_state": 3})
    with pytest.raises(RuntimeError, match="_extra_state"):
        network.load_state_dict(before)


@pytest.mark.parametrize("how", [{}, {"neuron": IF()}, {"weights": "int8"}])
def test_forward_mode_is_refused(how):
    """Its tangents would be zero in silence."""
    network, x = calibrated(0, **how), torch.rand(5, 1, 8, 8)
    for _ in range(2):
        with pytest.raises(NotImplementedError, match="FrozenNetwork: forward-mode gradients"):
            torch.func.jvp(network, (x,), (torch.ones_like(x),))
        network(x)


@pytest.mark.parametrize("weights", ["int8", "int16"])
def test_integer_weights_stay_in_float32(weights):
    network, x = calibrated(0, weights=weights), torch.rand(5, 1, 8, 8)
    want = network(x)
    for change in (nn.Module.double, nn.Module.half, lambda network: network.to(torch.bfloat16)):
        with pytest.raises(TypeError, match=r"FrozenNetwork.to: dtype must be torch.float32, in which _0 scales its"):
            change(network)
        same(network.float().to("cpu")(x), want)
    double = calibrated(0).double()  # as the message says
    assert double(x.double()).dtype == torch.float64


def test_engines_do_not_matter_to_state_dicts():
    network, other = freeze(small_network("constant")), freeze(small_network("constant"))
    other.layers[1].layer.engine = "event"
    network.load_state_dict(other.state_dict())


@pytest.mark.parametrize("mode", ["constant", *(slow(mode) for mode in MODES[1:])])
def test_export_and_compile(mode):
    frozen, x = freeze(small_network(mode)), input_of(mode)
    want = frozen(x)
    if mode != "events":
        exported = torch.export.export(frozen, (x,))
        same(exported.module()(x), want)
    same(torch.compile(frozen, backend="aot_eager", fullgraph=True)(x), want)


def test_channels_last_and_parametrized_models():
    net = small_network().to(memory_format=torch.channels_last)
    nn.utils.parametrizations.weight_norm(net[1])
    x = input_of("constant").contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        same(freeze(net)(x), net(x))


class Halves(nn.Module):
    """Computes a tensor from a parameter."""

    def __init__(self, tensor):
        super().__init__()
        self.part, self.calls = nn.Parameter(tensor.detach() / 2), 0

    def forward(self):
        self.calls += 1
        return self.part * 2


@pytest.mark.parametrize("reads", [SPIKES, ENCODED])
@pytest.mark.parametrize("kind", ["linear", "convolution", "branch"])
def test_computed_weights_are_evaluated_once(kind, reads):
    """Of layers that hold a module for their weight and one for their bias."""

    layer = TandemConv2d(2, 4, 3) if kind == "convolution" else TandemLinear(6, 4, norm="batch")
    net = TandemAdd(layer, TandemLinear(6, 4)) if kind == "branch" else layer
    x = SpikeTrain.from_dense(train(5, 2, *((2, 6, 6) if kind == "convolution" else (6,)), seed=0).float())
    inputs = [x, x] if kind == "branch" else [x]
    want = net.eval()(*inputs)
    for name in ("weight", "bias"):
        Computed.of(layer, name, Halves(layer._parameters.pop(name)))
    same(net(*inputs).bits, want.bits)
    layer.computed["weight"].calls = layer.computed["bias"].calls = 0
    network = alone(net) if kind == "branch" else nn.Sequential(*([Encode(5)] if reads == ENCODED else []), net)
    frozen = freeze(network)
    assert (layer.computed["weight"].calls, layer.computed["bias"].calls) == (1, 1)
    assert not list(frozen.parameters())
    if reads == SPIKES:
        same(frozen(*inputs).bits, want.bits)


def alone(add):
    graph = fx.Graph()
    graph.output(graph.call_module("add", tuple(graph.placeholder(f"x{i}") for i in range(len(add.branches)))))
    return fx.GraphModule({"add": add}, graph)


def test_a_layer_that_is_there_twice():
    layer = TandemLinear(6, 6, norm="batch")
    net = randomised(nn.Sequential(Encode(5), TandemLinear(3, 6), layer, layer, Decode())).eval()
    x = torch.randn(7, 3, generator=generator(0))
    with torch.no_grad():
        want = net(x)
        assert not torch.equal(net[:3](x).count, want)
    same(freeze(net)(x), want)


@every_mode
def test_graph_modules(mode, tmp_path):
    net, x = small_network(mode), input_of(mode)
    frozen = freeze(graph_module(net))
    with torch.no_grad():
        want = net(x)
    same(frozen(x), want)
    frozen.save(tmp_path / "net.safetensors")
    same(FrozenNetwork.load(tmp_path / "net.safetensors")(x), want)


def test_a_layer_alone():
    layer = randomised(TandemLinear(5, 7, norm="batch")).eval()
    x = SpikeTrain.from_dense(train(13, 2, 5, seed=0).float())
    with torch.no_grad():
        same(freeze(layer)(x).bits, layer(x).bits)


@every_mode
def test_on_a_device(mode, tmp_path, device):
    path = tmp_path / "net.safetensors"
    net, x = small_network(mode, time_steps=21)[:-1], input_of(mode, 21).to(device)  # the read-out is torch's
    if mode != "events":
        quantise(net, 8)  # real input times floats is torch's convolution, which may round otherwise for other chunks
    net.to(device)
    for layer in net.modules():
        if hasattr(layer, "engine"):
            layer.engine = "event"  # on a CPU, "auto" may take another one, with other rounding, for the T of a chunk
    freeze(net).save(path)
    with torch.no_grad():
        want = net(x)
    assert want.any()
    for frozen in (freeze(net), FrozenNetwork.load(path, device=device)):
        same(frozen(x), want)
        same(in_chunks(frozen.stream(x), (2, 5, 1, 8)), want)
        assert frozen.predict(x).classes.device.type == device


def test_pickles_are_packed_for_their_device():
    """Which may pack in another order than that of the network that was pickled."""
    net, x = small_network("constant", time_steps=5), input_of("constant", 5)
    frozen = freeze(net)
    packing = [m for m in frozen.modules() if getattr(m, "packed", None) is not None]
    assert packing
    assert all(module.__getstate__()["_buffers"]["packed"] is None for module in packing)
    loaded = pickle.loads(pickle.dumps(frozen))
    assert len([m for m in loaded.modules() if getattr(m, "packed", None) is not None]) == len(packing)
    same(loaded(x), frozen(x))


def joined(neuron, encode=None):
    """An encoding layer, a layer and a sum, each of which packs its weights in its own place."""
    torch.manual_seed(0)
    shortcut = TandemConv2d(6, 5, 1, norm="batch")
    layers = {
        "encode": encode or Encode(9),
        "first": TandemConv2d(2, 6, 3, padding=1, norm="batch", neuron=neuron),
        "second": TandemConv2d(6, 5, 3, padding=1, norm="batch", neuron=neuron),
        "join": TandemAdd(TandemConv2d(5, 5, 3, padding=1, norm="batch"), shortcut, neuron=neuron),
        "decode": Decode(),
    }
    return nn.Sequential(OrderedDict(layers)).eval()


def quantise_all(net):
    quantise(net, 8)
    return net


CALLS = {
    "encode": ("x",),
    "first": ("encode",),
    "second": ("first",),
    "join": ("second", "first"),
    "decode": ("join",),
}


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("two_phase", [False, True])
def test_weights_that_change(two_phase, bits, place):
    """In place, or for one call: nobody computes with what was packed of the old ones."""
    net = joined(IF(0.5, two_phase=two_phase))
    net = net if bits is None else quantise_all(net)
    frozen, x = freeze(graph_of(net, CALLS)), torch.randn(3, 2, 6, 6, generator=generator(0))
    weights = [(name, weight) for name, weight in frozen.named_buffers() if name.endswith("weight")]
    assert len(weights) == 4
    name, weight = weights[place]
    before, replaced = frozen(x), {name: weight.flip(0)}
    other = copy.deepcopy(frozen)
    other.load_state_dict(other.state_dict() | replaced)
    want = other(x)
    assert not torch.equal(want, before)
    same(torch.func.functional_call(frozen, replaced, (x,)), want)
    same(frozen(x), before)
    weight.copy_(replaced[name])
    same(frozen(x), want)
    packed = [y for key, y in frozen.named_buffers() if "packed" in key]
    same(frozen(x), want)
    assert all(y is z for y, z in zip(packed, (y for key, y in frozen.named_buffers() if "packed" in key), strict=True))
    same(pickle.loads(pickle.dumps(frozen))(x), want)


@pytest.mark.parametrize("place", range(4))
def test_weights_that_change_in_inference_mode(place):
    net = quantise_all(joined(IF(0.5)))
    x = torch.randn(3, 2, 6, 6, generator=generator(0))
    with torch.inference_mode():
        frozen = freeze(graph_of(net, CALLS))
        assert not any(y.is_inference() for name, y in frozen.named_buffers() if "packed" not in name)
        for twin in (frozen, copy.deepcopy(frozen)):
            weight = [weight for name, weight in twin.named_buffers() if name.endswith("weight")][place]
            twin(x)
            weight.copy_(weight.flip(0).clone())
            same(twin(x), pickle.loads(pickle.dumps(twin))(x))


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("neuron", [IF(0.5), IF(0.5, two_phase=True), RadixIF()])
@pytest.mark.parametrize("constant", ["gain", "bias"])
def test_gains_and_biases_that_change(constant, neuron, inference):
    """In place, for one call, or as another tensor: nobody computes with what was made of the old ones."""
    net = quantise_all(joined(neuron, Encode(8, "impulse")))
    frozen, x = freeze(graph_of(net, CALLS)), torch.randn(3, 2, 6, 6, generator=generator(0))
    found = {name: tensor for name, tensor in frozen.named_buffers() if name.endswith(constant)}
    assert len(found) >= 3
    want = []
    for name, tensor in found.items():
        other = copy.deepcopy(frozen)
        other.load_state_dict(other.state_dict() | {name: tensor * 1.7 + 0.1})
        want.append(other(x))
    before = frozen(x)
    assert not any(torch.equal(y, before) for y in want)
    for (name, tensor), expected in zip(found.items(), want, strict=True):
        with torch.inference_mode(inference):
            changed, old = {name: tensor * 1.7 + 0.1}, tensor.clone()
            same(torch.func.functional_call(frozen, changed, (x,)), expected)
            same(frozen(x), before)
            tensor.copy_(changed[name])
            same(frozen(x), expected)
            tensor.copy_(old)
            same(frozen(x), before)
        owner, _, own = name.rpartition(".")
        setattr(frozen.get_submodule(owner), own, changed[name])
        same(frozen(x), expected)
        setattr(frozen.get_submodule(owner), own, tensor)
        same(frozen(x), before)


@pytest.mark.parametrize("two_phase", [False, True])
def test_weights_of_sums_that_change_beside_compiled_code(two_phase):
    net, x = joined(IF(0.5, two_phase=two_phase)), torch.randn(3, 2, 6, 6, generator=generator(0))
    frozen = freeze(graph_of(net, CALLS))
    compiled = torch.compile(frozen, backend="aot_eager", fullgraph=True)
    before = compiled(x)
    for name, weight in frozen.named_buffers():
        if ".branches." in name and name.endswith("weight"):
            weight.copy_(weight.flip(0).clone())
    want = frozen(x)
    assert not torch.equal(want, before)
    same(compiled(x), want)


# --- errors ----------------------------------------------------------------------------------------------------------


class OwnConv(TandemConv2d):
    """May compute anything."""


@pytest.mark.parametrize("place", [1, 3])
def test_pruned_weights_that_hooks_compute_are_refused(place):
    """After a step of an optimizer they are those from before it, until the next call. Of plain layers, too."""
    net = nn.Sequential(Encode(4), TandemLinear(5, 3), Decode(), nn.Linear(3, 2))
    prune.identity(net[place], "weight")
    net[2].register_forward_hook(lambda *arguments: None)  # one error names them all
    with pytest.raises(ValueError, match=rf"'{place}': call .*") as error:
        freeze(net)
    assert "'2': remove its hooks (" in str(error.value)
    net[2]._forward_hooks.clear()
    message = rf"^freeze: '{place}': call torch.nn.utils.*its .*weight is computed by a hook"
    with pytest.raises(ValueError, match=message):
        freeze(net)


@pytest.mark.parametrize(
    "compute", [nn.utils.weight_norm, nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm]
)
@pytest.mark.parametrize("place", [1, 3])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_norms_of_weights_are_computed_from_the_present_parameters(compute, place):
    """As in eval mode, whatever the mode; the model stays as it is."""
    net = nn.Sequential(Encode(4), TandemLinear(5, 3), Decode(), nn.Linear(3, 2))
    compute(net[place], "weight")
    x = torch.rand(6, 5)
    net(x).sum().backward()
    with torch.no_grad():
        for parameter in net[place].parameters():
            parameter.mul_(1.5)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    got = freeze(net)(x)
    assert all(module.training for module in net.modules())
    for name, tensor in net.state_dict().items():
        same(tensor, before[name], name)
    with torch.no_grad():
        same(got, net.eval()(x))


def test_what_changes_results_is_refused():
    net = nn.Sequential(OrderedDict(encode=Encode(4), body=nn.Sequential(TandemLinear(5, 3)), decode=Decode())).eval()
    for place in ("", "body", "body.0", "decode"):
        module = net.get_submodule(place)
        for register in (module.register_forward_hook, module.register_forward_pre_hook):
            handle = register(lambda *arguments: None)
            with pytest.raises(ValueError, match=rf"^freeze: '{place or 'Sequential'}': remove its hooks \("):
                freeze(net)
            handle.remove()
        module.forward = module.forward
        with pytest.raises(ValueError, match=rf"^freeze: '{place or 'Sequential'}': it has a forward of its own"):
            freeze(net)
        del module.forward
    net.register_full_backward_hook(lambda *arguments: None)
    freeze(net)


class OwnForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.decode = TandemLinear(3, 4), Decode()

    def forward(self, x):
        return self.decode(self.layer(x))


def test_what_cannot_be_frozen_is_named():
    net = nn.Sequential(
        OrderedDict(
            stem=nn.Bilinear(1, 2, 3), body=nn.Sequential(Encode(3), OwnConv(2, 3, 1), nn.Flatten()), act=nn.RReLU()
        )
    )
    message = (
        r"freeze: model must contain only tandem layers, .* \(docs/inference.md\), .*cuda.freeze.register, .*, "
        r"got stem \(Bilinear\), body.1 \(OwnConv\), act \(RReLU\)$"
    )
    with pytest.raises(ValueError, match=message):
        freeze(net)
    with pytest.raises(TypeError, match=r"freeze: model must be an nn.Module, got list"):
        freeze([net])
    with pytest.raises(ValueError, match="freeze: model must be a network that trains, got a FrozenNetwork, which is"):
        freeze(freeze(nn.Flatten()))
    own = nn.Sequential(Encode(3), OwnForward())
    with pytest.raises(ValueError, match=r"got 1 \(OwnForward: its forward is not read; put its layers into an nn.Seq"):
        freeze(own)
    freeze(nn.Sequential(own[0], nn.Sequential(*own[1].children())))
    graph = fx.symbolic_trace(nn.Sequential(nn.Flatten(), nn.Identity()))
    freeze(graph)
    graph = fx.symbolic_trace(lambda x, y: torch.trace(x) + torch.diag(y))
    advice = "only ATen operators can be frozen, .* convert the ANN, or put layers into an nn.Sequential"
    with pytest.raises(ValueError, match=rf"got trace \(trace: {advice}\), diag \(diag: {advice}\)$"):
        freeze(graph)
    layer = TandemLinear(3, 4, norm="batch")
    layer.norm = nn.BatchNorm1d(4, track_running_stats=False)
    with pytest.raises(ValueError, match="norm must keep running statistics"):
        freeze(layer)
    with pytest.raises(ValueError, match="output must be the name of a node, got '<input>'"):
        freeze(nn.Identity())


def test_networks_that_are_none():
    flatten, encode = (freeze(layer).nodes[0].layer for layer in (nn.Flatten(), Encode(3)))
    other = freeze(Encode(4)).nodes[0].layer
    for nodes, output, message in (
        ([Node("a", flatten, ("b",))], "a", "inputs of 'a' must be inputs of the network or earlier nodes, got 'b'"),
        ([Node("a", flatten, ())], "a", "inputs of 'a' must be inputs of the network or earlier nodes, got none"),
        ([Node("a", flatten, ("<input>",))] * 2, "a", "names of nodes must differ, got 'a' twice"),
        ([Node("a", flatten, ("<input>",))], "b", "output must be the name of a node, got 'b'"),
        (
            [Node("a", encode, ("<input>",)), Node("b", other, ("<input>",))],
            "b",
            r"Encode and TandemNeurons must have the same time_steps, got \[3, 4\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            FrozenNetwork(nodes, output)


def test_bad_input():
    encoded, events = freeze(small_network()), freeze(small_network("events"))
    x, spikes = input_of("constant"), input_of("events")
    for call, error, message in (
        (lambda: encoded(spikes), TypeError, "FrozenNetwork: input must be a Tensor, got SpikeTrain"),
        (lambda: events(x), TypeError, "FrozenNetwork: input must be a SpikeTrain .*no Encode.*got Tensor"),
        (lambda: encoded(x.double()), TypeError, "TandemConv2d: input must have the dtype of weight"),
        (lambda: encoded(x[:, :1]), ValueError, r"TandemConv2d: input must be \[N, 2, H, W\]"),
        (lambda: encoded.stream(), TypeError, "stream: x must be given for a network with Encode"),
        (lambda: encoded.stream(x, time_steps=3), TypeError, "stream: time_steps must be left out if x is given"),
        (lambda: encoded.stream(spikes), TypeError, "input must be a Tensor"),
        (lambda: events.stream(), TypeError, "stream: time_steps must be an int, got NoneType"),
        (lambda: events.stream(time_steps=0), ValueError, "stream: time_steps must be at least 1"),
        (
            lambda: encoded.stream(x).advance(9),
            ValueError,
            r"chunk must be 1 to 8 time steps \(all that remain\), got 9",
        ),
        (lambda: encoded.stream(x).advance(0), ValueError, "chunk must be 1 to 8 time steps"),
        (lambda: encoded.stream(x).advance(1.0), TypeError, "chunk must be a number of time steps, got float"),
        (lambda: encoded.stream(x).advance(spikes), TypeError, "chunk must be a number of time steps, got SpikeTrain"),
        (lambda: events.stream(time_steps=9).advance(1), TypeError, "chunk must be a SpikeTrain, got int"),
        (lambda: events.stream(time_steps=7).advance(spikes), ValueError, "chunk must be 1 to 7 time steps"),
        (lambda: encoded.stream(x).select([0]), TypeError, "select: samples must be a Tensor, got list"),
        (lambda: encoded.stream(x).select(torch.ones(4) > 0), TypeError, "select: samples must be int64"),
    ):
        with pytest.raises(error, match=message):
            call()
    stream = events.stream(time_steps=20)
    stream.advance(spikes)
    with pytest.raises(ValueError, match="chunk must hold 4 samples, got 2"):
        stream.advance(input_of("events", batch=2))
