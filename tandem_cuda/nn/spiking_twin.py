"""The spiking twin of a tandem layer alone, with constant weights: what frozen networks run."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..neuron import of_settings, stacked
from ..ops.checks import INTEGERS, check_finite
from ..spike_code import SpikeCode
from ..spike_train import SpikeTrain
from . import schema
from .drive import Affine, Drive, per_step
from .encode import EncodedInput
from .firing import Firing, check_reads_radix, mode_for, run_neurons
from .frozen import Span, State, class_of, single
from .leak import check_folds, check_two_phase, folded, folds_of, negative
from .prepared import PreparedLayer, Run
from .schema import Settings, Tensors
from .sizes import ENCODED, SPIKES, Value, check_count
from .trained_code import check_code, check_train, forget_untrained, read_code, trained_radix, written_code
from .weight_cache import Kernel
from .weighted import WeightedLayer
from .weights import Weights
from .wiring import Wiring


class SpikingTwin(PreparedLayer, WeightedLayer):
    """A weighted layer that can run without its ANN.

    A frozen layer has buffers instead of parameters and a norm: ``weight``, in the shape of the parameter (int8 or
    int16 if it was quantised); ``gain``, [O], by which sums are multiplied, with batch norm, the learned threshold and
    the scale of integers; and ``bias``, [O], spread evenly over the T time steps. Gain and bias may be None.

    The buffer ``packed`` holds the weights for the kernels of their device. It is no part of files, pickles and state
    dicts: whatever replaces the weights packs the new ones. A call packs them, too, if they have changed in place, as
    autograd's versions tell. If a call gets other weights (``torch.func.functional_call``), the operators pack these.
    """

    FLAGS: ClassVar[tuple[str, ...]] = ()
    """Further settings, which files leave out if they are false."""
    gain: Tensor | None
    packed: Tensor | None
    _constant: _Constant | None

    @property
    def is_frozen(self) -> bool:
        """Whether the weights are constant."""
        return "weight" in self._buffers and "gain" in self._buffers  # a user's own layer may have a buffer "gain"

    # -- settings and constants

    def settings(self) -> Settings:
        return {**self.synapse_settings(), "takes_encoded": self.reads == ENCODED}

    def synapse_settings(self) -> Settings:
        """Return the settings of the layer as a branch of a sum: without the kind of its input.

        "multiplicity" is how many synapses share a weight of the ANN, if several do, and "paired" is true if neurons
        2i and 2i + 1 are for v and -v. "folds" lists the values i with a negative slope (:func:`.leak.folded`).
        "trained_radix" says with which spikes the layer was trained, if nothing in front of it fires them.
        """
        settings = {**self.arguments(), "neuron": self.neuron.settings(), "engine": self.engine}
        if self.synapses_per_weight > 1:
            settings["multiplicity"] = self.synapses_per_weight
        if self.fires_pairs and self.synapses_per_weight > 1:
            settings["paired"] = True
        if folds := folds_of(self):
            settings["folds"] = list(folds)
        if (radix := trained_radix(self)) is not None:
            settings["trained_radix"] = radix
        return settings

    def constants(self) -> dict[str, Tensor]:
        if self.is_frozen:
            weight, gain, bias = self.weight, self.gain, self.bias
        else:
            with torch.no_grad():
                weights = Weights(self)
                if weights.bits is not None:  # rounding may hide values that are not finite
                    check_finite(class_of(self).__name__, "weight", weights.stored().detach().cpu())
                kernel = weights.kernel()
                gain, bias = Drive(self).affine().of_integers(kernel.unit)
                weight = self.synapses.from_kernel(kernel.weight)
        return {name: x for name, x in (("weight", weight), ("scale", gain), ("bias", bias)) if x is not None}

    @classmethod
    def of(cls, settings: Settings, tensors: Tensors) -> Any:
        given = dict(settings)
        encoded = given.pop("takes_encoded", None)
        schema.flag(cls.__name__, "takes_encoded", encoded)
        layer = cls.checked(given)
        layer.reads = ENCODED if encoded else SPIKES
        shapes = layer.constant_shapes()
        schema.check_tensors(cls.__name__, tensors, shapes, optional=("scale", "bias"), integers=("weight",))
        schema.check_integers(cls.__name__, "weight", tensors, "scale")
        schema.check_scales(cls.__name__, layer.neuron)
        return layer.with_constants(tensors)

    @classmethod
    def checked(cls, settings: Settings) -> Any:
        """Make a layer without tensors from unchecked settings of a file, as a branch of a sum has them."""
        kind = cls.__name__
        flags = {"trained_radix", *cls.FLAGS}
        optional = {"multiplicity", "paired", "folds", *flags} & settings.keys()
        for name in optional & flags:
            schema.flag(kind, name, settings[name])
        numbers = settings.keys() - {"neuron", "paired", "folds", *flags}
        schema.check_no_bool(kind, {name: settings[name] for name in numbers})
        schema.check_settings(kind, settings, {*cls.SETTINGS, *optional, "neuron", "engine"})
        cls.check(settings)
        if "multiplicity" in settings:
            number, of_what = settings["multiplicity"], "features" if "in_features" in settings else "channels"
            schema.frozen_numbers(kind, "multiplicity", number, 2)
            inputs, outputs = settings[f"in_{of_what}"], settings[f"out_{of_what}"]
            if inputs * outputs % number:
                raise ValueError(
                    f"{kind}: setting multiplicity must divide {inputs} * {outputs} {of_what}, got {number}"
                )
        if "paired" in settings and (settings["paired"] is not True or "multiplicity" not in settings):
            raise ValueError(f"{kind}: setting paired must be true beside multiplicity, got {settings['paired']}")
        if "kernel_size" in settings:
            check_count("weights of setting kernel_size", [settings["out_channels"], *settings["kernel_size"]])
        if "folds" in settings:
            check_folds(kind, settings["folds"])
        layer = cls.without_tensors(settings)
        if "folds" in settings:
            check_folds(kind, settings["folds"], layer.synapses.outputs // 2 if layer.fires_pairs else 0)
        if json.dumps(layer.synapse_settings(), sort_keys=True) != json.dumps(settings, sort_keys=True):
            raise ValueError(f"{kind}: settings must be {layer.synapse_settings()}, got {settings}")
        return layer

    @classmethod
    def without_tensors(cls, settings: Settings) -> Any:
        """Make a layer from the settings of a branch, without bias and norm, on the meta device."""
        arguments = schema.with_tuples(settings)
        neuron, number = of_settings(cls.__name__, settings.get("neuron")), arguments.pop("multiplicity", 1)
        paired, folds = arguments.pop("paired", False), tuple(arguments.pop("folds", ()))
        trained = arguments.pop("trained_radix", None)
        layer = cls(**{**arguments, "neuron": neuron}, bias=False, device="meta")
        layer.wiring = Wiring(in_weight=number, in_pairs=paired, folds=folds) if number > 1 or folds else None
        layer.trained_radix = trained
        return layer

    def constant_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each constant."""
        outputs = (self.synapses.outputs,)
        return {"weight": tuple(self.weight.shape), "bias": outputs, "scale": outputs}

    def with_constants(self, tensors: Tensors) -> Any:
        """Put constants in place of the parameters."""
        for name, constant in (("weight", "weight"), ("gain", "scale"), ("bias", "bias")):
            tensor = tensors.get(constant)
            self._parameters.pop(name, None)
            self.register_buffer(name, None if tensor is None else schema.frozen_tensor(tensor))
        self.pack()
        return self

    def frozen(self, encoded: bool) -> Any:
        check_two_phase(class_of(self).__name__, self, self.neuron.two_phase)
        layer = self.frozen_branch(ENCODED if encoded else SPIKES)
        schema.check_scales(class_of(self).__name__, self.neuron)
        return layer

    def frozen_branch(self, reads: str = SPIKES) -> Any:
        """Return a frozen copy that reads inputs of this kind; as a branch of a sum, where only synapses matter."""
        constants = self.constants()
        layer = class_of(self).without_tensors(self.synapse_settings())
        layer.reads = reads
        return layer.with_constants(constants)

    @property
    def needs_all_steps(self) -> bool:
        return self.neuron.two_phase

    @property
    def synapses_per_weight(self) -> int:
        """How many synapses share a weight of the ANN."""
        return 1 if self.wiring is None else self.wiring.synapses_per_weight

    # -- the weights of the kernels

    def pack(self) -> None:
        """Pack constant weights for the kernels of their device."""
        weight, packed = self.weight, None
        kernel = Weights(self).kernel()
        # FrozenNetwork reports weights that are not finite: its message names the layer.
        if not self._is_dense() and (weight.is_meta or bool(weight.isfinite().all())):
            packed = ops.pack_weight.trusted(kernel.weight.detach(), self.synapses.groups)
        self.register_buffer("packed", packed, persistent=False)
        version = None if weight.is_inference() else weight._version
        self._constant = _Constant(weight, version, kernel._replace(packed=packed))

    def constant_kernel(self) -> Kernel:
        """Return the constant weights, packed unless torch computes their product."""
        if torch.compiler.is_compiling():  # compiled code cannot see that weights have changed
            return Weights(self).kernel()._replace(packed=self.packed)
        constant = self._constant
        if constant is None or self.weight is not constant.weight or constant.version is None:  # nobody counts changes
            return Weights(self).kernel()
        if constant.weight._version != constant.version:
            self.pack()
            assert self._constant is not None
            return self._constant.kernel
        return constant.kernel

    def _is_dense(self) -> bool:
        """Return whether torch computes the product, which takes weights as they are."""
        return self.reads == ENCODED and self.weight.dtype not in INTEGERS

    def __getstate__(self) -> dict[str, Any]:
        forget_untrained(self)
        state = super().__getstate__()
        return {**state, "_buffers": {**self._buffers, "packed": None}, "_constant": None} if self.is_frozen else state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch's
        if self.is_frozen:
            self.pack()  # in the order of this device; the network may have been pickled on another one

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        converted = super()._apply(fn, recurse)
        if self.is_frozen:
            self.pack()
        return converted

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]] |= written_code(self)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        read_code(self, local_metadata)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if self.is_frozen:
            self.pack()

    # -- the spiking twin

    def out_size(self, *inputs: Value) -> Value:
        x = single(inputs, self.reads)
        if x.radix:
            check_reads_radix(self.neuron)
        check_code(self, x.radix)
        size = self.synapses.out_size(x)
        pair_dim = self.pair_dim(None if size.shape is None else 1 + len(size.shape))
        return size._replace(pair_dim=pair_dim, radix=self.neuron.radix)

    def forget_codes(self, *inputs: Value) -> None:
        if single(inputs).radix is not None:
            self.trained_radix = None

    def prepare(self, direct: bool, span: Span, *inputs: Any) -> Run:
        (x,) = inputs
        kernel, dims = self.constant_kernel(), None
        if self.reads == ENCODED:
            fire = self._on_values(direct, span, x, kernel)
            dims = None if x is None else x.value.dim()
        elif isinstance(x, SpikeTrain):
            fire = self._on_spikes(direct, span, x, kernel)
            dims = len(x.shape)
        else:
            raise TypeError(f"{type(self).__name__}: input must be a SpikeTrain, got {type(x).__name__}")
        steps, dtype = span.now, torch.float32 if kernel.weight.dtype in INTEGERS else kernel.weight.dtype
        code = SpikeCode(self.neuron.amplitude_at(steps), self.pair_dim(dims), self.neuron.radix)
        folds = code.pair_dim is not None and (dims is None or negative(self) is not None)

        def run(span: Span, state: State | None, x: Any) -> tuple[SpikeTrain, State | None]:
            bits, carried = fire(span, state, x)
            fired = SpikeTrain.coded(bits, steps, None, dtype, code)
            return self.with_pairs(fired) if folds else fired, carried

        return run

    def _on_spikes(self, direct: bool, span: Span, x: SpikeTrain, kernel: Kernel) -> Run:
        """Return a function that returns the bits for spikes, and the state."""
        name, neuron = type(self).__name__, self.neuron
        if x.code.radix:
            check_reads_radix(neuron, name)
        check_train(self, x.code.radix, name)
        self.synapses.check_pairs(x)
        weights = Affine(self.gain, self.bias).of_spikes(kernel, neuron.shares(span.total), x.amplitude)
        fire = self.synapses.prepared(direct, x, weights, Firing(neuron, self.engine))

        def run(span: Span, state: State | None, x: Any) -> tuple[Tensor, State | None]:
            now, done, total, _ = span
            ends = now + done == total
            bits, after = fire(x, None if state is None else stacked(state), not ends)
            return bits, None if ends else after.unbind(0)

        return run

    def _on_values(self, direct: bool, span: Span, x: EncodedInput | None, kernel: Kernel) -> Run:
        """Return a function that returns the bits for real input, and the state."""
        call, of_integers = None, kernel.weight.dtype in INTEGERS
        if direct and x is not None and span.whole and of_integers and x.value.dtype == torch.float32:
            call = self.synapses.ordered_arguments(x.value, kernel, span.now, **self._ordered_drive(span, x))
        if call is None:
            return partial(self._run_on_values, kernel)
        operator, arguments = call
        return lambda span, state, x: (operator(x.value.detach(), *arguments), None)

    def with_pairs(self, fired: SpikeTrain) -> SpikeTrain:
        """Return the spikes, marked as ``paired`` if there are two neurons for each value, and folded if they are."""
        pair_dim = self.pair_dim(len(fired.shape))
        if pair_dim is None:
            return fired
        return folded(type(self).__name__, fired.replace_unchecked(pair_dim=pair_dim), self, self.neuron.two_phase)

    def _ordered_drive(self, span: Span, x: EncodedInput) -> dict[str, Any]:
        """Return what drives the neurons beside the products with real input, and the neurons."""
        scale, bias = Affine(self.gain, self.bias).of_values(self.neuron.shares(span.total), x.mode == "constant")
        mode = mode_for(type(self).__name__, self.neuron, x.mode)
        return {"scale": scale, "bias": bias, "mode": mode, "neuron": self.neuron}

    def _run_on_values(
        self, kernel: Kernel, span: Span, state: State | None, x: EncodedInput | None
    ) -> tuple[Tensor, State | None]:
        """Return bits for real input, and the state: the current of the time steps to come, and the neurons'."""
        synapses, neuron, affine, before = self.synapses, self.neuron, Affine(self.gain, self.bias), None
        steps = neuron.shares(span.total)
        if x is None or state is not None:
            assert state is not None
            (current, *variables), mode = state, "constant"
            before = stacked(variables)
        elif span.whole and kernel.weight.dtype in INTEGERS:  # one operator, which stores no sums
            value = synapses.checked_value(x.value, kernel.weight)
            return synapses.ordered_spikes(value, kernel, span.now, **self._ordered_drive(span, x)), None
        else:  # with a gain, the bias is added after the gain instead of to the product
            mode, adds = mode_for(type(self).__name__, neuron, x.mode), x.mode == "constant" and affine.gain is None
            current = synapses.value_product(x.value, kernel, per_step(affine.bias, steps) if adds else None)
        scale, bias = affine.of_values(steps, mode == "constant")
        how: dict[str, Any] = {"state": before, "want_state": not span.ends}
        bits, _, after = run_neurons(neuron, current, span.now, mode, scale, bias, synapses.features, **how)
        if span.ends:
            return bits, None
        if mode != "constant":  # after the first step of an impulse, only the bias is left
            current = torch.zeros_like(current)
            if bias is not None and affine.gain is None:
                current = current + (bias if synapses.features == -1 else bias.view(-1, *[1] * (current.dim() - 2)))
        return bits, (current, *after.unbind(0))


class _Constant(NamedTuple):
    """Constant weights as the kernels take them."""

    weight: Tensor
    """The buffer that they were made from."""
    version: int | None
    """Its version then; None if it has none."""
    kernel: Kernel
