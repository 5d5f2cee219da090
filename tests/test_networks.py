"""Whole networks against the same networks in plain PyTorch: the same spikes, whatever the architecture."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tandem_cuda
from exact import ENGINES, FLOATS, SEEDS, VANISHING, dyadic, every_path, examples, generator, same, train
from neurons import EVERY_KIND, NEURONS, every_kind
from pairwise import pairs
from tandem_cuda import IF, LIF, SpikeTrain
from tandem_cuda import reference as ref

DRAWN = [
    replace(neuron.scaled(threshold), clip=clip)
    for neuron in NEURONS.values()
    for threshold, clip in ((0.5, False), (1.0, False), (0.75, True), (2.0, True))
]
CLIPPED = [replace(neuron, clip=True) for neuron in EVERY_KIND.values()]


@st.composite
def networks(draw):
    """T, the shape of a sample, and a list of (layer class, arguments, keywords)."""
    time_steps = draw(st.sampled_from((1, 3, 4, 7, 8, 9, 16, 17)))
    channels = draw(st.integers(1, 5))
    size = [draw(st.integers(1, 12)), draw(st.integers(1, 12))]
    sample = (channels, *size)
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        groups = draw(st.sampled_from([g for g in (1, 2, 3, 5, channels) if channels % g == 0]))
        outputs = groups * draw(st.integers(1, 6))
        padding = draw(st.sampled_from((0, 1, 2, "same", "valid")))
        stride = 1 if padding == "same" else draw(st.integers(1, 2))
        dilation = draw(st.integers(1, 2))
        pad = padding if isinstance(padding, int) else 0
        # The largest kernel that fits; with padding="same" any does.
        room = [5 if padding == "same" else min(5, (s + 2 * pad - 1) // dilation + 1) for s in size]
        kernel = tuple(draw(st.integers(1, r)) for r in room)
        named = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "bias": draw(st.booleans()),
            "norm": draw(st.sampled_from((None, "batch"))),
            "neuron": draw(st.sampled_from(DRAWN)),
            "engine": draw(st.sampled_from(ENGINES)),
        }
        layers.append(("TandemConv2d", (channels, outputs, kernel), named))
        if padding != "same":
            size = [(s + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for s, k in zip(size, kernel, strict=True)]
        channels = outputs
    layers.append(("Flatten", (), {}))
    features = channels * size[0] * size[1]
    for _ in range(draw(st.integers(0, 2))):
        outputs = draw(st.integers(1, 20))
        named = {
            "bias": draw(st.booleans()),
            "norm": draw(st.sampled_from((None, "batch"))),
            "neuron": draw(st.sampled_from(DRAWN)),
            "engine": draw(st.sampled_from(ENGINES)),
        }
        layers.append(("TandemLinear", (features, outputs), named))
        features = outputs
    return time_steps, sample, layers


def build(package, front, layers, dtype):
    """The network of one package: tandem_cuda or its reference."""

    def layer(name, args, named):
        if package is ref:  # which has no engines
            named = {key: value for key, value in named.items() if key != "engine"}
        return nn.Flatten() if name == "Flatten" else getattr(package, name)(*args, **named)

    net = nn.Sequential(*front, *(layer(*description) for description in layers), package.Decode())
    return net.to(dtype)


def make_exact(net, time_steps, seed):
    """Dyadic parameters, also after norm is folded: gains are powers of 2 and T divides what is spread over T steps."""
    with torch.no_grad():
        for layer in net:
            if not hasattr(layer, "neuron"):
                continue
            layer.weight.copy_(dyadic(*layer.weight.shape, seed=seed))
            outputs = layer.weight.shape[0]
            if layer.bias is not None:
                layer.bias.copy_(time_steps * dyadic(outputs, seed=seed + 1) / 4)
            if layer.norm is not None:
                power = torch.randint(-1, 2, (outputs,), generator=generator(seed + 2))
                sign = torch.randint(0, 2, (outputs,), generator=generator(seed + 3)) * 2 - 1
                layer.norm.eps = VANISHING
                layer.norm.running_var.copy_(4.0**power)
                layer.norm.weight.copy_(sign * 2.0 ** power.flip(0))
                layer.norm.running_mean.copy_(time_steps * dyadic(outputs, seed=seed + 4))
                layer.norm.bias.copy_(time_steps * dyadic(outputs, seed=seed + 5) / 4)
            seed += 10


def trains_of(net, x):
    """(spikes [T, N, ...], counts) of every tandem layer, then the network's output, in one flat tuple."""
    seen = []

    def keep(_module, _arguments, out):
        seen.extend((out.to_dense(), out.count.detach()))

    hooks = [layer.register_forward_hook(keep) for layer in net if hasattr(layer, "neuron")]
    out = net(x)
    for hook in hooks:
        hook.remove()
    return (*seen, out.detach()), out


@examples(60)
@given(
    network=networks(),
    encoding=st.sampled_from(("constant", "impulse", "events")),
    batch=st.integers(0, 3),
    dtype=st.sampled_from(FLOATS),
    seed=SEEDS,
)
def test_exact_networks_fire_the_same_spikes(network, encoding, batch, dtype, seed):
    time_steps, sample, layers = network
    if encoding == "events":
        fronts = ((), ())
        spikes = train(time_steps, batch, *sample, seed=seed).to(dtype)
        x, x_ref = SpikeTrain.from_dense(spikes), ref.DenseTrain(spikes)
    else:
        fronts = [(package.Encode(time_steps, encoding),) for package in (tandem_cuda, ref)]
        span = 4 if encoding == "impulse" else 1
        x = x_ref = dyadic(batch, *sample, seed=seed, scale=8, span=span, dtype=dtype)
    net = build(tandem_cuda, fronts[0], layers, dtype).eval()
    net_ref = build(ref, fronts[1], layers, dtype).eval()
    make_exact(net, time_steps, seed)
    net_ref.load_state_dict(net.state_dict())
    for layer in net_ref:
        if getattr(layer, "norm", None) is not None:
            layer.norm.eps = VANISHING

    want, out_ref = trains_of(net_ref, x_ref)
    for path, (got, _) in every_path(trains_of, net, x):
        same(got, want, path)
    with torch.no_grad():
        for path, (got, _) in every_path(trains_of, net, x):
            same(got, want, f"{path}, no_grad")

    if dtype == torch.float64:
        seed_grad = dyadic(*out_ref.shape, seed=seed, dtype=dtype)
        _, out = trains_of(net, x)
        got = torch.autograd.grad(out, list(net.parameters()), seed_grad)
        want = torch.autograd.grad(out_ref, list(net_ref.parameters()), seed_grad)
        close(got, want)


def alive(trains):
    """No layer is silent or saturated."""
    for spikes in trains[:-1:2]:
        assert 0.002 < spikes.mean() < 0.95


def close(got, want, tolerance=1e-9):
    """Gradients agree to `tolerance` of the largest one."""
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=0, atol=tolerance * max(1.0, w.abs().max().item() if w.numel() else 0.0))


CNN = [
    ("TandemConv2d", (2, 20, 3), {"padding": 1}),
    ("TandemConv2d", (20, 40, 3), {"stride": 2, "padding": 1}),
    ("TandemConv2d", (40, 70, 3), {"stride": 2, "padding": 1}),
    ("Flatten", (), {}),
    ("TandemLinear", (70 * 9, 66), {}),
]


@pytest.mark.parametrize("dtype", FLOATS)
@every_kind
@pytest.mark.parametrize("mode", ["constant", "impulse"])
@pytest.mark.parametrize("time_steps", [8, 20])
def test_a_larger_exact_network(time_steps, mode, neuron, dtype):
    """Wide enough for whole words and blocks and for several tiles, and neither silent nor saturated."""
    layers = [(name, args, kw | {"neuron": neuron} if args else kw) for name, args, kw in CNN]
    net = build(tandem_cuda, (tandem_cuda.Encode(time_steps, mode),), layers, dtype)
    net_ref = build(ref, (ref.Encode(time_steps, mode),), layers, dtype)
    make_exact(net, time_steps, 0)
    with torch.no_grad():
        for layer in net:
            if hasattr(layer, "neuron"):
                layer.weight.mul_(0.25)
                layer.weight.add_(1 / 128)
    net_ref.load_state_dict(net.state_dict())
    x = dyadic(3, 2, 12, 12, seed=1, scale=8, span=4, dtype=dtype)
    want, _ = trains_of(net_ref, x)
    alive(want)
    for path, (got, _) in every_path(trains_of, net, x):
        same(got, want, path)


def random_twins(layers, front, dtype, seed=0):
    """The same random network of both packages, its norms in any state."""
    torch.manual_seed(seed)
    net, net_ref = (build(package, (package.Encode(*front),), layers, dtype) for package in (tandem_cuda, ref))
    for layer in net:
        if hasattr(layer, "neuron"):  # enough current for every layer to stay alive
            fan_in = layer.weight[0].numel()
            nn.init.normal_(layer.weight, 1.5 / fan_in, 2 / fan_in**0.5)
        if getattr(layer, "norm", None) is not None:
            nn.init.uniform_(layer.norm.weight, -1.5, 1.5)
            nn.init.uniform_(layer.norm.bias, 0, front[0] / 2)
            nn.init.uniform_(layer.norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.norm.running_var, 0.5, 2)
    net_ref.load_state_dict(net.state_dict())
    return net, net_ref


@pairs(
    bias=[True, False],
    norm=[None, "batch"],
    neuron=[IF(threshold=0.7), LIF(leak=0.9), *CLIPPED],
    mode=["constant", "impulse"],
    time_steps=[4, 9],
    training=[True, False],
)
def test_a_random_network_in_training_and_evaluation(training, time_steps, mode, neuron, norm, bias):
    """In float64 all counts agree (no potential is within rounding of the threshold) and so do the gradients."""
    extra = {"norm": norm, "neuron": neuron, "bias": bias}
    layers = [(name, args, kw | extra if args else kw) for name, args, kw in CNN]
    net, net_ref = random_twins(layers, (time_steps, mode), torch.float64)
    net.train(training)
    net_ref.train(training)
    x = torch.randn(4, 2, 12, 12, dtype=torch.float64, generator=generator(1)) * (4 if mode == "impulse" else 1)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    got, out = trains_of(net, leaves[0])
    want, out_ref = trains_of(net_ref, leaves[1])
    same(got, want)
    alive(want)
    seed_grad = torch.randn(out.shape, dtype=torch.float64, generator=generator(2))
    grads = torch.autograd.grad(out, [leaves[0], *net.parameters()], seed_grad)
    close(grads, torch.autograd.grad(out_ref, [leaves[1], *net_ref.parameters()], seed_grad))
    assert all(g.abs().sum() > 0 for g in grads[1:] if g.dim() > 1)
    for name, buffer in net_ref.named_buffers():
        torch.testing.assert_close(net.get_buffer(name), buffer, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("mode", ["constant", "impulse"])
def test_a_random_network_in_float32(mode, norm):
    """Rounding may move a potential across the threshold here and there, no more."""
    layers = [(name, args, kw | {"norm": norm} if args else kw) for name, args, kw in CNN]
    net, net_ref = random_twins(layers, (8, mode), torch.float32)
    x = torch.randn(16, 2, 12, 12, generator=generator(1)) * (4 if mode == "impulse" else 1)
    got, _ = trains_of(net, x)
    want, _ = trains_of(net_ref, x)
    for g, w in zip(got[:-1:2], want[:-1:2], strict=True):
        assert (g != w).float().mean() < 1e-3
    alive(want)
