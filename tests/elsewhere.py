"""A network's operators computed elsewhere: by the reference, or by a program that reads calls from a file.

    with Elsewhere(...) as elsewhere:
        net(x)

Only the operators that compute spikes are replaced; what packs, unpacks and counts these stays the library's.
"""

import math
from collections import Counter

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import call_files
from call_files import COUNTS, SPIKES, VALUES
from tandem_cuda import IF, reference
from tandem_cuda.neuron import STATES, RadixIF, of_parameters

MODES = ("constant", "impulse", "series", "once")
GEOMETRY = ("stride", "padding", "dilation", "groups")
OPERATORS = ("spiking_product", "count_product", "ordered_product", "integrate_and_fire", "radix_spikes")
# Of run_products.
CUDA_ENGINES = {"gather engine": 0, "tensor cores, large tiles": 1, "small tiles": 2, "tiles of warpgroups": 3}
COMBINED = ("ordered_spikes", "ordered_radix_spikes", "radix_product", "step_product")  # of others, as on CUDA


class Elsewhere(TorchDispatchMode):
    """Replaces the operators by an object's methods of the same names, which take the arguments by name."""

    def __init__(self, place):
        super().__init__()
        self.place = place
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("tandem_cuda::")
        if name not in (*OPERATORS, *COMBINED):
            return func(*args, **kwargs or {})
        names = (argument.name for argument in func._schema.arguments)
        named = dict(zip(names, args, strict=False)) | (kwargs or {})
        return getattr(self, f"_{name}")(named) if name in COMBINED else self._called(name, **named)

    def _ordered_spikes(self, named):
        sums = self._called("ordered_product", **{name: named.pop(name) for name in ("input", "weight", *GEOMETRY)})
        named |= {"current": sums, "state": None, "want_sum": False, "want_state": False}
        del named["packed"]
        return self._called("integrate_and_fire", **named)[0]

    def _ordered_radix_spikes(self, named):
        sums = self._called("ordered_product", **{name: named.pop(name) for name in ("input", "weight", *GEOMETRY)})
        del named["packed"]
        return self._radix_spikes(sums, **named)

    def _radix_product(self, named):
        firing = {name: named.pop(name) for name in ("time_steps", "threshold", "initial")}
        added, amplitude = named.pop("added"), named.pop("amplitude")
        sums = self._called("count_product", **named)
        if added is not None and added.dtype == torch.uint8:
            trailing = named["weight"].dim() - 2
            added = added[0] if amplitude is None else added[0] * amplitude.view(-1, *[1] * trailing)
        return self._radix_spikes(sums if added is None else sums + added, scale=None, bias=None, **firing)

    def _radix_spikes(self, sums, **firing):
        rows = sums if sums.dim() == 4 else sums.flatten(0, -2)
        bits, _ = self._called("radix_spikes", current=rows, want_state=False, **firing)
        return bits.view(1, *sums.shape) if rows is not sums else bits

    def _step_product(self, named):
        steps = named.pop("time_steps")
        named["bits"] = reference.unpack_spikes(named["bits"], steps, torch.uint8).flatten(0, 1).unsqueeze(0)
        return self._called("count_product", **named).unflatten(0, (steps, -1))

    def _called(self, name, **arguments):
        self.calls[name] += 1
        return getattr(self.place, name)(**arguments)


class Reference:
    """Plain PyTorch."""

    def spiking_product(self, bits, weight, scale, bias, state, time_steps, neuron, parameters, **more):
        named = {"scale": scale, "time_steps": time_steps, "neuron": of_parameters(neuron, parameters)}
        named |= {name: more[name] for name in ("want_sum", "want_state", "added", "amplitude")}
        if weight.dim() == 2:
            return reference.spiking_linear(bits, weight, bias, state, **named)
        return reference.spiking_conv2d(bits, weight, bias, *_geometry(more), state, **named)

    def count_product(self, bits, weight, scale, bias, **more):
        if weight.dim() == 2:
            return reference.count_linear(bits, weight, bias, scale=scale, radix=more.get("radix", 0))
        return reference.count_conv2d(bits, weight, bias, *_geometry(more), scale=scale, radix=more.get("radix", 0))

    def ordered_product(self, input, weight, **more):
        return reference.ordered_product(input, weight, *_geometry(more))

    def integrate_and_fire(self, current, scale, bias, state, time_steps, mode, neuron, parameters, **wanted):
        named = {"scale": scale, "mode": MODES[mode], "neuron": of_parameters(neuron, parameters), **wanted}
        return reference.integrate_and_fire(current, time_steps, bias, state, **named)

    def radix_spikes(self, current, scale, bias, time_steps, threshold, initial, want_state):
        named = {"scale": scale, "mode": "once", "neuron": RadixIF(threshold * 2**time_steps, initial=initial)}
        named |= {"want_sum": False, "want_state": want_state}
        bits, _, state = reference.integrate_and_fire(current, time_steps, bias, **named)
        return bits, state


class Programs:
    """Programs of tests/cpp/calls.h.

    run(program, IN, OUT): runs run_products, run_ordered_products, run_neurons or run_radix_spikes. engine: one
    of CUDA_ENGINES' numbers.
    """

    def __init__(self, folder, run, engine=0):
        self.run, self.engine = run, engine
        self.files = folder / "in", folder / "out"

    def _call(self, program, call):
        self.files[0].write_bytes(call)
        self.run(program, *self.files)
        return call_files.results(self.files[1].read_bytes())

    def _product(self, bits, weight, scale, bias, state, time_steps, neuron, joined, more, multiplied):
        linear = weight.dim() == 2
        geometry = {name: more[name] for name in GEOMETRY}
        if linear:  # of images with one pixel
            bits, weight = bits[..., None, None], weight[..., None, None]
            state = None if state is None else state[..., None, None]
            joined = {name: x[..., None, None] if name == "added" else x for name, x in joined.items() if x is not None}
        how = [self.engine, multiplied, 0]
        call = call_files.product(bits, weight, scale, bias, state, geometry, time_steps, neuron, joined, how)
        sizes = call_files.sizes_of(bits.shape[1:], weight.shape, **geometry)
        shape = [sizes[0], *sizes[4:7]]
        _, *outputs = self._call("run_products", call)
        leading = [math.ceil(time_steps / 8)], [], [STATES[neuron[0]]]
        dtypes = np.uint8, np.float32, np.float32
        arrays = [_tensor(x, dtype, *n, *shape) for x, dtype, n in zip(outputs, dtypes, leading, strict=True) if x]
        return [x[..., 0, 0] if linear else x for x in arrays]

    def spiking_product(self, bits, weight, scale, bias, state, time_steps, neuron, parameters, **more):
        joined = {name: more[name] for name in ("added", "amplitude")}
        neuron = neuron, parameters
        bits, total, state = self._product(bits, weight, scale, bias, state, time_steps, neuron, joined, more, SPIKES)
        return _wanted(bits, total, state, more)

    def count_product(self, bits, weight, scale, bias, radix=0, **more):
        silent, steps = (IF().kind, IF().parameters), radix or 8 * len(bits)
        multiplied = VALUES if radix else COUNTS
        (total,) = self._product(bits, weight, scale, bias, None, steps, silent, {}, more, multiplied)
        return total

    def ordered_product(self, input, weight, **more):
        geometry = {name: more[name] for name in GEOMETRY}
        sizes = call_files.sizes_of(input.shape, weight.shape, **geometry)
        (out,) = self._call("run_ordered_products", call_files.ordered_product(input, weight, geometry))
        return _tensor(out, np.float32, sizes[0], *sizes[4:7])

    def integrate_and_fire(self, current, scale, bias, state, time_steps, mode, neuron, parameters, **wanted):
        linear = current.dim() == 2
        if linear:
            current, state = current[..., None, None], None if state is None else state[..., None, None]
        call = call_files.neurons(current, scale, bias, state, time_steps, mode, (neuron, parameters))
        bits, total, after = self._call("run_neurons", call)
        arrays = [
            _tensor(bits, np.uint8, math.ceil(time_steps / 8), *current.shape),
            _tensor(total, np.float32, *current.shape),
            _tensor(after, np.float32, STATES[neuron], *current.shape),
        ]
        return _wanted(*(x[..., 0, 0] if linear else x for x in arrays), wanted)

    def radix_spikes(self, current, scale, bias, time_steps, threshold, initial, want_state):
        linear = current.dim() == 2
        if linear:
            current = current[..., None, None]
        call = call_files.radix_spikes(current, scale, bias, time_steps, threshold, initial)
        bits, state = self._call("run_radix_spikes", call)
        arrays = [_tensor(bits, np.uint8, 1, *current.shape), _tensor(state, np.float32, 1, *current.shape)]
        bits, state = (x[..., 0, 0] if linear else x for x in arrays)
        return bits, state if want_state else state.new_empty(0)


def _geometry(more):
    return (more[name] for name in GEOMETRY)


def _wanted(bits, total, state, wanted):
    return (
        bits,
        total if wanted["want_sum"] else total.new_empty(0),
        state if wanted["want_state"] else state.new_empty(0),
    )


def _tensor(values, dtype, *shape):
    """An array [..., H, W, C] of a program as a tensor [..., C, H, W]."""
    *before, channels, height, width = shape
    array = torch.from_numpy(np.frombuffer(values, dtype).reshape(*before, height, width, channels).copy())
    return array.movedim(-1, -3)
