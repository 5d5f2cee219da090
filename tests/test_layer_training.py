"""Layers in training, and in the hands of torch: copied, compiled, exported."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import tandem_cuda
from exact import dyadic, generator, same, slow, train
from layers import events, exact_layer, small_network
from neurons import EVERY_KIND, every_kind
from tandem_cuda import IF, LIF, Encode, SpikeTrain, TandemConv2d, TandemLinear
from tandem_cuda import reference as ref

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
    storages = {}  # kept: an address that became free would be used again

    def pack(saved):
        storages[saved.untyped_storage().data_ptr()] = saved.untyped_storage()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        out = net(x)
    assert out.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("mode", ["constant", "impulse"])
@every_kind
def test_memory_for_the_backward_pass_does_not_grow_with_time(norm, mode, neuron):
    x = torch.rand(4, 1, 8, 8)
    sizes = [saved_bytes(small_network(norm, neuron, time_steps, mode), x) for time_steps in (8, 64)]
    assert 0 < sizes[1] <= sizes[0]


# --- life in torch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "mode", "neuron"),
    [
        ("batch", "train", IF()),
        slow(None, "train", LIF()),
        slow("batch", "eval", LIF()),
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
