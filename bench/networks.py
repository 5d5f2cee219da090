"""The networks that are measured, their twins, and how they get realistic activity without training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import tandem_cuda as tc
from report import check
from tandem_cuda import reference

T = 8
TRAINED = 3.0  # the gamma of batch norm with which neurons that fire at all fire about twice in 8 steps
TandemLayer = (tc.TandemConv2d, tc.TandemLinear)


def inputs(*shape: int, batches: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(shape, generator=generator) for _ in range(batches)]


def cifar_net(layers: Any, time_steps: int = T, hidden: int = 1024) -> nn.Sequential:
    """CifarNet of Wu et al., IEEE TNNLS 2021; input [N, 3, 32, 32]. ``layers``: tandem_cuda or its reference."""
    return nn.Sequential(
        layers.Encode(time_steps),
        layers.TandemConv2d(3, 128, 3, padding=1, norm="batch"),
        layers.TandemConv2d(128, 256, 3, stride=2, padding=1, norm="batch"),
        layers.TandemConv2d(256, 512, 3, stride=2, padding=1, norm="batch"),
        layers.TandemConv2d(512, 1024, 3, padding=1, norm="batch"),
        layers.TandemConv2d(1024, 512, 3, padding=1, norm="batch"),
        nn.Flatten(),
        layers.TandemLinear(512 * 8 * 8, hidden, norm="batch"),
        layers.Decode(),
        nn.Linear(hidden, 10),
    )


def mnist_net(layers: Any, time_steps: int = T) -> nn.Sequential:
    """A network of the size that digits ask for; input [N, 1, 28, 28]."""
    return nn.Sequential(
        layers.Encode(time_steps),
        layers.TandemConv2d(1, 32, 3, padding=1, norm="batch"),
        layers.TandemConv2d(32, 64, 3, stride=2, padding=1, norm="batch"),
        layers.TandemConv2d(64, 64, 3, stride=2, padding=1, norm="batch"),
        nn.Flatten(),
        layers.TandemLinear(3136, 128, norm="batch"),
        layers.Decode(),
        nn.Linear(128, 10),
    )


def reference_twin(net: nn.Sequential, build: Any, form: str) -> nn.Sequential:
    """The same network in plain PyTorch; form "loop" or "folded"."""
    twin = build(reference)
    twin.load_state_dict(net.state_dict())
    for layer in twin:
        if hasattr(layer, "form"):
            layer.form = form
    return twin.train(net.training)


def ann_twin(net: nn.Sequential) -> nn.Sequential:
    """Convolution or linear layer, batch norm and ReLU for each tandem layer, with copies of its parameters."""
    modules: list[nn.Module] = []
    for layer in net:
        if isinstance(layer, tc.TandemConv2d):
            new: nn.Module = nn.Conv2d(
                layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding
            )
            norm: nn.Module = nn.BatchNorm2d(layer.out_channels)
        elif isinstance(layer, tc.TandemLinear):
            new, norm = nn.Linear(layer.in_features, layer.out_features), nn.BatchNorm1d(layer.out_features)
        elif isinstance(layer, nn.Linear):
            modules.append(nn.Linear(layer.in_features, layer.out_features))
            modules[-1].load_state_dict(layer.state_dict())
            continue
        else:
            modules += [nn.Flatten()] if isinstance(layer, nn.Flatten) else []
            continue
        new.load_state_dict({"weight": layer.weight, "bias": layer.bias})
        norm.load_state_dict(layer.norm.state_dict())
        modules += [new, norm, nn.ReLU()]
    return nn.Sequential(*modules).train(net.training)


def fused(ann: nn.Sequential) -> nn.Sequential:
    """An ANN in eval mode with its batch norm folded into the weights."""
    modules: list[nn.Module] = []
    for layer in ann:
        if isinstance(layer, nn.BatchNorm2d):
            modules[-1] = nn.utils.fuse_conv_bn_eval(modules[-1], layer)
        elif isinstance(layer, nn.BatchNorm1d):
            modules[-1] = nn.utils.fuse_linear_bn_eval(modules[-1], layer)
        else:
            modules.append(layer)
    return nn.Sequential(*modules)


def spiking_weights(net: nn.Sequential) -> list[nn.Module]:
    """The spiking layers' weights for one step, batch norm folded in (bias over T), without the read-out."""
    ann = fused(ann_twin(net))
    modules = [module for module in ann if not isinstance(module, nn.ReLU)][:-1]
    for module in modules:
        if not isinstance(module, nn.Flatten):
            module.bias.data /= net[0].time_steps
    return modules


@torch.no_grad()
def weights_and_norms(net: nn.Sequential) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """Each tandem layer (and Flatten) without the read-out, with batch norm's gain and its current per step."""
    layers: list[tuple[nn.Module, Tensor, Tensor]] = []
    for layer in net:
        if isinstance(layer, TandemLayer):
            norm = layer.norm
            gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            current = ((layer.bias - norm.running_mean) * gain + norm.bias) / net[0].time_steps
            layers.append((layer, gain, current))
        elif isinstance(layer, nn.Flatten):
            layers.append((layer, torch.empty(0), torch.empty(0)))
    return layers


@torch.no_grad()
def settle(net: nn.Sequential, inputs: list[Tensor], rate: float = 0.05, gamma: float = 1.0) -> nn.Sequential:
    """Give every batch norm the statistics of ``inputs``, layer by layer, and a beta for a firing rate, here of 5 %.

    Leaves the network in eval mode. As initialised, with beta = 0, batch norm leads to 2 to 3 %; trained networks fire
    at 3 to 7 %. The larger ``gamma``, the fewer neurons fire, and the more often: with TRAINED, about twice.
    """
    net.eval()
    trains: list[Any] = inputs
    for layer in net:
        if isinstance(layer, TandemLayer):
            momentum, layer.norm.momentum = layer.norm.momentum, None  # None: the mean over all batches
            layer.norm.reset_running_stats()
            layer.train()
            for train in trains:
                layer(train)
            layer.eval()
            layer.norm.momentum = momentum
            nn.init.constant_(layer.norm.weight, gamma)
            _calibrate(layer, trains[0], rate)
        trains = [layer(train) for train in trains]
    return net


def _calibrate(layer: Any, train: Any, rate: float) -> None:
    # Of beta; the rate rises with it. Half of the values are positive where it is zero, and radix spikes show them all.
    low, high = 2 * (1 - layer.norm.weight[0].item()) - 4 * layer.neuron.radix, 5 * rate * train.time_steps
    while not 0.9 * rate <= float(layer(train).firing_rate()) <= 1.1 * rate:
        middle = (low + high) / 2
        nn.init.constant_(layer.norm.bias, middle)
        low, high = (middle, high) if float(layer(train).firing_rate()) < rate else (low, middle)
        check(high - low > 1e-3, f"{layer}: no beta up to {5 * rate:g} T gives a firing rate of {rate:.0%}")


def activity(net: nn.Module, x: Tensor, low: float = 0.03, high: float = 0.07) -> list[str]:
    """One line a layer, after checking that every spiking layer's firing rate is from ``low`` to ``high``."""
    lines = []
    for layer in tc.synops(net, x):
        if layer.firing_rate is None:
            continue
        check(
            low <= layer.firing_rate <= high,
            f"layer {layer.name}: firing rate {layer.firing_rate:.1%}, not {low:.1%} to {high:.1%}",
        )
        share = f"{layer.synops / layer.macs:.2f}" if layer.macs else "-"  # batch norm of spikes has no MACs
        lines.append(
            f"layer {layer.name}: firing rate {layer.firing_rate:.1%}, active neurons {1 - layer.silent:.1%}, "
            f"SynOps / MACs {'(real input)' if layer.analogue else share}"
        )
    return lines


@torch.no_grad()
def counts(net: nn.Sequential, x: Any) -> list[Tensor]:
    """Spike count of every spiking layer."""
    found = []
    for layer in net:
        x = layer(x)
        if hasattr(layer, "neuron"):
            found.append(x.count)
    return found


def training_step(net: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward, cross entropy, backward, and plain SGD: new weights at every step, which have to be packed anew."""
    labels = torch.arange(len(x)) % 10
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)  # the activity stays as it was calibrated

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step()

    return step
