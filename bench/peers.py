"""The same layers and networks in SpikingJelly and snnTorch, set up as their documentation does, eval mode.

Both integrate, compare and subtract in the order of tandem_cuda: SpikingJelly's IFNode with v_reset=None subtracts the
threshold at once, snnTorch's Leaky with beta=1 at the start of the next step, which is the same sum. SpikingJelly fires
at u >= threshold; snnTorch does too when its spike_grad says so, whose default is u > threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata

import torch
from torch import Tensor, nn

# ONNX Runtime, which runs the ANN in int8, is in onnx_runtime.py.
VERSIONS = {"spikingjelly": "2.0.0", "snntorch": "1.0.0", "onnxruntime": "1.32.0"}


def require(*names: str) -> None:
    """Stop unless these peers, or all, are there in the versions that the figures are about."""
    for name in names or VERSIONS:
        wanted = VERSIONS[name]
        try:
            got = metadata.version(name)
        except metadata.PackageNotFoundError:
            got = "none"
        if got != wanted:
            raise SystemExit(
                f"bench: {name} must be {wanted}, got {got}; pip install '.[bench]', or run with --without-peers"
            )


# ---------------------------------------------------------------------------------------------------------------------
# SpikingJelly: modules in step_mode "m", which fold time into the batch for layers without state
# ---------------------------------------------------------------------------------------------------------------------


def spikingjelly_nodes() -> dict[str, Callable[[], nn.Module]]:
    """Its two integrate-and-fire neurons: the one for use, and the one for teaching, which may be faster on a CPU."""
    from spikingjelly.activation_based import neuron

    return {
        "IFNode": lambda: neuron.IFNode(v_reset=None, step_mode="m"),
        "SimpleIFNode": lambda: neuron.SimpleIFNode(v_reset=None, step_mode="m"),
    }


def spikingjelly(layers: Sequence[nn.Module], node: str, static_input: bool, time_steps: int) -> nn.Module:
    """``layers`` (convolutions, linear layers, Flatten) as a SpikingJelly network, neurons behind those with weights.

    forward: spikes [T, N, ...], or with ``static_input`` a real input [N, ...] of which the first layer computes the
    current once for all steps. Returns spikes [T, N, ...].
    """
    from spikingjelly.activation_based import functional, layer

    new_node = spikingjelly_nodes()[node]
    first, modules = None, []
    for module in layers:
        if isinstance(module, nn.Flatten):
            modules.append(layer.Flatten(step_mode="m"))
            continue
        if static_input and first is None:
            first = module
        elif isinstance(module, nn.Conv2d):
            new: nn.Module = layer.Conv2d(
                module.in_channels,
                module.out_channels,
                module.kernel_size,
                module.stride,
                module.padding,
                step_mode="m",
            )
            new.load_state_dict(module.state_dict())
            modules.append(new)
        else:
            new = layer.Linear(module.in_features, module.out_features, step_mode="m")
            new.load_state_dict(module.state_dict())
            modules.append(new)
        modules.append(new_node())

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = first
            self.rest = nn.Sequential(*modules)

        def forward(self, x: Tensor) -> Tensor:
            functional.reset_net(self.rest)
            if self.first is not None:
                current = self.first(x)
                x = current.expand(time_steps, *current.shape)
            return self.rest(x)

    return Network().eval()


def spikingjelly_with_norm(layers: Sequence[tuple[nn.Module, Tensor, Tensor]], node: str, time_steps: int) -> nn.Module:
    """A network as SpikingJelly's documentation builds it: layer, batch norm, neuron, and the input at every step.

    ``layers``: each layer with weights (no bias used) or Flatten, with the gain and the current per step that its batch
    norm shall have in eval mode. forward: a real input [N, ...]; returns spikes [T, N, ...].
    """
    from spikingjelly.activation_based import functional, layer

    new_node = spikingjelly_nodes()[node]
    modules: list[nn.Module] = []
    for module, gain, current in layers:
        if isinstance(module, nn.Flatten):
            modules.append(layer.Flatten(step_mode="m"))
            continue
        if isinstance(module, nn.Conv2d):
            sizes = (module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding)
            new: nn.Module = layer.Conv2d(*sizes, bias=False, step_mode="m")
            norm: nn.Module = layer.BatchNorm2d(module.out_channels, eps=0.0, step_mode="m")
        else:
            new = layer.Linear(module.in_features, module.out_features, bias=False, step_mode="m")
            norm = layer.BatchNorm1d(module.out_features, eps=0.0, step_mode="m")
        new.load_state_dict({"weight": module.weight})
        norm.load_state_dict({**norm.state_dict(), "weight": gain, "bias": current})  # mean 0, variance 1
        modules += [new, norm, new_node()]

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*modules)

        def forward(self, x: Tensor) -> Tensor:
            functional.reset_net(self.layers)
            return self.layers(x.expand(time_steps, *x.shape))

    return Network().eval()


# ---------------------------------------------------------------------------------------------------------------------
# snnTorch: a loop over time
# ---------------------------------------------------------------------------------------------------------------------


def snntorch(layers: Sequence[nn.Module], static_input: bool, time_steps: int) -> nn.Module:
    """As ``spikingjelly``."""
    import snntorch as snn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(layers)
            self.neurons = nn.ModuleList(
                snn.Leaky(beta=1.0, reset_mechanism="subtract", spike_grad=lambda u: (u >= 0).float()) for _ in layers
            )

        def forward(self, x: Tensor) -> Tensor:
            current = self.layers[0](x) if static_input else None
            potentials: list[Tensor | None] = [None] * len(self.layers)
            output = []
            for t in range(time_steps):
                spikes = x if static_input else x[t]
                for i, (layer, neuron) in enumerate(zip(self.layers, self.neurons, strict=True)):
                    if isinstance(layer, nn.Flatten):
                        spikes = layer(spikes)
                        continue
                    drive = current if i == 0 and current is not None else layer(spikes)
                    state = potentials[i]
                    spikes, potentials[i] = neuron(drive, torch.zeros_like(drive) if state is None else state)
                output.append(spikes)
            return torch.stack(output)

    return Network().eval()
