"""TandemAdd: neurons driven by the sum of several branches, as at the end of a residual block."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import ops
from ..neuron import IF, Neuron, check_neuron
from ..ops.geometry import Geometry, out_size
from ..ops.product import ENGINES
from ..spike_train import SpikeTrain
from . import learned_threshold
from .conv import ConvolutionLayer
from .coupling import coupled, needs_gradient
from .current import per_step
from .geometry import insert_zeros
from .tandem import TandemLayer
from .weight_cache import Kernel, SpikingWeights, WeightCache, may_keep


class TandemAdd(nn.Module):
    """Neurons driven by the summed currents of several branches, like the sum before the ReLU of a residual block.

    Branch i has the weights W_i and the bias b_i (batch norm folded in), the input spikes s_i and their counts c_i::

        x[t] = sum over i of (W_i * s_i[t] + b_i / T),      v = sum over i of (W_i * c_i + b_i)

    As in a single layer, x[t] summed over time is v, so the tandem rule holds. A branch is a tandem layer, of which
    only the weights and the norm are used, not the neurons; or nn.Identity, which adds the ``amplitude`` of each spike
    as a current. For a torchvision BasicBlock::

        join = TandemAdd(TandemConv2d(64, 64, 3, padding=1, norm="batch"), nn.Identity())
        y = join(hidden, x)        # relu(bn2(conv2(hidden)) + x)

    *One* event-driven product computes the spikes of all branches: it concatenates the inputs' channels and embeds
    every kernel in the largest one; an identity or 1 x 1 shortcut becomes its centre tap. A spike in a branch with a
    small kernel therefore costs as many additions as the largest kernel has taps. The ANN twin computes v branch by
    branch.

    If a branch has integer weights (:func:`tandem_cuda.quantise`), each branch has sums of its own instead, since they
    have scales of their own: x[t] is the sum of the branches' currents, each rounded once, in their order.

    Args:
        branches: two or more tandem layers or nn.Identity modules.
        neuron: IF(...) or LIF(...).
        engine: "auto", "event" or "dense", for the joint product. Each branch computes its v with its own engine.
        learn_threshold: learn the threshold, neuron.threshold * exp(``log_threshold``). The parameter ``log_threshold``
            is a scalar and starts at 0 (:mod:`tandem_cuda.nn.learned_threshold`: LSQ, arXiv:1902.08153). The sum of
            the branches is divided by exp(``log_threshold``).

    Shape:
        One SpikeTrain per branch -> SpikeTrain, in the common output shape of the branches.

    Raises:
        TypeError: a branch is neither a tandem layer nor nn.Identity, an input is not a SpikeTrain, or
            ``learn_threshold`` is no bool.
        ValueError: fewer than two branches; a branch has ``learn_threshold``; not one input per branch; output shapes
            or time steps differ; convolutions larger than 1 x 1 have different strides.
    """

    log_threshold: nn.Parameter | None
    scale: Tensor | None
    """Of a frozen join: exp(-log_threshold), [1]."""

    def __init__(
        self, *branches: nn.Module, neuron: Neuron = IF(), engine: str = "auto", learn_threshold: bool = False
    ) -> None:
        super().__init__()
        if len(branches) < 2:
            raise ValueError(f"TandemAdd: branches must be two or more, got {len(branches)}")
        for branch in branches:
            if not isinstance(branch, (TandemLayer, nn.Identity)):
                raise TypeError(
                    f"TandemAdd: branches must be tandem layers or nn.Identity, got {type(branch).__name__}"
                )
            if isinstance(branch, TandemLayer) and branch.log_threshold is not None:
                raise ValueError(
                    "TandemAdd: branches must have learn_threshold=False (the neurons are those of the TandemAdd), got "
                    "True"
                )
        check_neuron("TandemAdd", neuron)
        if engine not in ENGINES:
            raise ValueError(f"TandemAdd: engine must be one of {', '.join(ENGINES)}, got {engine!r}")
        self.branches = nn.ModuleList(branches)
        self.neuron = neuron
        self.engine = engine
        self._cache = WeightCache()
        like = next((layer.weight for layer in self._layers()), torch.empty(0))
        self.register_parameter(
            "log_threshold", learned_threshold.new_log_threshold("TandemAdd", learn_threshold, like)
        )
        self.register_buffer("scale", None)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch's
        self._parameters.setdefault("log_threshold", None)  # not in pickles of earlier versions
        self._buffers.setdefault("scale", None)

    def forward(self, *inputs: SpikeTrain) -> SpikeTrain:
        self.check_inputs(inputs)
        steps = inputs[0].time_steps
        pairs = list(zip(self.branches, inputs, strict=True))
        v = self.pre_activation(pairs)
        if v is not None and self.log_threshold is not None:
            v = v * learned_threshold.learning_unit(self.log_threshold, v.shape, steps).to(v.dtype)
        with torch.no_grad():
            bits, _ = self.spikes(pairs, steps)
        return coupled(self.neuron, bits, v, steps, self.dtype_of(inputs))

    def check_inputs(self, inputs: Sequence[Any]) -> None:
        if len(inputs) != len(self.branches):
            raise ValueError(f"TandemAdd: inputs must be {len(self.branches)}, one per branch, got {len(inputs)}")
        for x in inputs:
            if not isinstance(x, SpikeTrain):
                raise TypeError(f"TandemAdd: inputs must be SpikeTrains, got {type(x).__name__}")
        if len({x.time_steps for x in inputs}) > 1:
            raise ValueError(
                f"TandemAdd: inputs must have the same number of time steps, got {[x.time_steps for x in inputs]}"
            )

    def dtype_of(self, inputs: Sequence[SpikeTrain]) -> torch.dtype:
        for branch in self.branches:
            if isinstance(branch, TandemLayer):
                return branch.dtype
        return inputs[0].dtype

    # -- ANN twin, branch by branch

    def pre_activation(self, pairs: list[tuple[Any, SpikeTrain]]) -> Tensor | None:
        """Return the sum of the branches' v, or None if not needed. In training this updates the running statistics.

        It is not yet divided by exp(log_threshold).
        """
        moves = any(branch.uses_batch_statistics() for branch in self._layers())
        if not moves and not needs_gradient(*self._sources(), *(x.carried_count for _, x in pairs)):
            return None
        total: Tensor | None = None
        for branch, x in pairs:
            if not isinstance(branch, TandemLayer):
                v = x.count if x.amplitude == 1 else x.count * x.amplitude
            else:
                v = branch.pre_activation(x, branch.packed_kernel())
                v = v if branch.norm is None else branch.batch_normalised(v)
            if total is not None and total.shape != v.shape:
                raise ValueError(f"TandemAdd: branches must agree in shape, got {list(total.shape)}, {list(v.shape)}")
            total = v if total is None else total + v
        return total

    def _layers(self) -> list[TandemLayer]:
        return [branch for branch in self.branches if isinstance(branch, TandemLayer)]

    def _sources(self) -> list[Tensor]:
        own = [x for x in (self.log_threshold, self.scale) if x is not None]
        return [x for layer in self._layers() for x in layer.sources()] + own

    def current_scale(self) -> Tensor | None:
        """Return the factor of the summed currents, [1], or None for 1."""
        return self.scale if self.log_threshold is None else learned_threshold.unit(self.log_threshold).view(1)

    # -- spiking twin, in one product

    def spikes(
        self,
        pairs: list[tuple[Any, SpikeTrain]],
        steps: int,
        state: Tensor | None = None,
        want_state: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return the bits and the neurons' final state; ``state`` continues an earlier call.

        Biases are divided by ``steps``.
        """
        parts = [_part(branch, x) for branch, x in pairs]
        shapes = [part.out for part in parts]
        if any(shape != shapes[0] for shape in shapes):  # not a set: hashing would specialise symbolic sizes
            raise ValueError(f"TandemAdd: branches must agree in shape, got {', '.join(str(list(s)) for s in shapes)}")
        if any(layer.takes_integers() for layer in self._layers()):
            return self._exact_spikes(pairs, steps, state, want_state)
        stride, parts = _aligned(parts)
        low, high = _window(parts)
        kernel = [last - first + 1 for first, last in zip(low, high, strict=True)]
        size = [(o - 1) * s + k for o, s, k in zip(shapes[0][2:], stride, kernel, strict=True)]
        bits = _side_by_side([part.bits for part in parts], low, size)
        weights = self._kept(pairs, parts, low, kernel, steps)
        out, _, state = ops.spiking_conv2d(
            bits,
            weights.kernel.weight,
            weights.bias,
            stride=stride,
            state=state,
            **weights.operands(),
            time_steps=pairs[0][1].time_steps,
            neuron=self.neuron,
            want_sum=False,
            want_state=want_state,
            engine=self.engine,
        )
        return parts[0].from_image(out), state

    def _exact_spikes(
        self, pairs: list[tuple[Any, SpikeTrain]], steps: int, state: Tensor | None, want_state: bool
    ) -> tuple[Tensor, Tensor]:
        """Work as ``spikes``, with a product for each branch."""
        now, two_phase = pairs[0][1].time_steps, self.neuron.two_phase
        current: Tensor | None = None
        bias: Tensor | None = None
        for branch, x in pairs:
            # Time steps become samples, unless the counts are all that matters.
            train = x.detach() if two_phase else _one_by_one(x)
            if isinstance(branch, TandemLayer):
                part = branch.spiking_weights(1, x.amplitude)
                own = branch.count_product(train, part._replace(bias=None))
                if part.bias is not None:
                    bias = part.bias if bias is None else bias + part.bias
            else:
                own = train.count.to(self.dtype_of([x])) * x.amplitude
            current = own if current is None else current + own
        assert current is not None
        scale = self.current_scale()
        if scale is not None:
            scale = scale.to(current.dtype)
            bias = None if bias is None else bias * scale
            scale = scale.repeat(current.shape[1 if current.dim() > 2 else -1])
        out, _, after = ops.integrate_and_fire(
            current if two_phase else current.view(now, len(current) // now, *current.shape[1:]),
            now,
            per_step(bias, steps),
            state,
            scale=scale,
            mode="impulse" if two_phase else "series",
            neuron=self.neuron,
            want_sum=False,
            want_state=want_state,
        )
        return out, after

    def _kept(
        self, pairs: list[tuple[Any, SpikeTrain]], parts: list[_Part], low: list[int], kernel: list[int], steps: int
    ) -> SpikingWeights:
        """Return the joint weights; in eval mode they are reused from the last call if nothing has changed."""
        layers, first = self._layers(), pairs[0][1]
        eps = [None if layer.norm is None else layer.norm.eps for layer in layers]
        sizes = [(part.bits.shape[2], part.geometry) for part in parts]
        bits = [layer.bits() for layer in layers]
        settings = (steps, [x.amplitude for _, x in pairs], eps, bits, sizes, self.dtype_of([first]), first.device)
        make = functools.partial(_joint, pairs, parts, low, kernel, steps, self.current_scale(), self._cache)
        return self._cache.weights(may_keep(self, layers), self._sources(), settings, make)

    def extra_repr(self) -> str:
        engine = "" if self.engine == "auto" else f"engine={self.engine!r}, "
        learns = "" if self.log_threshold is None else ", learn_threshold=True"
        return f"{engine}neuron={self.neuron}{learns}"


class _Part(NamedTuple):
    """A branch as a convolution of images."""

    branch: Any
    bits: Tensor
    """[P, N, C, H, W]."""
    kernel: tuple[int, int]
    geometry: Geometry
    out: tuple[int, ...]
    """[N, O, Ho, Wo]."""
    dims: int
    """Number of dimensions of the branch's output, without the batch."""

    def from_image(self, y: Tensor) -> Tensor:
        """Convert an image [P, N, O, Ho, Wo] to the dimensions of the branch's output."""
        return y if self.dims == 3 else y.flatten(1 + self.dims)

    def taps(self, axis: int) -> list[int]:
        """Return the input rows or columns that the first output reads."""
        first = -self.geometry.padding[axis]
        return [first + i * self.geometry.dilation[axis] for i in range(self.kernel[axis])]


def _part(branch: Any, x: SpikeTrain) -> _Part:
    dims = len(x.shape) - 1
    kernel = (1, 1)
    if isinstance(branch, ConvolutionLayer):
        image, geometry = branch.as_image(x)
        bits, outputs = image.bits, branch.out_channels
        shape = branch.arranged(branch.stored_weight()).shape
        kernel = (shape[2], shape[3])
    else:
        if dims not in (1, 2, 3) or (isinstance(branch, TandemLayer) and dims != 1):
            raise ValueError(f"TandemAdd: input must be [N, F], [N, C, L] or [N, C, H, W], got {list(x.shape)}")
        bits = x.bits if dims == 3 else x.bits.unsqueeze(3) if dims == 2 else x.bits[..., None, None]
        outputs = branch.outputs if isinstance(branch, TandemLayer) else bits.shape[2]
        geometry = Geometry()
    size = out_size(bits, bits.new_empty((1, 1, *kernel), device="meta"), *geometry)
    return _Part(branch, bits, kernel, geometry, (bits.shape[1], outputs, *size), dims)


def _one_by_one(x: SpikeTrain) -> SpikeTrain:
    """Return the time steps of a train as the samples [T * N, ...] of a train of one step."""
    steps = ops.unpack_spikes(x.bits, x.time_steps, torch.uint8)
    return SpikeTrain.unchecked(steps.flatten(0, 1).unsqueeze(0), 1, dtype=x.dtype, amplitude=x.amplitude)


def _aligned(parts: list[_Part]) -> tuple[tuple[int, int], list[_Part]]:
    """Return the common stride and the parts converted to it.

    A part with a single tap is converted by picking the pixels that it reads and spreading them by the common stride.
    """
    strides = {part.geometry.stride for part in parts if part.kernel != (1, 1)}
    if len(strides) > 1:
        raise ValueError(f"TandemAdd: convolutions larger than 1 x 1 must have one stride, got {sorted(strides)}")
    stride = strides.pop() if strides else (1, 1)
    aligned = []
    for part in parts:
        if part.kernel == (1, 1) and (part.geometry.stride != stride or part.geometry.padding != (0, 0)):
            rows, columns = part.out[2:]
            top, left = part.geometry.padding
            down, right = part.geometry.stride
            picked = _side_by_side([part.bits], [-top, -left], [(rows - 1) * down + 1, (columns - 1) * right + 1])
            bits = insert_zeros(picked[..., ::down, ::right], stride)
            part = part._replace(bits=bits, geometry=Geometry(stride))
        aligned.append(part)
    return stride, aligned


def _window(parts: list[_Part]) -> tuple[list[int], list[int]]:
    """Return the first and last row and column that the first output of any part reads."""
    low = [min(part.taps(axis)[0] for part in parts) for axis in (0, 1)]
    high = [max(part.taps(axis)[-1] for part in parts) for axis in (0, 1)]
    return low, high


def _side_by_side(images: list[Tensor], low: Sequence[int], size: Sequence[int]) -> Tensor:
    """Concatenate the channels of images [P, N, C, H, W], cropped from ``low`` to ``size`` and zero-padded."""
    planes, batch = images[0].shape[:2]
    channels = sum(image.shape[2] for image in images)
    out = images[0].new_zeros(planes, batch, *size, channels)
    at = 0
    for image in images:
        here, there = [], []
        for axis in (0, 1):
            first, last = max(low[axis], 0), min(image.shape[3 + axis], low[axis] + size[axis])
            here.append(slice(first - low[axis], max(last, first) - low[axis]))
            there.append(slice(first, max(last, first)))
        out[:, :, here[0], here[1], at : at + image.shape[2]] = image[:, :, :, there[0], there[1]].movedim(2, -1)
        at += image.shape[2]
    return out.movedim(-1, 2)


def _joint(
    pairs: list[tuple[Any, SpikeTrain]],
    parts: list[_Part],
    low: list[int],
    kernel: list[int],
    steps: int,
    scale: Tensor | None,
    cache: WeightCache,
) -> SpikingWeights:
    """Embed the kernels of all parts, each at its own taps, in one kernel [O, sum of C, kH, kW]; sum the biases.

    ``scale``, [1], is a factor of all currents.
    """
    first = pairs[0][1]
    dtype = next((branch.dtype for branch, _ in pairs if isinstance(branch, TandemLayer)), first.dtype)
    outputs = parts[0].out[1]
    joint = torch.zeros(outputs, sum(part.bits.shape[2] for part in parts), *kernel, dtype=dtype, device=first.device)
    total: Tensor | None = None
    at = 0
    for (branch, x), part in zip(pairs, parts, strict=True):
        channels = part.bits.shape[2]
        rows, columns = ([tap - start for tap in part.taps(axis)] for axis, start in zip((0, 1), low, strict=True))
        place = joint[:, at : at + channels, rows[0] : rows[-1] + 1 : part.geometry.dilation[0]]
        place = place[..., columns[0] : columns[-1] + 1 : part.geometry.dilation[1]]
        at += channels
        if not isinstance(branch, TandemLayer):
            place[..., 0, 0] = x.amplitude * torch.eye(channels, dtype=dtype, device=first.device)
            continue
        weight, bias = branch.folded()
        weight = weight.detach() * x.amplitude
        weight = weight[..., None, None] if weight.dim() == 2 else weight
        groups = getattr(branch, "groups", 1)
        for g in range(groups):
            to, of = outputs // groups, channels // groups
            place[g * to : (g + 1) * to, g * of : (g + 1) * of] = weight[g * to : (g + 1) * to]
        if bias is not None:
            total = bias.detach() if total is None else total + bias.detach()
    if scale is not None:
        scale = scale.to(dtype)
        total = None if total is None else total * scale
        scale = scale.repeat(outputs)
    return SpikingWeights(Kernel(joint, cache.pack(joint, 1)), scale, per_step(total, steps))
