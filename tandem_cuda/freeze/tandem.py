"""The frozen forms of tandem layers and TandemAdd: their spiking twins."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..neuron import stacked
from ..nn.drive import Affine, per_step
from ..nn.dropout import TandemDropout, TandemDropout2d, TandemStochasticDepth
from ..nn.elementwise import TandemElementwise
from ..nn.encode import EncodedInput
from ..nn.firing import Firing, run_neurons
from ..nn.sizes import ENCODED, SPIKES, Value
from ..nn.tandem import TandemLayer
from ..nn.weight_cache import Kernel
from ..ops.checks import INTEGERS
from ..spike_train import SpikeTrain
from .add import FrozenAdd as FrozenAdd  # the name in pickles of earlier versions
from .connections import LAYERS, bare, check_integers, check_scales, checked_layer, format_of, kernel_of, settings_of
from .forms import Settings, Span, State, Tensors, check_tensors, class_of, frozen_tensor, register, single
from .packed import Packed


class FrozenTandem(Packed):
    """The spiking twin of a tandem layer, with folded batch norm and packed weights.

    Args:
        layer: defines the product and the neurons. It has no bias and no norm; its weight parameter is replaced.
        weight: the weights, of the shape of the layer's own; int8 or int16 of a quantised layer.
        scale: [O], the gain of batch norm, divided by exp(log_threshold) if the threshold has learned, and times the
            scale of integer weights; applied to the layer's sums. None for 1.
        bias: [O], spread evenly over the T time steps.
        takes_encoded: whether the input is the output of Encode instead of a SpikeTrain.
    """

    scale: Tensor | None
    bias: Tensor | None
    packed: Tensor | None

    def __init__(
        self, layer: TandemLayer, weight: Tensor, scale: Tensor | None, bias: Tensor | None, takes_encoded: bool
    ) -> None:
        super().__init__()
        self.kind = type(layer).__name__
        check_scales(self.kind, layer.neuron)
        newer = weight.dtype in INTEGERS or isinstance(layer, TandemElementwise) or layer.wiring is not None
        self.format = 2 if newer else format_of(layer.neuron)
        self.takes_encoded = self.resumes = takes_encoded
        self.waits = layer.neuron.two_phase
        del layer.weight
        layer.register_buffer("weight", frozen_tensor(weight))
        self.layer = layer
        self.register_buffer("scale", None if scale is None else frozen_tensor(scale))
        self.register_buffer("bias", None if bias is None else frozen_tensor(bias))
        self.keep_packed()

    @classmethod
    @torch.no_grad()
    def of(cls, layer: TandemLayer, encoded: bool) -> FrozenTandem:
        """Freeze a layer. Batch norm is kept as gain and bias of the currents, as in eval mode."""
        kernel = kernel_of(layer)
        gain, bias = layer.drive.affine().of_integers(kernel.unit)
        weight = layer.synapses.from_kernel(kernel.weight)
        return cls(bare(class_of(layer), settings_of(layer)), weight, gain, bias, encoded)

    @classmethod
    def load(cls, layer_class: type[TandemLayer], settings: Settings, tensors: Tensors) -> FrozenTandem:
        kind, given = layer_class.__name__, dict(settings)
        encoded = given.pop("takes_encoded", None)
        if not isinstance(encoded, bool):
            raise ValueError(f"{kind}: setting takes_encoded must be true or false, got {encoded!r}")
        layer = checked_layer(layer_class, given)
        outputs = (layer.synapses.outputs,)
        shapes = {"weight": tuple(layer.weight.shape), "bias": outputs, "scale": outputs}
        check_tensors(kind, tensors, shapes, optional=("scale", "bias"), integers=("weight",))
        check_integers(kind, "weight", tensors, "scale")
        return cls(layer, tensors["weight"], tensors.get("scale"), tensors.get("bias"), encoded)

    def settings(self) -> Settings:
        return {**settings_of(self.layer), "takes_encoded": self.takes_encoded}

    def tensors(self) -> dict[str, Tensor]:
        tensors = {"weight": self.layer.weight, "scale": self.scale, "bias": self.bias}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def branches(self) -> list[nn.Module]:
        return [self.layer]

    def takes(self) -> str:
        return ENCODED if self.takes_encoded else SPIKES

    def output(self, *inputs: Value) -> Value:
        x = single(inputs)
        x.check_kind(self.takes())
        return self.layer.synapses.out_size(x)

    def forward(self, span: Span, state: State | None, x: Any) -> tuple[SpikeTrain, State | None]:
        affine, kernel = Affine(self.scale, self.bias), self._kernel()
        carried: State | None = None
        if self.takes_encoded and span.whole:
            bits = self._from_values(span, x, affine, kernel)
        elif self.takes_encoded:
            bits, carried = self._from_part_of_values(span, state, x, affine, kernel)
        elif isinstance(x, SpikeTrain):
            bits, _, neurons = self.layer.synapses.fire(
                x,
                affine.of_spikes(kernel, span.total, x.amplitude),
                Firing(self.layer.neuron, self.layer.engine),
                state=None if state is None else stacked(state),
                want_state=not span.ends,
            )
            carried = None if span.ends else neurons.unbind(0)
        else:
            raise TypeError(f"{self.kind}: input must be a SpikeTrain, got {type(x).__name__}")
        dtype, amplitude = self.layer.weights.dtype, self.layer.neuron.amplitude
        train = SpikeTrain.unchecked(bits, span.now, dtype=dtype, amplitude=amplitude)
        return train, None if span.ends else carried

    def _from_values(self, span: Span, x: EncodedInput, affine: Affine, kernel: Kernel) -> Tensor:
        """Return the bits of all time steps for real input."""
        synapses, neuron = self.layer.synapses, self.layer.neuron
        scale, bias = affine.of_values(span.total, x.mode == "constant")
        if kernel.weight.dtype in INTEGERS:  # one operator, which stores no sums
            value = synapses.checked_value(x.value, kernel.weight)
            options: dict[str, Any] = {"scale": scale, "bias": bias, "mode": x.mode, "neuron": neuron}
            return synapses.ordered_spikes(value, kernel, span.now, **options)
        current = self._current(span, x, affine, kernel)
        return run_neurons(neuron, current, span.now, x.mode, scale, bias, synapses.features).bits

    def _current(self, span: Span, x: EncodedInput, affine: Affine, kernel: Kernel) -> Tensor:
        """Return the product with real input, with the bias of a time step if it is constant and there is no gain."""
        adds = x.mode == "constant" and affine.gain is None
        return self.layer.synapses.value_product(x.value, kernel, per_step(affine.bias, span.total) if adds else None)

    def _from_part_of_values(
        self, span: Span, state: State | None, x: EncodedInput, affine: Affine, kernel: Kernel
    ) -> tuple[Tensor, State]:
        layer, bias = self.layer, per_step(affine.bias, span.total)
        if state is None:
            current = self._current(span, x, affine, kernel)
            mode, before, constant = x.mode, None, x.mode == "constant"
        else:  # the state holds the current of the first chunk
            (current, *variables), mode, constant = state, "constant", True
            before = stacked(variables)
        scale, of_step = affine.of_values(span.total, constant)
        features = layer.synapses.features
        how: dict[str, Any] = {"state": before, "want_state": not span.ends}
        bits, _, neurons = run_neurons(layer.neuron, current, span.now, mode, scale, of_step, features, **how)
        if not constant:  # after the first step of an impulse, only the bias is left
            current = torch.zeros_like(current)
            if bias is not None and affine.gain is None:  # with a gain, the bias is added after the gain instead
                current = current + (bias if features == -1 else bias.view(-1, *[1] * (current.dim() - 2)))
        return bits, (current, *neurons.unbind(0))

    def packed_layers(self) -> dict[str, TandemLayer]:
        return {} if self._is_dense() else {"packed": self.layer}

    def _kernel(self) -> Kernel:
        if self._is_dense():
            return self.layer.weights.kernel()
        if torch.compiler.is_compiling():
            return self.layer.weights.kernel()._replace(packed=self.packed)
        return self.packed_kernel("packed", self.layer)

    def _is_dense(self) -> bool:
        """Return whether torch computes the product, which takes weights as they are."""
        return self.takes_encoded and self.layer.weight.dtype not in INTEGERS


for layer_class in LAYERS:
    register(layer_class, FrozenTandem.of, partial(FrozenTandem.load, layer_class))
for idle in (TandemDropout, TandemDropout2d, TandemStochasticDepth):
    register(idle, lambda module, encoded: None)
