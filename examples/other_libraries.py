"""Networks of other libraries, which train.py trains like an ANN: surrogate gradients, quantisation-aware training.

    python examples/train.py --config examples/configs/mnist.yaml --data.dir FOLDER --model.spiking false \
        --model.ann other_libraries.SpikingJelly --model.ann.time_steps 4

They have the layers of an ANN of tandem_cuda.models, so that data, batches, loss, epochs and schedule are equal, too.
"""

from __future__ import annotations

import copy
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tandem_cuda import models


def library(name: str) -> Any:
    """Import a module of another library.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ValueError(f"{package} is missing ({error}): pip install 'tandem_cuda[bench]'") from error


class Blocks:
    """The layers of a network between its activation functions: weights, batch norm, dropout.

    Args:
        network: the name of a function of tandem_cuda.models.
        refused: the beginning of an error message.
    """

    def __init__(self, network: str, refused: str) -> None:
        make: Callable[[], nn.Module] | None = getattr(models, network, None)
        if make is None or network.startswith("_"):
            raise ValueError(f"{refused}: network must be a function of tandem_cuda.models, got {network!r}")
        self.hidden: list[list[nn.Module]] = [[]]
        for module in make().children():
            if isinstance(module, nn.ReLU):
                self.hidden.append([])
            elif isinstance(module, (nn.Conv2d, nn.Linear, nn.Flatten, nn.Dropout, nn.modules.batchnorm._BatchNorm)):
                self.hidden[-1].append(module)
            else:
                raise ValueError(f"{refused}: network must be made of convolutions and linear layers, got {module}")
        self.readout = self.hidden.pop()


class SurrogateGradient(nn.Module, ABC):
    """A spiking network of which backpropagation through time trains the layers, with an output at every step.

    The first layer sees the same image at every step, so that its product is computed once. The steps of a layer go
    through it, and its batch norm, as one batch. Logits are means over time. In eval mode, spikes and SynOps are
    counted.

    Args:
        network: the name of a function of tandem_cuda.models.
        time_steps: T.
        make: a function that makes the neurons of a layer.
    """

    def __init__(self, network: str, time_steps: int, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        name = type(self).__name__
        if time_steps < 1:
            raise ValueError(f"{name}: time_steps must be at least 1, got {time_steps}")
        blocks = Blocks(network, name)
        self.time_steps = time_steps
        self.hidden = nn.ModuleList(nn.Sequential(*block) for block in blocks.hidden)
        self.readout = nn.Sequential(*blocks.readout)
        self.neurons = nn.ModuleList(make() for _ in blocks.hidden)
        self.forget()

    @abstractmethod
    def fire(self, neurons: Any, currents: Tensor) -> Tensor:
        """Return the spikes of a layer of neurons, which start at rest, for currents of the same shape, [T, N, ...]."""

    def forward(self, x: Tensor) -> Tensor:
        self.samples += 0 if self.training else len(x)
        first, *blocks = *self.hidden, self.readout
        current = first(x)
        currents = current.expand(self.time_steps, *current.shape)
        for neurons, block in zip(self.neurons, blocks, strict=True):
            spikes = self.fire(neurons, currents)
            self.count(spikes, block)
            currents = block(spikes.flatten(0, 1)).unflatten(0, spikes.shape[:2])
        return currents.mean(0)

    def forget(self) -> None:
        """Begin to count anew."""
        self.spikes, self.steps, self.synops, self.samples = 0.0, 0, 0.0, 0
        self._fan_out: dict[nn.Module, Tensor] = {}

    def count(self, spikes: Tensor, reader: Any) -> None:
        """Count the spikes [T, N, ...] that a block of layers, an nn.Sequential, reads."""
        if self.training:
            return
        known = self._fan_out.get(reader)
        if known is None or known.shape != spikes.shape[2:]:
            known = self._fan_out[reader] = fan_out(reader, spikes.shape[2:])
        total = spikes.detach().sum((0, 1))
        self.spikes += float(total.sum())
        self.steps += spikes.numel()
        self.synops += float((total * known).sum())

    def activity(self) -> dict[str, float]:
        """Return the firing rate, and SynOps per sample, of what has been seen in eval mode."""
        return {"firing_rate": self.spikes / self.steps, "synops_per_sample": self.synops / self.samples}


def fan_out(block: Iterable[nn.Module], shape: Sequence[int]) -> Tensor:
    """Return to how many neurons each element of a block's input is connected."""
    synapses = nn.Sequential(*(copy.deepcopy(m) for m in block if isinstance(m, (nn.Conv2d, nn.Linear, nn.Flatten))))
    for parameter in synapses.parameters():
        nn.init.ones_(parameter.requires_grad_(False))
    with torch.enable_grad():
        x = torch.zeros(1, *shape, requires_grad=True)
        return torch.autograd.grad(synapses(x).sum(), x)[0][0]


class SpikingJelly(SurrogateGradient):
    """SpikingJelly's neurons in their multi-step mode, with the arctangent as surrogate and a detached reset.

    Args:
        network: the name of a function of tandem_cuda.models.
        time_steps: T.
        tau: of LIFNode; None for IFNode.
        reset: what a spike sets the potential to; None subtracts the threshold.
    """

    def __init__(
        self, network: str = "mnist_cnn", time_steps: int = 4, tau: float | None = None, reset: float | None = 0.0
    ) -> None:
        neuron = library("spikingjelly.activation_based.neuron")
        surrogate = library("spikingjelly.activation_based.surrogate").ATan()
        how = {"surrogate_function": surrogate, "detach_reset": True, "step_mode": "m", "v_reset": reset}
        super().__init__(
            network, time_steps, lambda: neuron.IFNode(**how) if tau is None else neuron.LIFNode(tau=tau, **how)
        )

    def fire(self, neurons: Any, currents: Tensor) -> Tensor:
        neurons.reset()
        return neurons(currents)


class SnnTorch(SurrogateGradient):
    """snnTorch's Leaky neurons.

    Args:
        network: the name of a function of tandem_cuda.models.
        time_steps: T.
        beta: share of the membrane potential that a step keeps; 1 for integrate-and-fire.
        surrogate: the name of a function of snntorch.surrogate, with its own slope.
    """

    def __init__(
        self, network: str = "mnist_cnn", time_steps: int = 4, beta: float = 1.0, surrogate: str = "atan"
    ) -> None:
        leaky, make = library("snntorch").Leaky, getattr(library("snntorch.surrogate"), surrogate, None)
        if not callable(make):
            raise ValueError(f"SnnTorch: surrogate must be a function of snntorch.surrogate, got {surrogate!r}")
        gradient = make()
        super().__init__(network, time_steps, lambda: leaky(beta=beta, spike_grad=gradient))

    def fire(self, neurons: Any, currents: Tensor) -> Tensor:
        spikes, potential = [], neurons.init_leaky()
        for current in currents:
            spike, potential = neurons(current, potential)
            spikes.append(spike)
        return torch.stack(spikes)


class QuantisationAware(nn.Module):
    """Brevitas's layers with weights and activations of few bits, and scales that it learns.

    Args:
        network: the name of a function of tandem_cuda.models.
        bits: of the activations, which are what T radix spikes can say.
        weight_bits: of the weights, with a scale for each output channel.
    """

    def __init__(self, network: str = "mnist_cnn", bits: int = 4, weight_bits: int = 8) -> None:
        super().__init__()
        quantised = library("brevitas.nn")
        blocks = Blocks(network, "QuantisationAware")
        how = {"weight_bit_width": weight_bits, "weight_scaling_per_output_channel": True}

        def layer(module: nn.Module) -> nn.Module:
            made = module
            if isinstance(module, nn.Conv2d):
                sizes = module.in_channels, module.out_channels, module.kernel_size
                where = {"stride": module.stride, "padding": module.padding}
                made = quantised.QuantConv2d(*sizes, bias=module.bias is not None, **where, **how)
            elif isinstance(module, nn.Linear):
                bias = module.bias is not None
                made = quantised.QuantLinear(module.in_features, module.out_features, bias=bias, **how)
            if made is not module:
                made.load_state_dict(module.state_dict(), strict=False)
            return made

        layers: list[nn.Module] = []
        for block in blocks.hidden:
            layers += [*map(layer, block), quantised.QuantReLU(bit_width=bits)]
        self.layers = nn.Sequential(*layers, *map(layer, blocks.readout))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
