"""The golden values of the paper's authors (their implementation, in float64), through the public API."""

import numpy as np
import pytest
import torch
from torch import nn

from exact import FLOATS, every_path, same
from tandem_cuda import IF, LIF, Decode, Encode, SpikeTrain, TandemConv2d, TandemLinear

LAYERS = {"conv1": (3, 8, 1), "conv2": (8, 12, 2), "conv3": (12, 16, 2), "fc": (256, 24)}
STATISTICS = ("running_mean", "running_var")


def tensor(array, dtype=torch.float64):
    return torch.from_numpy(np.asarray(array)).to(dtype)


def check_layer(layer, golden, case, dtype):
    """Spikes and counts are identical with every instruction set, with and without gradients."""
    layer.to(dtype).load_state_dict({p: tensor(golden[f"{case}_{p}"], dtype) for p in ("weight", "bias")})
    spikes_in, spikes_out = (tensor(golden[f"{case}_spikes_{way}"], dtype).transpose(0, 1) for way in ("in", "out"))
    count_out = tensor(golden[f"{case}_count_out"], dtype)
    x = SpikeTrain.from_dense(spikes_in)
    for path, y in every_path(layer, x):
        same((y.to_dense(), y.count.detach()), (spikes_out, count_out), path)
    with torch.no_grad():
        for path, y in every_path(layer.eval(), x):
            same((y.to_dense(), y.count), (spikes_out, count_out), path)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", "abcd")
def test_conv2d(oracle, case, dtype):
    golden = np.load(oracle / "conv2d_if.npz")
    _, stride, padding, threshold, leak = golden[f"{case}_meta"].tolist()
    neuron = IF(threshold) if leak == 1 else LIF(threshold, leak)
    outputs, inputs, kernel, _ = golden[f"{case}_weight"].shape
    layer = TandemConv2d(inputs, outputs, kernel, int(stride), int(padding), neuron=neuron)
    check_layer(layer, golden, case, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", "ab")
def test_linear(oracle, case, dtype):
    golden = np.load(oracle / "linear_if.npz")
    _, threshold = golden[f"{case}_meta"].tolist()
    outputs, inputs = golden[f"{case}_weight"].shape
    check_layer(TandemLinear(inputs, outputs, neuron=IF(threshold)), golden, case, dtype)


def golden_name(layer, parameter):
    """The golden values' name of a parameter or buffer of one of LAYERS."""
    kind, norm = ("linear", "bn1d") if layer == "fc" else ("conv2d", "bn2d")
    return f"{layer}.{norm}.{parameter[5:]}" if parameter.startswith("norm.") else f"{layer}.{kind}.{parameter}"


def network(golden, time_steps):
    """The network before its training step, and its tandem layers by name."""
    layers = {
        name: TandemLinear(*sizes, norm="batch")
        if name == "fc"
        else TandemConv2d(*sizes[:2], 3, stride=sizes[2], padding=1, norm="batch")
        for name, sizes in LAYERS.items()
    }
    out = nn.Linear(24, 10)
    *convs, fc = layers.values()
    net = nn.Sequential(Encode(time_steps), *convs, nn.Flatten(), fc, Decode(), out).double()
    for name, layer in layers.items():
        layer.norm.eps, layer.norm.momentum = 1e-30, 0.9
        keys = [k for k in layer.state_dict() if k != "norm.num_batches_tracked"]
        state = {k: tensor(golden[f"before.{golden_name(name, k)}"]) for k in keys}
        layer.load_state_dict(state | {"norm.num_batches_tracked": torch.tensor(0)})
    out.load_state_dict({p: tensor(golden[f"before.out.{p}"]) for p in ("weight", "bias")})
    return net, layers


def step(golden, time_steps):
    """One training step's and one evaluation's results, by the golden values' names."""
    net, layers = network(golden, time_steps)
    counts = []
    for layer in layers.values():
        layer.register_forward_hook(lambda module, arguments, train: counts.append(train.count.detach()))
    log_probs = torch.log_softmax(net(tensor(golden["x"])), 1)
    loss = nn.functional.nll_loss(log_probs, tensor(golden["y"], torch.int64))
    loss.backward()
    with torch.no_grad():
        eval_log_probs = torch.log_softmax(net.eval()(tensor(golden["x"])), 1)

    trains = {f"count{i}": c for i, c in enumerate(counts[:4])} | {
        f"eval_count{i}": c for i, c in enumerate(counts[4:])
    }
    values = {"log_probs": log_probs.detach(), "loss": loss.detach(), "eval_log_probs": eval_log_probs}
    grads = {f"grad.out.{k}": p.grad for k, p in net[-1].named_parameters()}
    for name, layer in layers.items():
        grads |= {f"grad.{golden_name(name, k)}": p.grad for k, p in layer.named_parameters()}
        values |= {f"after.{golden_name(name, f'norm.{s}')}": layer.norm.get_buffer(s) for s in STATISTICS}
    return trains, values, grads


@pytest.mark.parametrize("time_steps", [1, 4, 8])
def test_network(oracle, time_steps):
    golden = np.load(oracle / f"network_T{time_steps}.npz")
    checked = {"x", "y", *(k for k in golden if k.startswith("before."))}
    for path, (trains, values, grads) in every_path(step, golden, time_steps):
        for key, got in trains.items():
            assert np.array_equal(got.numpy(), golden[key]), f"{path}: {key}"
        for key, got in values.items():
            np.testing.assert_allclose(got.numpy(), golden[key], rtol=1e-9, atol=1e-9, err_msg=f"{path}: {key}")
        for key, got in grads.items():
            atol = 1e-9 * max(1.0, np.abs(golden[key]).max())
            np.testing.assert_allclose(got.numpy(), golden[key], rtol=0, atol=atol, err_msg=f"{path}: {key}")
        # Every golden value was looked at.
        left = set(golden) - checked - {*trains, *values, *grads}
        assert not left, left
