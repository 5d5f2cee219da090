"""How active a network is, and what that costs next to its ANN: synops and record_activity."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from ._table import table
from .nn import (
    Decode,
    EncodedInput,
    SpikingAdaptiveAvgPool2d,
    SpikingAvgPool2d,
    SpikingMaxPool2d,
    TandemAdd,
    TandemConvTranspose2d,
)
from .nn.encode import FrozenDecode
from .nn.frozen import FrozenLayer, Span
from .nn.frozen_tandem import FrozenAdd, FrozenTandem
from .nn.layer import TandemLayer, _recomputing
from .nn.modes import evaluating
from .nn.pool import FrozenPool
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
    """T; 1 for a layer without spikes that reads real values."""
    firing_rate: float | None
    """Spikes per output neuron and time step, in [0, 1]; None for a layer without spikes, such as a read-out."""
    saturation: float | None
    """Share of output neurons that spike at every time step; None for a layer without spikes."""
    silent: float | None
    """Share of output neurons that never spike, of each sample; None for a layer without spikes."""
    dead: float | None
    """Share of output neurons that spike for none of the samples; None for a layer without spikes."""
    synops: float
    """Synaptic operations per sample: additions of one weight to one neuron. 0 for an analogue layer."""
    macs: int
    """Multiply-accumulates per sample of the same layer in the ANN."""
    analogue: bool
    """The input is real, neither spikes nor their counts: the layer does the ANN's ``macs`` too, once for all T."""

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

    def __init__(self, activities: Iterable[LayerActivity] = (), not_counted: Iterable[str] = ()) -> None:
        super().__init__(activities)
        self.not_counted = tuple(not_counted)
        """What ran and is in none of the rows: modules with parameters, and products other than of weight layers."""

    def __str__(self) -> str:
        rows = [["layer", "neurons", "firing rate", "saturated", "silent", "dead"]]
        rows[0] += ["SynOps", "SNN MACs", "ANN MACs", "SNN / ANN", "SNN nJ", "ANN nJ"]
        for a in self:
            rates = ["" if x is None else f"{x:.1%}" for x in (a.firing_rate, a.saturation, a.silent, a.dead)]
            rows.append([a.name, f"{a.neurons:,}", *rates, *_costs([a])])
        spiking = [(a.firing_rate, a.neurons) for a in self if a.firing_rate is not None]
        rate = sum(rate * neurons for rate, neurons in spiking) / max(1, sum(neurons for _, neurons in spiking))
        total = ["total", f"{sum(a.neurons for a in self):,}", f"{rate:.1%}", "", "", "", *_costs(self)]
        missing = f"\nNot counted: {', '.join(self.not_counted)}" if self.not_counted else ""
        return table([*rows, total]) + missing


def _costs(activities: Iterable[LayerActivity]) -> list[str]:
    """Operations and energy of some layers, as cells of the table."""
    layers = list(activities)
    snn_macs, macs = sum(a.macs for a in layers if a.analogue), sum(a.macs for a in layers)
    synops = sum(a.synops for a in layers)
    counts = [f"{x:,.0f}" if x else "-" for x in (synops, snn_macs, macs)]
    energies = [sum(a.snn_energy_pj for a in layers), sum(a.ann_energy_pj for a in layers)]
    ratio = f"{(synops + snn_macs) / macs:.2f}" if macs else "-"  # joins of identities multiply nothing
    return [*counts, ratio, *(f"{x / 1000:,.1f}" for x in energies)]


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
    - Weights behind ``Decode`` (nn.Linear, nn.Conv*d, or calls of the same functions) read the counts once, after the
      last step: one operation for each count that is not zero and each output that it reaches. What only moves or
      scales counts may stand in between, such as nn.Flatten, dropout, or a division by T.
    - Weights that read other real values, such as those of the ANN behind the cut of a hybrid (``convert`` with
      ``spiking_layers``), do what they do in the ANN: ``analogue``.
    - What else multiplies, such as attention, recurrent layers and other modules with parameters, is named below the
      table.
    - Energy is an estimate of the arithmetic alone, without memory and neuron updates: 0.9 pJ for a SynOp (a float32
      addition) and 4.6 pJ for a MAC, also where a spiking layer reads real input and where a read-out multiplies
      counts (Horowitz, "Computing's energy problem", ISSCC 2014, doi:10.1109/ISSCC.2014.6757323: 45 nm process).

    Spikes are counted on the device, from the bit planes; the host waits for it once, after the last batch.

    Args:
        model: any module with tandem layers in it, or what ``freeze`` made of one. Runs in eval mode without gradient;
            each submodule gets its own mode back. Hooks of its own run as usual; compiled parts run in eager mode.
        inputs: a batch for ``model`` (Tensor, SpikeTrain or EncodedInput), or an iterable of batches such as a
            DataLoader; of a batch that is a tuple or list, the first element is used. Tensors and spike trains are
            moved to the device of the model's parameters. Samples must all have one shape, batches may differ in size.

    Returns:
        One LayerActivity per layer with weights, and per TandemAdd, in order of execution, averaged over all samples; a
        list whose ``str`` is a table. A layer that runs twice is listed twice.

    Raises:
        TypeError: ``model`` is no nn.Module, ``inputs`` neither a batch nor iterable.
        ValueError: no tandem layer ran, a batch is empty, or the samples of batches differ in shape.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"synops: model must be an nn.Module, got {type(model).__name__}")
    with record_activity(model) as record, evaluating(model), torch.no_grad():
        for batch in _batches(model, inputs):
            model(batch)
    return record.table()


@contextmanager
def record_activity(model: nn.Module) -> Iterator[ActivityRecord]:
    """Record what the layers of a network do in the forward passes inside the ``with`` block.

    For counting during training, without a forward pass more::

        with record_activity(net) as record:
            logits = net(images)
        print(record.table())  # or update the metrics of tandem_cuda.metrics with it

    Counts as :func:`synops` does, in whatever mode the model is in. Parts that torch.compile compiled run in eager mode
    inside the block.

    Args:
        model: any module with tandem layers in it, or what ``freeze`` made of one.

    Yields:
        The record, which grows with every forward pass; nothing in it makes the host wait before ``table()``.

    Raises:
        TypeError: ``model`` is no nn.Module.
        ValueError: inside the block, at a frozen network that runs in chunks of time (``stream``, ``predict``).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"record_activity: model must be an nn.Module, got {type(model).__name__}")
    record = ActivityRecord()
    handles = [model.register_forward_pre_hook(record._begin)]
    try:
        for module, name in _names(model).items():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks, and calls no function that Python sees
                if any(True for _ in module.parameters(recurse=False)):
                    record._not_counted[f"{name} ({module.original_name}, scripted)"] = None
                continue
            handles.append(module.register_forward_pre_hook(_named(name, record._enter)))
            handles.append(module.register_forward_hook(record._leave, always_call=True))
        with torch.compiler.set_stance("force_eager"), _Watch(record):
            yield record
    finally:
        for handle in handles:
            handle.remove()


def _names(model: nn.Module) -> dict[nn.Module, str]:
    """Every module with its qualified name; the layers of a frozen network with those of its nodes."""
    from .freeze import FrozenNetwork  # which imports this file

    names = {module: path or type(module).__name__ for path, module in model.named_modules()}
    for path, module in model.named_modules():
        if isinstance(module, FrozenNetwork):
            names |= {node.layer: f"{path}.{node.name}" if path else node.name for node in module.nodes}
    return names


@dataclass
class LayerSums:
    """What one layer did, summed over samples; the numbers stay on the layer's device."""

    name: str
    neurons: int
    time_steps: int
    multiplications: int
    """Of the ANN."""
    analogue: bool
    samples: int
    totals: Tensor
    """int64 [4]: spikes; pairs of sample and neuron that are saturated, that are silent; synaptic operations."""
    fired: Tensor | None
    """bool, the shape of the neurons: spiked for any sample. None for a layer without spikes."""

    @property
    def spiking(self) -> bool:
        """Whether the layer has spikes of its own; a read-out, for one, has none."""
        return self.fired is not None

    def _added(self, other: LayerSums) -> LayerSums:
        if self.fired is not None and other.fired is not None:
            if (self.fired.shape, self.time_steps) != (other.fired.shape, other.time_steps):
                raise ValueError(
                    f"synops: inputs must all lead to the same neurons and time steps in layer {self.name!r}, got "
                    f"{list(self.fired.shape)} with T = {self.time_steps} and {list(other.fired.shape)} with T = "
                    f"{other.time_steps}"
                )
            self.fired = self.fired | other.fired
        self.samples += other.samples
        self.multiplications += other.multiplications
        self.totals = self.totals + other.totals
        return self


# Functions by name: torch's own, and the operators that torch.export writes in their place (aten::linear).
WEIGHTED = {
    "linear",
    "convolution",
    *(f"conv{transposed}{dims}d" for transposed in ("", "_transpose") for dims in (1, 2, 3)),
}
# Other products. What is a function of its own on the way to a kernel is here by each of its names.
PRODUCTS = {
    *("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm", "addmv", "addbmm", "baddbmm"),
    *("einsum", "tensordot", "inner", "bilinear", "scaled_dot_product_attention"),
    *("spiking_linear", "spiking_conv2d", "count_linear", "count_conv2d"),
}
# What leaves counts that are zero zero, and no others, given nothing but counts and numbers.
CARRYING = {
    *("flatten", "unflatten", "reshape", "view", "view_as", "squeeze", "unsqueeze", "permute", "transpose", "movedim"),
    *("cat", "stack", "split", "chunk", "__getitem__", "select", "contiguous", "clone", "detach", "alias"),
    *("to", "_to_copy", "float", "double", "half", "bfloat16", "type", "cpu", "cuda"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"),
    *("mul", "__mul__", "__rmul__", "div", "true_divide", "__truediv__"),
}
# Modules whose insides are counted as a whole, or are no operations by convention (pooling of spikes).
_SPIKING = (TandemLayer, TandemAdd, FrozenTandem, FrozenAdd)
_CLOSED = (*_SPIKING, SpikingAvgPool2d, SpikingAdaptiveAvgPool2d, SpikingMaxPool2d, FrozenPool)
_NO_PRODUCTS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, parametrize.ParametrizationList)


class _Watch(TorchFunctionMode):
    """Tells a record of every function of torch that runs."""

    def __init__(self, record: ActivityRecord) -> None:
        super().__init__()
        self._record = record

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        self._record._on_function(func, args, kwargs, output)
        return output


@dataclass
class _Frame:
    """A module that is running."""

    name: str
    module: nn.Module
    counted: bool = False
    """Whether it multiplied by weights, in a row of the record."""
    products: dict[str, None] = field(default_factory=dict)
    """Names of functions that multiplied, in none."""


class ActivityRecord:
    """Sums over the forward passes of a network; what :func:`record_activity` yields."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, int], LayerSums] = {}
        self._not_counted: dict[str, None] = {}
        self._calls: dict[str, int] = {}  # of each layer in the forward pass that is running
        self._frames: list[_Frame] = []  # the modules that are running, the innermost last
        self._pending: list[LayerSums] = []  # of the outermost of them, which ends when the number of samples is known
        self._samples: int | None = None  # of the latest spiking layer
        # Of real tensors that hold counts: T, and their version then.
        self._counts: MutableMapping[Tensor, tuple[int, int]] = WeakTensorKeyDictionary()
        self._fan_outs: dict[Any, Tensor] = {}

    @property
    def layers(self) -> list[LayerSums]:
        """The sums of each layer, in order of execution; a layer that runs twice is listed twice."""
        return list(self._sums.values())

    @property
    def not_counted(self) -> tuple[str, ...]:
        """What ran and is in none of the sums; see :class:`ActivityTable`."""
        return tuple(self._not_counted)

    def table(self) -> ActivityTable:
        """What the layers did on average over the recorded samples.

        Raises:
            ValueError: no tandem layer ran.
        """
        if not any(layer.spiking for layer in self.layers):
            raise ValueError("synops: model must run a tandem layer (TandemConv2d, TandemLinear), got none that ran")
        return ActivityTable((_averages(layer) for layer in self.layers), self.not_counted)

    # -- modules

    def _begin(self, model: nn.Module, args: Any) -> None:
        self._calls.clear()
        self._samples = None

    def _enter(self, name: str, module: nn.Module, args: Any) -> None:
        self._frames.append(_Frame(name, module))

    @torch.no_grad()
    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """The end of a module, also by an exception: there is no output then."""
        frame = self._frames[-1]
        try:
            closed = any(isinstance(outer.module, _CLOSED) for outer in self._frames[:-1])
            if not closed and output is not None and not _recomputing():
                self._on_output(frame, args, output)
        finally:
            self._frames.pop()
            if not self._frames:
                self._flush()

    def _on_output(self, frame: _Frame, args: tuple[Any, ...], output: Any) -> None:
        module = frame.module
        if isinstance(module, FrozenLayer):
            self._check_span(args[0])
            args, output = args[2:], output[0]
        if isinstance(module, _SPIKING):
            self._on_spikes(frame.name, module, args, output)
        elif isinstance(module, (Decode, FrozenDecode)):
            self._mark(output, args[0].time_steps)
        elif not isinstance(module, _CLOSED):
            kind = type(module).__name__
            owns = any(True for _ in module.parameters(recurse=False))
            if owns and not frame.counted and not isinstance(module, _NO_PRODUCTS):
                self._not_counted[f"{frame.name} ({kind})"] = None
            else:
                self._not_counted |= {f"{name} in {frame.name}": None for name in frame.products}

    def _check_span(self, span: Span) -> None:
        if span.now != span.total:
            raise ValueError(
                f"record_activity: frozen networks must run all time steps at once, got {span.now} of {span.total}; "
                "accuracy_curve counts operations over time"
            )

    def _on_spikes(self, name: str, layer: Any, args: tuple[Any, ...], output: SpikeTrain) -> None:
        _check_samples(output.shape)
        count = output.count.detach()
        branches = branches_of(layer)
        operations, multiplications = count.new_zeros((), dtype=torch.float64), 0
        for i, (branch, x) in enumerate(zip(branches, args, strict=True)):
            if isinstance(x, SpikeTrain):
                operations = operations + self._operations(f"{name}.{i}", branch, x)
            multiplications += layer_macs(branch, x, output)
        sums = (count.sum(dtype=torch.float64), (count == output.time_steps).sum(), (count == 0).sum(), operations)
        self._samples = output.shape[0]
        self._pending.append(
            LayerSums(
                name=name,
                neurons=math.prod(output.shape[1:]),
                time_steps=output.time_steps,
                multiplications=multiplications * output.shape[0],
                analogue=isinstance(args[0], EncodedInput),
                samples=output.shape[0],
                totals=torch.stack([x.to(torch.int64) for x in sums]),
                fired=(count != 0).any(0),
            )
        )

    def _operations(self, name: str, layer: nn.Module, x: SpikeTrain) -> Tensor:
        """Sum over all input neurons of spikes times output neurons reached, a float64 scalar (exact up to 2^53)."""
        if not isinstance(layer, TandemLayer):  # the identity in a join
            return x.count.detach().sum(dtype=torch.float64)
        key = name, x.shape[1:]
        if key not in self._fan_outs:
            self._fan_outs[key] = fan_out(layer, x.shape[1:], x.device)
        return (x.count.detach().sum(0, dtype=torch.float64) * self._fan_outs[key]).sum()

    # -- functions

    @torch.no_grad()
    def _on_function(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        name = getattr(func, "__name__", "").partition(".")[0]  # operators have an overload behind the point
        if name not in WEIGHTED and name not in PRODUCTS and name not in CARRYING:
            return
        if not self._frames or any(isinstance(frame.module, _CLOSED) for frame in self._frames) or _recomputing():
            return
        frame = self._frames[-1]
        if name in CARRYING:
            steps = [self._steps(x) for x in tree_leaves((args, dict(kwargs))) if isinstance(x, Tensor)]
            if steps and steps[0] is not None and None not in steps:
                for x in tree_leaves(output):
                    self._mark(x, steps[0])
        elif name in PRODUCTS or not isinstance(output, Tensor):
            frame.products[name] = None
        else:
            frame.counted = True
            self._on_weights(frame.name, _Product.of(func, args, kwargs), output)

    def _mark(self, x: Any, steps: int) -> None:
        """Remember that a tensor holds counts."""
        if isinstance(x, Tensor):
            self._counts[x] = steps, _version(x)

    def _steps(self, x: Tensor) -> int | None:
        """T of a tensor that holds counts; None of another, and of one that something was written into since."""
        steps, version = self._counts.get(x, (None, 0))
        return steps if version == _version(x) else None

    def _on_weights(self, name: str, product: _Product, output: Tensor) -> None:
        x = product.batch()
        steps = self._steps(product.input)
        operations = torch.zeros((), dtype=torch.int64, device=x.device)
        if steps is not None:
            key = name, product.func, x.shape[1:], product.weight.shape, f"{product.settings} {product.named}"
            if key not in self._fan_outs:
                self._fan_outs[key] = product.fan_out()
            operations = ((x != 0).sum(0, dtype=torch.float64) * self._fan_outs[key]).sum().to(torch.int64)
        self._pending.append(
            LayerSums(
                name=name,
                neurons=output.numel(),  # of all samples, until _flush knows how many these are
                time_steps=1 if steps is None else steps,
                multiplications=product.multiplications(output),
                analogue=steps is None,
                samples=x.shape[0],
                totals=torch.stack([torch.zeros_like(operations)] * 3 + [operations]),
                fired=None,
            )
        )

    def _flush(self) -> None:
        """Add up what the outermost module did. What is the first dimension of a plain layer need not be samples."""
        for sums in self._pending:
            if not sums.spiking:
                sums.samples = self._samples or sums.samples
                sums.neurons = math.ceil(sums.neurons / max(1, sums.samples))
            call = self._calls.get(sums.name, 0)
            self._calls[sums.name] = call + 1
            key = sums.name, call
            self._sums[key] = self._sums[key]._added(sums) if key in self._sums else sums
        self._pending = []
        self._samples = None


@dataclass
class _Product:
    """A call of one of WEIGHTED: ``func(input, weight, bias, *settings, **named)``."""

    func: Any
    input: Tensor
    weight: Tensor
    settings: tuple[Any, ...]
    named: dict[str, Any]

    @classmethod
    def of(cls, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Product:
        named = dict(zip(("input", "weight", "bias"), args, strict=False)) | dict(kwargs)
        x, weight, _ = named.pop("input"), named.pop("weight"), named.pop("bias", None)
        return cls(func, x, weight, args[3:], named)

    def batch(self) -> Tensor:
        """The input with a first dimension that is no channel or feature."""
        return self.input if self.input.dim() >= self.weight.dim() else self.input[None]

    def multiplications(self, output: Tensor) -> int:
        name = self.func.__name__
        transposed = "transpose" in name or (name.startswith("convolution") and self.settings[3])
        taps = self.weight.numel() if self.weight.dim() == 1 else self.weight[0].numel()
        return (self.input if transposed else output).numel() * taps

    def fan_out(self) -> Tensor:
        """As of a tandem layer, in the shape of one of the batch; a scalar where it is the same everywhere."""
        x = self.batch()
        if self.func.__name__.startswith("linear"):
            return x.new_tensor(self.weight.shape[0] if self.weight.dim() > 1 else 1, dtype=torch.float64)

        def product(sample: Tensor, ones: Tensor) -> Tensor:
            output: Tensor = self.func(sample, ones, None, *self.settings, **self.named)
            return output

        return _reached(product, x.shape[1:], self.weight.shape, x.device)


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def branches_of(layer: nn.Module) -> list[nn.Module]:
    """What the spikes of a layer's inputs go through, one for each input, if it is spiking."""
    if isinstance(layer, FrozenTandem):
        return [layer.layer]
    join = layer.join if isinstance(layer, FrozenAdd) else layer
    if isinstance(join, TandemAdd):
        return list(join.branches)
    return [layer] if isinstance(layer, TandemLayer) else []


def fan_out(layer: TandemLayer, shape: torch.Size, device: torch.device) -> Tensor:
    """Output neurons that each input neuron reaches, float64 in the shape of a sample.

    One output channel per group stands for all.
    """
    weight, groups = layer._kernel_weight(), getattr(layer, "groups", 1)
    of_one = _reached(lambda x, ones: layer._dense_product(x, ones, None), shape, (groups, *weight.shape[1:]), device)
    return of_one * (weight.shape[0] // groups)


def _reached(
    product: Callable[[Tensor, Tensor], Tensor], shape: torch.Size, kernel: Sequence[int], device: torch.device
) -> Tensor:
    """With weights of one, what a neuron reaches is the derivative of the sum of the outputs."""
    # Hooks of its own: else activation checkpointing, around the forward pass that is counted, waits for these tensors.
    kept = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    with torch.inference_mode(False), torch.enable_grad(), kept:
        ones = torch.ones(*kernel, dtype=torch.float64, device=device)
        sample = torch.zeros(1, *shape, dtype=torch.float64, device=device, requires_grad=True)
        (reached,) = torch.autograd.grad(product(sample, ones).sum(), sample)
    return reached[0]


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
        dead=None if layer.fired is None else 1 - int(layer.fired.sum()) / layer.neurons,
        synops=operations / max(1, layer.samples),
        macs=round(layer.multiplications / max(1, layer.samples)),
        analogue=layer.analogue,
    )


def _batches(model: nn.Module, inputs: Any) -> Iterator[Any]:
    kinds = (Tensor, SpikeTrain, EncodedInput)
    tensor = next(itertools.chain(model.parameters(), model.buffers()), None)
    if isinstance(inputs, kinds):
        inputs = [inputs]
    elif isinstance(inputs, (str, bytes)) or not isinstance(inputs, Iterable):
        raise TypeError(
            "synops: inputs must be a Tensor, SpikeTrain or EncodedInput, or an iterable of batches, got "
            f"{type(inputs).__name__}"
        )
    for batch in inputs:
        x = batch[0] if isinstance(batch, (tuple, list)) and not isinstance(batch, EncodedInput) else batch
        yield x.to(tensor.device) if tensor is not None and isinstance(x, (Tensor, SpikeTrain)) else x


def _named(name: str, hook: Any) -> Any:
    return lambda *args: hook(name, *args)


def _check_samples(shape: torch.Size) -> None:
    if math.prod(shape) == 0:
        raise ValueError(f"synops: inputs must hold at least one sample, got a batch of shape {list(shape)}")
