"""How active a network is, and what that costs next to its ANN: synops and record_activity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._table import table
from .nn import Decode, EncodedInput, TandemAdd, TandemConvTranspose2d
from .nn.layer import TandemLayer
from .spike_train import SpikeTrain

# Of one float32 operation in a 45 nm process at 0.9 V: M. Horowitz, "Computing's energy problem (and what we can do
# about it)", ISSCC 2014, doi:10.1109/ISSCC.2014.6757323, figure 1.1.9: 3.7 pJ a multiplication, 0.9 pJ an addition.
ADDITION_PJ = 0.9
MAC_PJ = 4.6


@dataclass(frozen=True)
class LayerActivity:
    """What one layer did, averaged over the samples."""

    name: str
    """Qualified name in the model, as in ``named_modules``."""
    neurons: int
    """Output neurons per sample."""
    time_steps: int
    """T."""
    firing_rate: float | None
    """Spikes per output neuron and time step, in [0, 1]; None for a read-out, which has no spikes."""
    saturation: float | None
    """Share of output neurons that spike at every time step; None for a read-out."""
    silent: float | None
    """Share of output neurons that never spike, of each sample; None for a read-out."""
    dead: float | None
    """Share of output neurons that spike for none of the samples; None for a read-out."""
    synops: float
    """Synaptic operations per sample: additions of one weight to one neuron. 0 for an analogue layer."""
    macs: int
    """Multiply-accumulates per sample of the same layer in the ANN."""
    analogue: bool
    """The input is real (it comes from ``Encode``): the spiking layer does the ANN's ``macs`` too, once for all T."""

    @property
    def snn_energy_pj(self) -> float:
        """Estimated energy of the spiking layer's arithmetic per sample, in picojoules; :func:`synops` says how."""
        if self.analogue:
            return MAC_PJ * self.macs
        return (MAC_PJ if self.firing_rate is None else ADDITION_PJ) * self.synops

    @property
    def ann_energy_pj(self) -> float:
        """Estimated energy of the ANN layer's arithmetic per sample, in picojoules."""
        return MAC_PJ * self.macs


class ActivityTable(list[LayerActivity]):
    """A list of :class:`LayerActivity`, one per layer in order of execution, that prints as a table."""

    def __str__(self) -> str:
        rows = [["layer", "neurons", "firing rate", "saturated", "silent", "dead"]]
        rows[0] += ["SynOps", "SNN MACs", "ANN MACs", "SNN / ANN", "SNN nJ", "ANN nJ"]
        for a in self:
            rates = ["" if x is None else f"{x:.1%}" for x in (a.firing_rate, a.saturation, a.silent, a.dead)]
            rows.append([a.name, f"{a.neurons:,}", *rates, *_costs([a])])
        spiking = [(a.firing_rate, a.neurons) for a in self if a.firing_rate is not None]
        rate = sum(rate * neurons for rate, neurons in spiking) / max(1, sum(neurons for _, neurons in spiking))
        total = ["total", f"{sum(a.neurons for a in self):,}", f"{rate:.1%}", "", "", "", *_costs(self)]
        return table([*rows, total])


def _costs(activities: Iterable[LayerActivity]) -> list[str]:
    """Operations and energy of some layers, as cells of the table."""
    layers = list(activities)
    snn_macs, macs = sum(a.macs for a in layers if a.analogue), sum(a.macs for a in layers)
    synops = sum(a.synops for a in layers)
    counts = [f"{x:,.0f}" if x else "-" for x in (synops, snn_macs, macs)]
    energies = [sum(a.snn_energy_pj for a in layers), sum(a.ann_energy_pj for a in layers)]
    return [*counts, f"{(synops + snn_macs) / macs:.2f}", *(f"{x / 1000:,.1f}" for x in energies)]


def synops(model: nn.Module, inputs: Any) -> ActivityTable:
    """Run samples through a network and count the operations of each layer.

    A synaptic operation (SynOp) is what a spike costs at each neuron that it reaches: one addition, where the ANN
    multiplies and adds (Merolla et al., "A million spiking-neuron integrated circuit", Science 2014,
    doi:10.1126/science.1254642; compared with the operations of an ANN as in Wu et al., "A Tandem Learning Rule", IEEE
    TNNLS 2021, doi:10.1109/TNNLS.2021.3095724, energy efficiency). Conventions:

    - SynOps are exact: every input spike times the number of output neurons that it reaches. In a convolution that
      depends on stride, padding, dilation and groups, and is smaller at the borders.
    - MACs are what a dense implementation does, O * Ho * Wo * (C / groups) * kH * kW for a convolution, C * H * W *
      (O / groups) * kH * kW for a transposed one and F * O for a linear layer: taps in the zero padding count. Batch
      norm (folded), bias and neuron updates are not counted, nor is pooling.
    - A TandemAdd does what its branches do, and through nn.Identity one operation a spike. Its zero weights cost time,
      but are no synapses.
    - A tandem layer fed by ``Encode`` multiplies its real input by the weights once, whatever T: ``analogue``.
    - An nn.Linear fed by ``Decode`` reads the counts once, after the last step: one operation for each count that is
      not zero and each output.
    - Of a hybrid (``convert`` with ``spiking_layers``) the spiking layers alone are counted, not its ANN's.
    - Energy is an estimate of the arithmetic alone, without memory and neuron updates: 0.9 pJ for a SynOp (a float32
      addition) and 4.6 pJ for a MAC, also where a spiking layer reads real input and where a read-out multiplies
      counts (Horowitz, "Computing's energy problem", ISSCC 2014, doi:10.1109/ISSCC.2014.6757323: 45 nm process).

    Spikes are counted on the device, from the bit planes; the host waits for it once, after the last batch.

    Args:
        model: any module with tandem layers in it. Runs in eval mode without gradient; each submodule gets its own mode
            back. Hooks of its own run as usual.
        inputs: a batch for ``model`` (Tensor, SpikeTrain or EncodedInput), or an iterable of batches such as a
            DataLoader; of a batch that is a tuple or list, the first element is used. Tensors and spike trains are
            moved to the device of the model's parameters. Samples must all have one shape, batches may differ in size.

    Returns:
        One LayerActivity per tandem layer, and read-out behind ``Decode``, in order of execution, averaged over all
        samples; a list whose ``str`` is a table. A layer that runs twice is listed twice.

    Raises:
        TypeError: ``model`` is no nn.Module, ``inputs`` neither a batch nor iterable.
        ValueError: no tandem layer ran, a batch is empty, or the samples of batches differ in shape.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"synops: model must be an nn.Module, got {type(model).__name__}")
    with record_activity(model) as record, _evaluating(model), torch.no_grad():
        for batch in _batches(model, inputs):
            model(batch)
    return record.table()


@contextmanager
def record_activity(model: nn.Module) -> Iterator[ActivityRecord]:
    """Record what the tandem layers of a network do in the forward passes inside the ``with`` block.

    For counting during training, without a forward pass more::

        with record_activity(net) as record:
            logits = net(images)
        print(record.table())  # or update the metrics of tandem_cuda.metrics with it

    Counts as :func:`synops` does, in whatever mode the model is in. In training mode, dropout between ``Decode`` and a
    read-out hides the read-out from the record.

    Args:
        model: any module with tandem layers in it.

    Yields:
        The record, which grows with every forward pass; nothing in it makes the host wait before ``table()``.

    Raises:
        TypeError: ``model`` is no nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"record_activity: model must be an nn.Module, got {type(model).__name__}")
    record = ActivityRecord()
    handles = []
    try:
        handles.append(model.register_forward_pre_hook(record._begin))
        for path, module in model.named_modules():
            name = path or type(module).__name__
            if isinstance(module, (TandemLayer, TandemAdd)):
                handles.append(module.register_forward_hook(_named(name, record._on_layer)))
            elif isinstance(module, Decode):
                handles.append(module.register_forward_hook(record._on_decode))
            elif isinstance(module, nn.Linear):
                handles.append(module.register_forward_hook(_named(name, record._on_linear)))
        yield record
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class LayerSums:
    """What one layer did, summed over samples; the numbers stay on the layer's device."""

    name: str
    neurons: int
    time_steps: int
    macs: int
    analogue: bool
    spiking: bool
    samples: int
    totals: Tensor
    """int64 [4]: spikes; pairs of sample and neuron that are saturated, that are silent; synaptic operations."""
    fired: Tensor
    """bool, the shape of the neurons: spiked for any sample."""

    def _added(self, other: LayerSums) -> LayerSums:
        if (self.fired.shape, self.time_steps) != (other.fired.shape, other.time_steps):
            raise ValueError(
                f"synops: inputs must all lead to the same neurons and time steps in layer {self.name!r}, got "
                f"{list(self.fired.shape)} with T = {self.time_steps} and {list(other.fired.shape)} with T = "
                f"{other.time_steps}"
            )
        self.samples += other.samples
        self.totals = self.totals + other.totals
        self.fired = self.fired | other.fired
        return self


class ActivityRecord:
    """Sums over the forward passes of a network; what :func:`record_activity` yields."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, int], LayerSums] = {}
        self._calls: dict[str, int] = {}  # of each layer in the forward pass that is running
        self._decoded: tuple[Tensor, int] | None = None  # the latest counts and their T
        self._fan_outs: dict[tuple[str, torch.Size], Tensor] = {}

    @property
    def layers(self) -> list[LayerSums]:
        """The sums of each layer, in order of execution; a layer that runs twice is listed twice."""
        return list(self._sums.values())

    def table(self) -> ActivityTable:
        """What the layers did on average over the recorded samples.

        Raises:
            ValueError: no tandem layer ran.
        """
        if not any(layer.spiking for layer in self.layers):
            raise ValueError("synops: model must run a tandem layer (TandemConv2d, TandemLinear), got none that ran")
        return ActivityTable(_averages(layer) for layer in self.layers)

    def _begin(self, model: nn.Module, args: Any) -> None:
        self._calls.clear()
        self._decoded = None

    @torch.no_grad()
    def _on_layer(
        self, name: str, layer: TandemLayer | TandemAdd, args: tuple[SpikeTrain | EncodedInput, ...], output: SpikeTrain
    ) -> None:
        _check_samples(output.shape)
        count = output.count.detach()
        branches = list(layer.branches) if isinstance(layer, TandemAdd) else [layer]
        operations, multiplications = count.new_zeros((), dtype=torch.float64), 0
        for i, (branch, x) in enumerate(zip(branches, args, strict=True)):
            if isinstance(x, SpikeTrain):
                operations = operations + self._operations(f"{name}.{i}", branch, x)
            multiplications += layer_macs(branch, x, output)
        sums = (count.sum(dtype=torch.float64), (count == output.time_steps).sum(), (count == 0).sum(), operations)
        neurons = math.prod(output.shape[1:])
        self._add(
            LayerSums(
                name=name,
                neurons=neurons,
                time_steps=output.time_steps,
                macs=multiplications,
                analogue=isinstance(args[0], EncodedInput),
                spiking=True,
                samples=output.shape[0],
                totals=torch.stack([x.to(torch.int64) for x in sums]),
                fired=(count != 0).any(0),
            )
        )

    def _on_decode(self, module: Decode, args: tuple[SpikeTrain], output: Tensor) -> None:
        self._decoded = output, args[0].time_steps

    @torch.no_grad()
    def _on_linear(self, name: str, layer: nn.Linear, args: tuple[Any, ...], output: Tensor) -> None:
        count = args[0]
        # Same memory: nn.Flatten or dropout (in eval mode) may stand in between, another layer may not.
        if self._decoded is None or not isinstance(count, Tensor) or count.data_ptr() != self._decoded[0].data_ptr():
            return
        neurons = count.shape[1:-1].numel() * layer.out_features
        operations = (count != 0).sum() * layer.out_features
        self._add(
            LayerSums(
                name=name,
                neurons=neurons,
                time_steps=self._decoded[1],
                macs=neurons * layer.in_features,
                analogue=False,
                spiking=False,
                samples=count.shape[0],
                totals=torch.stack([torch.zeros_like(operations)] * 3 + [operations]),
                fired=count.new_zeros(output.shape[1:], dtype=torch.bool),
            )
        )

    def _add(self, sums: LayerSums) -> None:
        call = self._calls.get(sums.name, 0)
        self._calls[sums.name] = call + 1
        key = sums.name, call
        self._sums[key] = self._sums[key]._added(sums) if key in self._sums else sums

    def _operations(self, name: str, layer: nn.Module, x: SpikeTrain) -> Tensor:
        """Sum over all input neurons of spikes times output neurons reached, a float64 scalar (exact up to 2^53)."""
        if not isinstance(layer, TandemLayer):  # the identity in a join
            return x.count.detach().sum(dtype=torch.float64)
        key = name, x.shape[1:]
        if key not in self._fan_outs:
            self._fan_outs[key] = fan_out(layer, x.shape[1:], x.device)
        return (x.count.detach().sum(0, dtype=torch.float64) * self._fan_outs[key]).sum()


def fan_out(layer: TandemLayer, shape: torch.Size, device: torch.device) -> Tensor:
    """Output neurons that each input neuron reaches, float64 in the shape of a sample.

    With weights of one, that is the derivative of the sum of the outputs. One output channel per group stands for all.
    """
    weight, groups = layer._kernel_weight(), getattr(layer, "groups", 1)
    with torch.inference_mode(False), torch.enable_grad():
        ones = torch.ones(groups, *weight.shape[1:], dtype=torch.float64, device=device)
        sample = torch.zeros(1, *shape, dtype=torch.float64, device=device, requires_grad=True)
        (reached,) = torch.autograd.grad(layer._dense_product(sample, ones, None).sum(), sample)
    return reached[0] * (weight.shape[0] // groups)


def layer_macs(layer: nn.Module, x: SpikeTrain | EncodedInput, output: SpikeTrain) -> int:
    """Multiply-accumulates per sample; an identity has none."""
    if not isinstance(layer, TandemLayer):
        return 0
    # Every weight of an input channel meets every pixel of the input where the convolution is transposed.
    value = x.value if isinstance(x, EncodedInput) else x
    neurons = value.shape[1:] if isinstance(layer, TandemConvTranspose2d) else output.shape[1:]
    return math.prod(neurons) * layer.weight[0].numel()


def _averages(layer: LayerSums) -> LayerActivity:
    spikes, saturated, silent, operations = layer.totals.tolist()
    pairs = layer.neurons * layer.samples
    return LayerActivity(
        name=layer.name,
        neurons=layer.neurons,
        time_steps=layer.time_steps,
        firing_rate=spikes / (pairs * layer.time_steps) if layer.spiking else None,
        saturation=saturated / pairs if layer.spiking else None,
        silent=silent / pairs if layer.spiking else None,
        dead=1 - int(layer.fired.sum()) / layer.neurons if layer.spiking else None,
        synops=operations / layer.samples,
        macs=layer.macs,
        analogue=layer.analogue,
    )


def _batches(model: nn.Module, inputs: Any) -> Iterator[Any]:
    kinds = (Tensor, SpikeTrain, EncodedInput)
    parameter = next(model.parameters(), None)
    if isinstance(inputs, kinds):
        inputs = [inputs]
    elif isinstance(inputs, (str, bytes)) or not isinstance(inputs, Iterable):
        raise TypeError(
            "synops: inputs must be a Tensor, SpikeTrain or EncodedInput, or an iterable of batches, got "
            f"{type(inputs).__name__}"
        )
    for batch in inputs:
        x = batch[0] if isinstance(batch, (tuple, list)) and not isinstance(batch, EncodedInput) else batch
        yield x.to(parameter.device) if parameter is not None and isinstance(x, (Tensor, SpikeTrain)) else x


def _named(name: str, hook: Any) -> Any:
    return lambda *args: hook(name, *args)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, then for each module the mode it had: parts of a model may be frozen."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def _check_samples(shape: torch.Size) -> None:
    if math.prod(shape) == 0:
        raise ValueError(f"synops: inputs must hold at least one sample, got a batch of shape {list(shape)}")
