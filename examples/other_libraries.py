"""Networks of other libraries, which train.py trains like an ANN: surrogate gradients, quantisation-aware training.

    python examples/train.py --config examples/configs/mnist.yaml --data.dir FOLDER --model.spiking false \
        --model.ann other_libraries.SpikingJelly --model.ann.time_steps 4

They have the layers of an ANN of tandem_cuda.models, so that data, batches, loss, epochs and schedule are equal, too.
"""

from __future__ import annotations

import copy
import importlib
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


class SurrogateGradient(nn.Module):
    """A spiking network of which backpropagation through time trains the layers, with an output at every step.

    The first layer sees the same image at every step, so that its product is computed once. Logits are means over time.
    In eval mode, spikes and SynOps are counted.
    """

    time_steps: int

    def __init__(self, time_steps: int) -> None:
        super().__init__()
        if time_steps < 1:
            raise ValueError(f"{type(self).__name__}: time_steps must be at least 1, got {time_steps}")
        self.time_steps = time_steps
        self.forget()

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
    """SpikingJelly in its multi-step mode, with the arctangent as surrogate and a detached reset.

    Args:
        network: the name of a function of tandem_cuda.models.
        time_steps: T.
        tau: of LIFNode; None for IFNode.
    """

    def __init__(self, network: str = "mnist_cnn", time_steps: int = 4, tau: float | None = None) -> None:
        super().__init__(time_steps)
        layer, neuron = (library(f"spikingjelly.activation_based.{name}") for name in ("layer", "neuron"))
        surrogate = library("spikingjelly.activation_based.surrogate").ATan()
        blocks = Blocks(network, "SpikingJelly")
        self.first = nn.Sequential(*blocks.hidden[0])
        self.hidden = nn.ModuleList(layer.SeqToANNContainer(*block) for block in blocks.hidden[1:])
        self.readout = layer.SeqToANNContainer(*blocks.readout)
        how: dict[str, Any] = {"surrogate_function": surrogate, "detach_reset": True, "step_mode": "m"}
        self.neurons = nn.ModuleList(
            neuron.IFNode(**how) if tau is None else neuron.LIFNode(tau=tau, **how) for _ in blocks.hidden
        )
        self._reset = library("spikingjelly.activation_based.functional").reset_net

    def forward(self, x: Tensor) -> Tensor:
        self._reset(self)
        self.samples += 0 if self.training else len(x)
        current = self.first(x)
        currents = current.expand(self.time_steps, *current.shape)
        for neurons, block in zip(self.neurons, [*self.hidden, self.readout], strict=True):
            spikes = neurons(currents)
            self.count(spikes, block)
            currents = block(spikes)
        return currents.mean(0)


class SnnTorch(SurrogateGradient):
    """snnTorch's Leaky neurons in a loop over time, with the fast sigmoid as surrogate.

    Args:
        network: the name of a function of tandem_cuda.models.
        time_steps: T.
        beta: share of the membrane potential that a step keeps; 1 for integrate-and-fire.
    """

    def __init__(self, network: str = "mnist_cnn", time_steps: int = 4, beta: float = 1.0) -> None:
        super().__init__(time_steps)
        gradient = library("snntorch.surrogate").fast_sigmoid(slope=25)
        blocks = Blocks(network, "SnnTorch")
        self.hidden = nn.ModuleList(nn.Sequential(*block) for block in blocks.hidden)
        self.readout = nn.Sequential(*blocks.readout)
        self.neurons = nn.ModuleList(library("snntorch").Leaky(beta=beta, spike_grad=gradient) for _ in blocks.hidden)

    def forward(self, x: Tensor) -> Tensor:
        self.samples += 0 if self.training else len(x)
        current = self.hidden[0](x)
        readers = [*self.hidden[1:], self.readout]
        potentials: list[Any] = [neurons.init_leaky() for neurons in self.neurons]
        total = torch.zeros(())
        for _ in range(self.time_steps):
            currents = current
            for i, (neurons, block) in enumerate(zip(self.neurons, readers, strict=True)):
                spikes, potentials[i] = neurons(currents, potentials[i])
                self.count(spikes.unsqueeze(0), block)
                currents = block(spikes)
            total = total + currents
        return total / self.time_steps


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
