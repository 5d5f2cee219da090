"""The golden values of the paper's authors (their implementation, in float64), through the public API and reference."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import tandem_cuda
from exact import FLOATS, every_path, same
from tandem_cuda import IF, LIF, SpikeTrain, ops
from tandem_cuda import reference as ref

LAYERS = {"conv1": (3, 8, 1), "conv2": (8, 12, 2), "conv3": (12, 16, 2), "fc": (256, 24)}
STATISTICS = ("running_mean", "running_var")


class Package(NamedTuple):
    """One implementation: its layers and operators, what else its layers are given, and its spike trains."""

    layers: ModuleType
    ops: ModuleType
    named: dict[str, str]
    train: Callable[..., Any]


PACKAGES = {
    "tandem_cuda": Package(tandem_cuda, ops, {}, SpikeTrain.from_dense),
    "loop": Package(ref, ref, {"form": "loop"}, ref.DenseTrain),
    "folded": Package(ref, ref, {"form": "folded"}, ref.DenseTrain),
}
every_package = pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES)


def tensor(array, dtype=torch.float64):
    return torch.from_numpy(np.asarray(array)).to(dtype)


def check(package, kind, golden, case, dtype, *geometry, neuron):
    """Spikes and counts are identical with every instruction set, with and without gradients."""
    weight, bias, count_out = (tensor(golden[f"{case}_{name}"], dtype) for name in ("weight", "bias", "count_out"))
    spikes_in, spikes_out = (tensor(golden[f"{case}_spikes_{way}"], dtype).transpose(0, 1) for way in ("in", "out"))
    outputs, inputs, *kernel = weight.shape
    made = getattr(package.layers, f"Tandem{kind}")
    layer = made(inputs, outputs, *kernel[:1], *geometry, neuron=neuron, **package.named).to(dtype)
    layer.load_state_dict({"weight": weight, "bias": bias})
    for spikes in (spikes_in, spikes_in.contiguous()):
        x = package.train(spikes)
        for path, y in every_path(layer.train(), x):
            same((y.to_dense(), y.count.detach()), (spikes_out, count_out), path)
        with torch.no_grad():
            for path, y in every_path(layer.eval(), x):
                same((y.to_dense(), y.count), (spikes_out, count_out), path)
    fire, count = (getattr(package.ops, f"{what}_{kind.lower()}") for what in ("spiking", "count"))
    bits, steps = ref.pack_spikes(spikes_in), len(spikes_in)
    fired, total, _ = fire(bits, weight, bias / steps, *geometry, time_steps=steps, neuron=neuron)
    same((fired, total), (ref.pack_spikes(spikes_out), count(bits, weight, bias, *geometry)))


@every_package
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", "abcd")
def test_conv2d(oracle, case, dtype, package):
    golden = np.load(oracle / "conv2d_if.npz")
    _, stride, padding, threshold, leak = golden[f"{case}_meta"].tolist()
    neuron = IF(threshold) if leak == 1 else LIF(threshold, leak)
    check(package, "Conv2d", golden, case, dtype, int(stride), int(padding), neuron=neuron)


@every_package
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", "ab")
def test_linear(oracle, case, dtype, package):
    golden = np.load(oracle / "linear_if.npz")
    _, threshold = golden[f"{case}_meta"].tolist()
    check(package, "Linear", golden, case, dtype, neuron=IF(threshold))


def golden_name(layer, parameter):
    """The golden values' name of a parameter or buffer of one of LAYERS."""
    kind, norm = ("linear", "bn1d") if layer == "fc" else ("conv2d", "bn2d")
    return f"{layer}.{norm}.{parameter[5:]}" if parameter.startswith("norm.") else f"{layer}.{kind}.{parameter}"


def network(golden, time_steps, package):
    """The network before its training step, and its tandem layers by name."""
    made, named = package.layers, package.named
    layers = {
        name: made.TandemLinear(*sizes, norm="batch", **named)
        if name == "fc"
        else made.TandemConv2d(*sizes[:2], 3, stride=sizes[2], padding=1, norm="batch", **named)
        for name, sizes in LAYERS.items()
    }
    out = nn.Linear(24, 10)
    *convs, fc = layers.values()
    net = nn.Sequential(made.Encode(time_steps), *convs, nn.Flatten(), fc, made.Decode(), out).double()
    for name, layer in layers.items():
        layer.norm.eps, layer.norm.momentum = 1e-30, 0.9
        keys = [k for k in layer.state_dict() if k != "norm.num_batches_tracked"]
        state = {k: tensor(golden[f"before.{golden_name(name, k)}"]) for k in keys}
        layer.load_state_dict(state | {"norm.num_batches_tracked": torch.tensor(0)})
    out.load_state_dict({p: tensor(golden[f"before.out.{p}"]) for p in ("weight", "bias")})
    return net, layers


def step(golden, time_steps, package, memory_format):
    """One training step's and one evaluation's results, by the golden values' names."""
    net, layers = network(golden, time_steps, package)
    net, x = net.to(memory_format=memory_format), tensor(golden["x"]).contiguous(memory_format=memory_format)
    trains = []
    for layer in layers.values():
        layer.register_forward_hook(lambda module, arguments, train: trains.append(train))
    log_probs = torch.log_softmax(net(x), 1)
    loss = nn.functional.nll_loss(log_probs, tensor(golden["y"], torch.int64))
    loss.backward()
    with torch.no_grad():
        eval_log_probs = torch.log_softmax(net.eval()(x), 1)

    for train in trains:
        same(train.to_dense().sum(0), train.count.detach())
        if package.layers is ref and train.count.dim() == 4:
            assert train.spikes[0].is_contiguous(memory_format=memory_format)
            assert train.count.is_contiguous(memory_format=memory_format)
    names = [f"{mode}count{i}" for mode in ("", "eval_") for i in range(len(layers))]
    counts = {name: train.count.detach() for name, train in zip(names, trains, strict=True)}
    values = {"log_probs": log_probs.detach(), "loss": loss.detach(), "eval_log_probs": eval_log_probs}
    grads = {f"grad.out.{k}": p.grad for k, p in net[-1].named_parameters()}
    for name, layer in layers.items():
        grads |= {f"grad.{golden_name(name, k)}": p.grad for k, p in layer.named_parameters()}
        values |= {f"after.{golden_name(name, f'norm.{s}')}": layer.norm.get_buffer(s) for s in STATISTICS}
    return counts, values, grads


@every_package
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("time_steps", [1, 4, 8])
def test_network(oracle, time_steps, memory_format, package):
    golden = np.load(oracle / f"network_T{time_steps}.npz")
    checked = {"x", "y", *(k for k in golden if k.startswith("before."))}
    for path, (counts, values, grads) in every_path(step, golden, time_steps, package, memory_format):
        for key, got in counts.items():
            assert np.array_equal(got.numpy(), golden[key]), f"{path}: {key}"
        for key, got in values.items():
            np.testing.assert_allclose(got.numpy(), golden[key], rtol=1e-9, atol=1e-12, err_msg=f"{path}: {key}")
        for key, got in grads.items():
            atol = 1e-9 * max(1.0, np.abs(golden[key]).max())
            np.testing.assert_allclose(got.numpy(), golden[key], rtol=0, atol=atol, err_msg=f"{path}: {key}")
        # Every golden value was looked at.
        left = set(golden) - checked - {*counts, *values, *grads}
        assert not left, left
