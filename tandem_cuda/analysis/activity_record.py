"""The activity of a network's layers, summed over forward passes."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from ..nn import Decode, EncodedInput
from ..nn.frozen import FrozenLayer, Span
from ..nn.modes import recomputing
from ..nn.operations import Operations, ann_macs, synapses_by_input
from ..nn.spiking import unwrapped
from ..nn.synapses import Synapses, reached
from ..spike_train import SpikeTrain
from .activity_table import ActivityTable, LayerActivity


@dataclass
class LayerSums:
    """The activity of one layer, summed over samples. The tensors stay on the layer's device."""

    name: str
    neurons: int
    time_steps: int
    multiplications: int
    """Multiply-accumulates of the ANN's layer."""
    analogue: bool
    samples: int
    totals: Tensor
    """int64 [4]: spikes; pairs of sample and neuron that are saturated; such pairs that are silent; SynOps."""
    fired: Tensor | None
    """bool, one per neuron: whether it spiked for any sample. None for a layer without spikes."""

    @property
    def spiking(self) -> bool:
        """Whether the layer itself spikes. A read-out, for example, does not."""
        return self.fired is not None

    def _added(self, other: LayerSums) -> LayerSums:
        if self.fired is not None and other.fired is not None:
            if (self.fired.shape, self.time_steps) != (other.fired.shape, other.time_steps):
                raise ValueError(
                    f"synops: inputs must all give the same neurons and time steps in layer {self.name!r}, got "
                    f"{list(self.fired.shape)} with T = {self.time_steps} and {list(other.fired.shape)} with T = "
                    f"{other.time_steps}"
                )
            self.fired = self.fired | other.fired
        self.samples += other.samples
        self.multiplications += other.multiplications
        self.totals = self.totals + other.totals
        return self


# Functions by name: torch's own, and the operators with which torch.export replaces them (aten::linear).
WEIGHTED = {
    "linear",
    "convolution",
    *(f"conv{transposed}{dims}d" for transposed in ("", "_transpose") for dims in (1, 2, 3)),
}
# Other products, by every name that a call may have on its way to a kernel.
PRODUCTS = {
    *("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm", "addmv", "addbmm", "baddbmm"),
    *("einsum", "tensordot", "inner", "bilinear", "scaled_dot_product_attention"),
    *("spiking_product", "count_product"),
}
# Functions that keep zero counts zero and nonzero counts nonzero if all their tensor arguments are counts.
CARRYING = {
    *("flatten", "unflatten", "reshape", "view", "view_as", "squeeze", "unsqueeze", "permute", "transpose", "movedim"),
    *("cat", "stack", "split", "chunk", "__getitem__", "select", "contiguous", "clone", "detach", "alias"),
    *("to", "_to_copy", "float", "double", "half", "bfloat16", "type", "cpu", "cuda"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"),
    *("mul", "__mul__", "__rmul__", "div", "true_divide", "__truediv__"),
}
_NO_PRODUCTS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, parametrize.ParametrizationList)


class FunctionWatch(TorchFunctionMode):
    """Reports every torch function that runs to a record."""

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
    """Whether it called a function of WEIGHTED, which has its own row in the record."""
    products: dict[str, None] = field(default_factory=dict)
    """Names of the functions of PRODUCTS that it called, which have no row."""


class ActivityRecord:
    """The activity of a network summed over forward passes, as yielded by :func:`record_activity`.

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(784, 50), Decode(), nn.Linear(50, 10)).eval()
        >>> with record_activity(net) as record:
        ...     logits = net(torch.rand(8, 784))
        ...     logits = net(torch.rand(8, 784))
        >>> record.table()[0].macs  # per sample
        39200
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, int], LayerSums] = {}
        self._not_counted: dict[str, None] = {}
        self._calls: dict[str, int] = {}  # calls of each layer in the current forward pass
        self._frames: list[_Frame] = []  # the modules that are running, the innermost last
        self._pending: list[LayerSums] = []  # sums of the outermost running module; at its end the batch size is known
        self._samples: int | None = None  # batch size of the latest spiking layer
        # Real tensors that hold counts: T, and the tensor's version when it was noted.
        self._counts: MutableMapping[Tensor, tuple[int, int]] = WeakTensorKeyDictionary()
        self._operations = Operations()
        self._fan_outs: dict[Any, tuple[Tensor, int]] = {}  # of plain weights, and the ANN's MACs

    @property
    def layers(self) -> list[LayerSums]:
        """The sums of each layer, in order of execution. A layer that runs twice is listed twice."""
        return list(self._sums.values())

    @property
    def not_counted(self) -> tuple[str, ...]:
        """What ran but is not counted; see :class:`ActivityTable`."""
        return tuple(self._not_counted)

    def table(self) -> ActivityTable:
        """Return the activity of the layers, averaged over the recorded samples.

        Raises:
            ValueError: no tandem layer ran.
        """
        if not any(layer.spiking for layer in self.layers):
            raise ValueError("synops: model must run a tandem layer such as TandemConv2d, but none ran")
        return ActivityTable((_averages(layer) for layer in self.layers), self.not_counted)

    # -- modules

    def _begin(self, model: nn.Module, args: Any) -> None:
        self._calls.clear()
        self._samples = None

    def _enter(self, name: str, module: nn.Module, args: Any) -> None:
        self._frames.append(_Frame(name, unwrapped(module)))

    @torch.no_grad()
    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Handle the end of a module. After an exception, ``output`` is None."""
        frame = self._frames[-1]
        try:
            closed = any(_is_closed(outer.module) for outer in self._frames[:-1])
            if not closed and output is not None and not recomputing():
                if isinstance(module, FrozenLayer):
                    self._check_span(args[0])
                    args, output = args[2:], output[0]
                self._on_output(frame, args, output)
        finally:
            self._frames.pop()
            if not self._frames:
                self._flush()

    def _on_output(self, frame: _Frame, args: tuple[Any, ...], output: Any) -> None:
        module = frame.module
        if synapses := synapses_by_input(module):
            self._on_spikes(frame.name, module, synapses, args, output)
        elif isinstance(module, Decode):
            self._mark(output, args[0].time_steps)
        elif not _is_closed(module):
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
                "use accuracy_curve to count operations over time"
            )

    def _on_spikes(
        self, name: str, layer: Any, synapses: Sequence[Synapses | None], args: tuple[Any, ...], output: SpikeTrain
    ) -> None:
        if math.prod(output.shape) == 0:
            raise ValueError(f"synops: inputs must have at least one sample, got a batch of shape {list(output.shape)}")
        count = output.count.detach()
        operations, multiplications = count.new_zeros((), dtype=torch.float64), 0
        for i, (own, x) in enumerate(zip(synapses, args, strict=False)):  # the factor of a gate is no spikes
            if isinstance(x, SpikeTrain):  # in float64, exact up to 2^53
                operations = operations + self._operations((name, i), own, x.count.detach().sum(0, dtype=torch.float64))
            multiplications += ann_macs(own, x, output)
        saturated, silent = output.value >= layer.neuron.largest(output.time_steps), count == 0
        sums = count.sum(dtype=torch.float64), saturated.sum(), silent.sum(), operations
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

    # -- functions

    @torch.no_grad()
    def _on_function(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        name = getattr(func, "__name__", "").partition(".")[0]  # an operator's overload follows the point
        if name not in WEIGHTED and name not in PRODUCTS and name not in CARRYING:
            return
        if not self._frames or any(_is_closed(frame.module) for frame in self._frames) or recomputing():
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
        """Note that a tensor holds counts."""
        if isinstance(x, Tensor):
            self._counts[x] = steps, _version(x)

    def _steps(self, x: Tensor) -> int | None:
        """Return T of a tensor that holds counts; None if it does not, or was written to since it was noted."""
        steps, version = self._counts.get(x, (None, 0))
        return steps if version == _version(x) else None

    def _on_weights(self, name: str, product: _Product, output: Tensor) -> None:
        x = product.batch()
        steps = self._steps(product.input)
        operations = torch.zeros((), dtype=torch.int64, device=x.device)
        key = name, product.func, x.shape[1:], product.weight.shape, f"{product.settings} {product.named}"
        if key not in self._fan_outs:
            fan_out = product.fan_out(output)
            macs = int(fan_out.expand(x.shape[1:]).sum())
            self._fan_outs[key] = fan_out.to(x.device, non_blocking=True), macs
        fan_out, macs = self._fan_outs[key]
        if steps is not None:
            operations = ((x != 0).sum(0, dtype=torch.float64) * fan_out).sum().to(torch.int64)
        self._pending.append(
            LayerSums(
                name=name,
                neurons=output.numel(),  # for all samples; _flush divides by their number
                time_steps=1 if steps is None else steps,
                multiplications=macs * x.shape[0],
                analogue=steps is None,
                samples=x.shape[0],
                totals=torch.stack([torch.zeros_like(operations)] * 3 + [operations]),
                fired=None,
            )
        )

    def _flush(self) -> None:
        """Add the sums of the outermost module to the record.

        The first dimension of a plain layer need not be the batch, so the batch size is taken from the spiking layers.
        """
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
    """A call of a function of WEIGHTED: ``func(input, weight, bias, *settings, **named)``."""

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
        """Return the input with a batch dimension."""
        return self.input if self.input.dim() >= self.weight.dim() else self.input[None]

    def fan_out(self, output: Tensor) -> Tensor:
        """Return the outputs that each input of a sample reaches, or one row or number for inputs that are alike.

        Taps in the zero padding reach nothing. float64 on the CPU, without waiting for the device.
        """
        name, sample = str(self.func.__name__), self.batch().shape[1:]
        if name.startswith("linear"):
            return torch.tensor(self.weight.shape[0] if self.weight.dim() > 1 else 1, dtype=torch.float64)
        # All channels reach equally many outputs, so one channel of each group is enough.
        transposed = "transpose" in name or (name.startswith("convolution") and self.settings[3])
        outputs, channels = output.shape[output.dim() - len(sample)], self.weight.shape[1]
        groups = outputs // channels if transposed else sample[0] // channels
        shapes = (groups, *sample[1:]), (groups, 1, *self.weight.shape[2:])
        return reached(self._of, *shapes, torch.device("cpu"))[:1] * (outputs // groups)

    def _of(self, x: Tensor, weight: Tensor) -> Tensor:
        output: Tensor = self.func(x, weight, None, *self.settings, **self.named)
        return output


def _is_closed(module: nn.Module) -> bool:
    """Return whether a module is counted as a whole, or not counted by convention, such as the pooling of spikes."""
    layer = type(module)
    return hasattr(layer, "synapses_by_input") or hasattr(layer, "ann_twin")


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


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
