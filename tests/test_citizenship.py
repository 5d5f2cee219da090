"""Whole networks in the hands of torch's own machinery. Layers on their own are in test_layers.py, frozen networks in
test_freeze.py.
"""

import copy
import io
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from exact import HALVES, META, dyadic, generator, planes, same
from pairwise import pairs
from tandem_cuda import (
    IF,
    Decode,
    Encode,
    RadixIF,
    SpikeTrain,
    TandemConv2d,
    TandemLinear,
    convert,
    freeze,
    from_authors,
    ops,
    quantise,
)
from tandem_cuda.ops.pack_weight import packed_like
from tandem_cuda.ops.spike_count import spike_value

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def network(norm="batch", mode="constant", engine="auto", dtype=torch.float32, neuron=IF()):
    """Two convolutions, two linear layers; its layers have the names that an ANN gives them."""
    torch.manual_seed(0)
    named = {"norm": norm, "engine": engine, "neuron": neuron}
    layers = OrderedDict(
        encode=Encode(8, mode),
        conv1=TandemConv2d(1, 4, 3, padding=1, **named),
        conv2=TandemConv2d(4, 6, 3, stride=2, **named),
        flatten=nn.Flatten(),
        hidden=TandemLinear(54, 10, **named),
        decode=Decode(),
        readout=nn.Linear(10, 3),
    )
    net = nn.Sequential(layers)
    for layer in (net.conv1, net.conv2, net.hidden):
        if norm is None:  # enough current for every layer to fire
            nn.init.normal_(layer.weight, 0.5 / layer.weight[0].numel(), 2 / layer.weight[0].numel() ** 0.5)
        else:
            nn.init.uniform_(layer.norm.bias, 1, 3)
    return net if dtype == torch.float32 else net.to(dtype)  # no conversion where tensors are fake


def images(batch=8, dtype=torch.float32):
    return torch.rand(batch, 1, 8, 8, generator=generator(1), dtype=dtype)


def step(net, x, labels=LABELS, run=None):
    """Output and gradients of a training step."""
    net.zero_grad()
    out = (run or net)(x)
    F.cross_entropy(out.float() if out.dtype == torch.bfloat16 else out, labels).backward()
    grads = tuple(p.grad.clone() for p in net.parameters())
    assert all(g.abs().sum() > 0 for g in grads if g.dim() > 1)
    return (out.detach(), *grads)


def counts_of(net, x):
    """Spike counts of every tandem layer."""
    found = []
    hooks = [
        layer.register_forward_hook(lambda module, inputs, train: found.append(train.count.detach()))
        for layer in net.modules()
        if hasattr(layer, "neuron")
    ]
    net(x)
    for hook in hooks:
        hook.remove()
    return found


every_norm = pytest.mark.parametrize("norm", [None, "batch"])


# --- compile ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@every_norm
def test_compile_with_inductor(norm):
    """A graph of its own kernels around the operators; that it is one, and right, is in test_layer_training.py too."""
    torch.compiler.reset()
    nets = [network(norm, dtype=torch.float64) for _ in range(2)]
    compiled = torch.compile(nets[1], fullgraph=True)
    x = images(dtype=torch.float64)
    want, got = step(nets[0], x), step(nets[1], x, run=compiled)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


# --- autocast --------------------------------------------------------------------------------------------------------


@pairs(norm=[None, "batch"], engine=["auto", "event", "dense"], mode=["constant", "impulse", "impulse, radix"])
def test_autocast(norm, engine, mode):
    """Products with real numbers in bfloat16; spikes, currents, parameters' gradients in float32."""
    mode, _, radix = mode.partition(", ")
    net, x = network(norm, mode, engine, neuron=RadixIF(2.0) if radix else IF()), images()
    want = step(copy.deepcopy(net), x)
    seen = []
    for layer in net:
        layer.register_forward_hook(lambda module, inputs, out: seen.append(getattr(out, "dtype", None)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(x)
    assert seen == [None, *[torch.float32] * 5, torch.bfloat16]  # of counts, then of the read-out
    F.cross_entropy(out.float(), LABELS).backward()
    grads = [p.grad for p in net.parameters()]
    assert all(g.dtype == torch.float32 for g in grads)
    names = ["output", *(name for name, _ in net.named_parameters())]
    for name, got, reference in zip(names, (out.float(), *grads), want, strict=True):
        if norm and name in ("conv1.bias", "conv2.bias", "hidden.bias"):
            continue  # batch norm takes it out again: the gradient is zero but for rounding
        # Some spikes are others.
        assert F.cosine_similarity(got.flatten(), reference.flatten(), 0) > 0.8


@pairs(
    norm=[None, "batch"],
    engine=["auto", "event", "dense"],
    training=[True, False],
    weights=[None, "int8"],
    radix=[False, True],
)
def test_autocast_lowers_gradients_alone(norm, engine, training, weights, radix):
    """The same bits and counts as without, and nearly the same gradients, whether backward() runs under it or not."""
    net = network(norm, engine=engine, neuron=RadixIF(2.0) if radix else IF())[2:5].train(training)
    code = {"radix": radix, "amplitude": 1 / 64 if radix else 1.0}
    if weights:
        quantise(net, 8)
    bits = planes(8, 8, 4, 8, 8, seed=1, rate=0.3)
    modules, results = [], []
    for forward, backward in ((True, True), (True, False), (False, False)):
        module, value = copy.deepcopy(net), spike_value(bits, torch.float32, radix).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=forward):
            out = module(SpikeTrain(bits, 8, value=value, **code))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=backward):
            out.value.square().sum().backward()
        results.append((out.bits, out.value.detach(), value.grad, *(p.grad for p in module.parameters())))
        modules.append(module.eval())
    assert results[2][0].any()
    same(results[0], results[1])
    same(results[1][:2], results[2][:2])
    for got, want in zip(results[1][2:], results[2][2:], strict=True):
        assert got.dtype == torch.float32
        assert (got - want).norm() <= 2**-5 * want.norm()
    with torch.no_grad():
        want = modules[2](SpikeTrain(bits, 8, **code)).bits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for module in modules[1:]:
                same(module(SpikeTrain(bits, 8, **code)).bits, want)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("radix", [0, 8])
@pytest.mark.parametrize("small", [False, True], ids=["large weight", "small weight"])
@pytest.mark.parametrize("kind", ["linear", "conv2d", "stride"])
def test_gradients_of_products_under_autocast(kind, small, radix, scaled):
    """Float32 sums of bfloat16 numbers, rounded in the end. A value of 255 is among the numbers.

    Weights with more elements than the gradient take another way.
    """
    if kind == "linear":
        bits, weight = planes(1, 3, 5, seed=1, rate=0.5), dyadic(2 if small else 40, 5, seed=2)
        run, where = ops.count_linear, {}
    else:
        size, channels = (6, 2) if small else (3, 16)
        bits, weight = planes(1, 2, 3, size, size, seed=1, rate=0.5), dyadic(channels, 3, 3, 3, seed=2)
        run, where = ops.count_conv2d, {"padding": 1, "stride": 2 if kind == "stride" else 1}
    bits.view(-1)[0] = 255
    scale = torch.full((len(weight),), 0.5) if scaled else None
    grads = []
    for cast, grad in ((True, 1 + 2**-12), (False, 1)):
        w, count = weight.clone().requires_grad_(), spike_value(bits, torch.float32, radix > 0).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
            out = run(bits, w, count=count, scale=scale, radix=radix, **where)
        grads.append(torch.autograd.grad(out, (count, w), torch.full_like(out, grad)))
    for got, want in zip(*grads, strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got, want.bfloat16().float())


def test_autocast_keeps_float64_gradients():
    weight = torch.full((1, 1), 1 + 2**-40, dtype=torch.float64, requires_grad=True)
    count = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ops.count_linear(torch.ones(1, 1, 1, dtype=torch.uint8), weight, count=count)
    out.sum().backward()
    assert count.grad == weight.detach()


def test_autocast_stem():
    """A layer of the ANN before Encode leaves bfloat16; and what autocast does not cast is refused as ever."""
    net, stem = network(), nn.Conv2d(1, 1, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = stem(images())
        assert value.dtype == torch.bfloat16
        net(value).float().sum().backward()
    assert net.conv1.weight.grad.dtype == torch.float32
    assert stem.weight.grad.abs().sum() > 0
    with pytest.raises(TypeError, match="TandemConv2d: input must have the dtype of weight"):
        net(value.detach())


@pytest.mark.parametrize("neuron", [RadixIF(), IF(initial=0.5, two_phase=True)])
@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_of_analogue_calls(neuron, dtype):
    """The ANN's layers compute the factors in the lower precision; spikes and their sums keep float32."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.gate, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 3)

        def forward(self, x):
            x = F.relu(self.first(x))
            return F.relu(self.last(x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True))))).mean((2, 3))

    net, x = nn.Sequential(Gated(), nn.Linear(4, 2)).eval(), torch.rand(8, 3, 8, 8)
    snn = convert(net, 4, calibrate=x, neuron=neuron)
    for each in (snn, freeze(snn)):
        want = each(x)
        with torch.autocast("cpu", dtype=dtype):
            got = each(x)
        assert (got.float() - want).norm() < 0.05 * want.norm()
    with torch.autocast("cpu", dtype=dtype):
        snn.train()(x).float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in net.parameters())


class Packed(TorchDispatchMode):
    """Of every product the weight's dtype, and the sizes of its packed form: as given, and as it should be."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name.endswith("_product"):
            weight, packed = args[2:4]
            self.seen.append((weight.dtype, (packed.numel(), packed_like(weight, 1)[0][0])))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("enabled", [True, False])
def test_packed_weights_that_autocast_widens(dtype, enabled):
    """On a device, which need not exist here, they are the same as before."""
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", enabled)
    try:
        with FakeTensorMode(), Packed() as products:
            bits = torch.empty(1, 2, 64, 4, 4, dtype=torch.uint8, device="cuda")
            weight = torch.empty(48, 64, 3, 3, dtype=dtype, device="cuda")
            row = torch.empty(1, 2, 64, dtype=torch.uint8, device="cuda")
            matrix = torch.empty(48, 64, dtype=dtype, device="cuda")
            ops.spiking_conv2d(bits, weight, packed=ops.pack_weight(weight), time_steps=8)
            ops.count_conv2d(bits, weight, packed=ops.pack_weight(weight))
            ops.spiking_linear(row, matrix, packed=ops.pack_weight(matrix), time_steps=8)
            ops.count_linear(row, matrix, packed=ops.pack_weight(matrix))
    finally:
        torch.set_autocast_enabled("cuda", before)
    assert len(products.seen) == 4
    for seen, sizes in products.seen:
        assert seen == (torch.float32 if enabled else dtype)
        assert sizes[0] == sizes[1]


# --- copies and checkpoints ------------------------------------------------------------------------------------------


@every_norm
def test_copies_train_on_like_the_original(norm):
    net, x = network(norm), images()
    step(net, x)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    copies = [copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.load(file, weights_only=False)]
    want = step(net, x)
    for other in copies:
        same(step(other, x), want)


def ann():
    """The ANN twin of `network(None)`, written with torch's layers."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 4, 3, padding=1),
            act1=nn.ReLU(),
            conv2=nn.Conv2d(4, 6, 3, stride=2),
            act2=nn.ReLU(),
            flatten=nn.Flatten(),
            hidden=nn.Linear(54, 10),
            act3=nn.ReLU(),
            readout=nn.Linear(10, 3),
        )
    )


def test_state_dicts_go_to_an_ann_and_back():
    net, twin = network(None), ann()
    twin.load_state_dict(net.state_dict())
    same(tuple(twin.parameters()), tuple(net.parameters()))
    other = ann()
    net.load_state_dict(other.state_dict())
    same(tuple(net.parameters()), tuple(other.parameters()))
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    ann().load_state_dict(torch.load(file, weights_only=True))


def test_checkpoints_of_the_authors(oracle):
    """Their parameters, by their names: a network of those layers computes what theirs did."""
    golden = np.load(oracle / "network_T8.npz")
    theirs = {k.removeprefix("before."): torch.from_numpy(golden[k]) for k in golden if k.startswith("before.")}
    assert "conv1.bn2d.running_mean" in theirs
    net = nn.Sequential(
        OrderedDict(
            encode=Encode(8),
            conv1=TandemConv2d(3, 8, 3, padding=1, norm="batch"),
            conv2=TandemConv2d(8, 12, 3, stride=2, padding=1, norm="batch"),
            conv3=TandemConv2d(12, 16, 3, stride=2, padding=1, norm="batch"),
            flatten=nn.Flatten(),
            fc=TandemLinear(256, 24, norm="batch"),
            decode=Decode(),
            out=nn.Linear(24, 10),
        )
    ).double()
    net.load_state_dict(from_authors(theirs))  # strict: every name is there, and no other
    for layer in (net.conv1, net.conv2, net.conv3, net.fc):
        layer.norm.eps, layer.norm.momentum = 1e-30, 0.9
    x = torch.from_numpy(golden["x"])
    got = torch.log_softmax(net(x), 1)
    np.testing.assert_allclose(got.detach().numpy(), golden["log_probs"], rtol=1e-9, atol=1e-9)


def test_names_of_the_authors():
    names = {
        "module.conv1.conv2d.weight": "conv1.weight",
        "conv1.bn2d.num_batches_tracked": "conv1.norm.num_batches_tracked",
        "features.conv.conv1d.bias": "features.conv.bias",
        "fc5.bn1d.bias": "fc5.norm.bias",
        "fc5.linear.bias": "fc5.bias",
        "fc6.weight": "fc6.weight",
    }
    assert from_authors({name: i for i, name in enumerate(names)}) == {new: i for i, new in enumerate(names.values())}
    with pytest.raises(ValueError, match=r"one entry for a.weight, got a second one, a.conv2d.weight"):
        from_authors({"a.weight": 0, "a.conv2d.weight": 1})
    with pytest.raises(TypeError, match="from_authors: state_dict must be a mapping, got list"):
        from_authors([])
    with pytest.raises(TypeError, match="from_authors: keys of state_dict must be strings, got 3"):
        from_authors({3: 0})


# --- memory formats, modes, hooks ------------------------------------------------------------------------------------


@every_norm
def test_channels_last(norm):
    net, x = network(norm, dtype=torch.float64), images(dtype=torch.float64)
    other = copy.deepcopy(net).to(memory_format=torch.channels_last)
    assert other.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    want = step(net, x)
    got = step(other, x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    for a, b in zip(counts_of(other, x), counts_of(net, x), strict=True):
        same(a, b)


@every_norm
def test_grad_modes(norm):
    net, x = network(norm).eval(), images()
    want = net(x)
    assert want.requires_grad
    for mode in (torch.no_grad(), torch.inference_mode(), torch.set_grad_enabled(False)):
        with mode:
            out = net(x)
        assert not out.requires_grad
        torch.testing.assert_close(out, want.detach())
    torch.set_grad_enabled(True)
    same(net(x).detach(), want.detach())  # what inference mode kept does not get into training
    step(net.train(), x)


@every_norm
def test_forward_hooks(norm):
    """Hooks see spike trains, may replace them, and may hook the gradient of a count."""
    net, x = network(norm), images()
    seen, grads = [], []

    def look(module, inputs, train):
        seen.append((type(inputs[0]).__name__, type(train).__name__, tuple(train.shape)))
        train.count.register_hook(lambda grad: grads.append(tuple(grad.shape)))

    handles = [layer.register_forward_hook(look) for layer in (net.conv1, net.conv2)]
    net(x).sum().backward()
    assert seen == [("EncodedInput", "SpikeTrain", (8, 4, 8, 8)), ("SpikeTrain", "SpikeTrain", (8, 6, 3, 3))]
    assert grads == [(8, 6, 3, 3), (8, 4, 8, 8)]
    for handle in handles:
        handle.remove()
    net.eval()
    silence = lambda module, inputs: (SpikeTrain(torch.zeros_like(inputs[0].bits), inputs[0].time_steps),)  # noqa: E731
    net.decode.register_forward_pre_hook(silence)
    same(net(x).detach(), net.readout.bias.detach().expand(8, 3).contiguous())


# --- without data ----------------------------------------------------------------------------------------------------


@every_norm
def test_meta_and_fake_tensors(norm):
    """Shapes, strides and dtypes of a training step with nothing computed."""
    net, x = network(norm), images()
    want = net.conv2(net.conv1(net.encode(x)))
    with META:
        ghost = network(norm)
    ghost.readout(
        ghost.decode(ghost.hidden(ghost.flatten(ghost.conv2(ghost.conv1(ghost.encode(x.to(META)))))))
    ).sum().backward()
    assert all(p.grad.is_meta and p.grad.shape == p.shape for p in ghost.parameters())
    real = ghost.to_empty(device="cpu")
    real.load_state_dict(network(norm).state_dict())
    same(real(x).detach(), network(norm)(x).detach())

    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        fake = network(norm)
        train = fake.conv2(fake.conv1(fake.encode(torch.empty(8, 1, 8, 8))))
        fake.readout(fake.decode(fake.hidden(fake.flatten(train)))).sum().backward()
        assert train.bits.fake_mode is mode
    for got, expected in ((train.bits, want.bits), (train.count, want.count)):
        assert (got.shape, got.stride(), got.dtype) == (expected.shape, expected.stride(), expected.dtype)
    assert fake.conv1.weight.grad.shape == net.conv1.weight.shape


@every_norm
def test_functional_call(norm):
    """The network as a function of its parameters and statistics, which it leaves alone."""
    net, x = network(norm, dtype=torch.float64), images(dtype=torch.float64)
    other = network(norm, dtype=torch.float64)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.25)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    buffers = {name: b.clone() for name, b in other.named_buffers()}
    want = step(other, x)
    before = copy.deepcopy(net.state_dict())
    out = torch.func.functional_call(net, (parameters, buffers), (x,))
    grads = torch.autograd.grad(F.cross_entropy(out, LABELS), list(parameters.values()))
    same((out.detach(), *grads), want)
    same(tuple(buffers.values()), tuple(other.buffers()))
    same(tuple(net.state_dict().values()), tuple(before.values()))


# --- checkpointing and several processes -----------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "training"), [(None, True), ("batch", False), ("batch", True)])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(norm, training, use_reentrant):
    """A spike train goes into the segment and comes out; the second forward pass is as the first, and moves nothing."""
    net, x = network(norm, dtype=torch.float64).train(training), images(dtype=torch.float64).requires_grad_()
    other = copy.deepcopy(net)
    segment = net if use_reentrant else net[2:5]  # reentrant, tensors alone can enter and leave
    runs = []
    net.conv2.register_forward_hook(lambda *arguments: runs.append(1))

    def run(x):
        if use_reentrant:
            return checkpoint(segment, x, use_reentrant=True)
        train = checkpoint(segment, net.conv1(net.encode(x)), use_reentrant=False)
        assert isinstance(train, SpikeTrain)
        return net.readout(net.decode(train))

    for _ in range(2):
        runs.clear()
        same(step(net, x, run=run), step(other, x))
        assert len(runs) == 2
        same(tuple(net.buffers()), tuple(other.buffers()))


def worker(rank, port_file, result_file):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=2)
    net = network(None, dtype=torch.float64)
    parallel = nn.parallel.DistributedDataParallel(net)
    x = images(dtype=torch.float64)
    for _ in range(2):  # the second step finds the buckets rebuilt
        net.zero_grad()
        F.cross_entropy(parallel(x[rank::2]), LABELS[rank::2]).backward()
    if rank == 1:
        torch.save([p.grad for p in net.parameters()], result_file)
    torch.distributed.barrier()
    # No farewell: the end of gloo's group, holding the GIL, may wait for a thread of its own that waits for the GIL.
    os._exit(0)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_distributed_data_parallel(tmp_path):
    """Two processes with half the batch each have the gradients of one with all of it.

    Without norm: the statistics of half a batch are others, as with any batch norm.
    """
    torch.multiprocessing.spawn(worker, (tmp_path / "rendezvous", tmp_path / "grads.pt"), nprocs=2)
    net = network(None, dtype=torch.float64)
    _, *want = step(net, images(dtype=torch.float64))
    torch.testing.assert_close(torch.load(tmp_path / "grads.pt"), want, rtol=1e-12, atol=1e-12)
