"""What the mutators of files share: changes of bytes, of trees of JSON and of arrays; and what a mutant may do."""

import copy
import itertools
import math

import numpy as np
import torch

from tandem_cuda import _C, SpikeTrain

from .draw import Draw, Mismatch

NUMBERS = (0, 1, -1, 2, 3, 7, 8, 9, 0.5, -1.5, 1e-30, 1e300, 2**31, 2**62, 2**63, 10**30, math.nan, math.inf, -math.inf)
OTHERS = (None, True, False, "", "x", "<input>", "1", "nan", [], {}, [1], [1, 2], [1, 2, 3], [[1]], {"a": 1})


def any_value(draw: Draw):
    return copy.deepcopy(draw.one(NUMBERS if draw.chance(0.6) else OTHERS))


def near(draw: Draw, value):
    """A value of the same type, or any."""
    if isinstance(value, bool) or draw.chance(0.3):
        return any_value(draw)
    if isinstance(value, (int, float)):
        return draw.one((value + 1, value - 1, value * 2, -value, value / 2, float(value), str(value), [value, value]))
    return any_value(draw)


# ---- Bytes


def mutated_bytes(draw: Draw, data):
    """Some bytes flipped, cut off, doubled, put in or zeroed."""
    data = bytearray(data)
    for _ in range(draw.one((1, 1, 2, 5))):
        at, length = draw.int(0, len(data) - 1) if data else 0, draw.one((1, 2, 8, 64))
        if draw.chance(0.3):
            at = min(at, draw.int(0, 600))  # headers stand at the beginning
        kind = draw.int(0, 5)
        if kind == 0:
            data[at : at + 1] = bytes([draw.int(0, 255)])
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = data[at : at + length]
        elif kind == 3:
            data[at:at] = draw.rng.bytes(length)
        elif kind == 4:
            data[at : at + length] = bytes(length)
        elif data:
            data[at] ^= 1 << draw.int(0, 7)
    return bytes(data)


# ---- Trees of JSON


def places(tree):
    """(container, key) of everything in a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from places(value)


def mutated_tree(draw: Draw, tree):
    """A copy with some value changed, removed, added, doubled, or put where another stands."""
    root = [copy.deepcopy(tree)]
    for _ in range(draw.one((1, 1, 1, 2, 3))):
        found = list(places(root))
        container, key = draw.one(found)
        value, kind = container[key], draw.int(0, 6)
        if kind <= 2:
            container[key] = near(draw, value)
        elif kind == 3 and container is not root:
            del container[key]
        elif kind == 4:
            other, at = draw.one(found)
            container[key] = copy.deepcopy(other[at])
        elif kind == 5 and isinstance(value, list):
            value.insert(draw.int(0, len(value)), copy.deepcopy(draw.one(value)) if value else any_value(draw))
        elif kind == 5 and isinstance(value, dict):
            value[draw.one(("x", "", "name", "kind", "bias"))] = any_value(draw)
        elif isinstance(value, list):
            draw.rng.shuffle(value)
    return root[0]


# ---- Arrays


def mutated_array(draw: Draw, values):
    """Other values, another shape or another dtype."""
    values, kind = np.array(values), draw.int(0, 6)
    if values.dtype.kind not in "fiub":
        return values
    if kind <= 2 and values.size and values.dtype.kind == "f":
        values.flat[draw.int(0, values.size - 1)] = draw.one((math.nan, math.inf, -math.inf, 0.0, -1.0, 1e10, 1e-42))
    elif kind == 3 and values.ndim:
        values = values[: draw.int(0, len(values) - 1)] if len(values) else values
    elif kind == 4:
        values = draw.one((values[None], values.reshape(-1), values[..., None], values.T, np.zeros(0), values.sum()))
    elif kind == 5:
        values = values.astype(draw.one((np.float64, np.float16, np.int8, np.int64, bool)))
    else:
        values = draw.one((values * 0, ~values if values.dtype == bool else -values, values + 1))
    return np.ascontiguousarray(values)


# ---- What a mutant may do


def loaded(load, refusals=(ValueError, TypeError, OSError)):
    """What `load` returns; None where it refuses with a message. Other exceptions are failures, and pass."""
    try:
        return load()
    except refusals as error:
        if not str(error):
            raise Mismatch(f"refused with an empty {type(error).__name__}") from error
        return None


def runs(network, inputs):
    """Mismatch unless the network has finite weights and computes finite outputs, or refuses inputs for their shapes.

    A file does not say for which shape of input its network is made, and an edited one may be made for none of those
    tried: ValueError, as of any network. What one layer gives to another, spikes or numbers, is known before: no
    TypeError.
    """
    held = itertools.chain(network.named_buffers(), network.named_parameters())
    if _C.cpu_isa() == "amx":  # what matrix tiles read are bytes, behind the rows of the packed weights
        held = ((name, x) for name, x in held if not name.endswith("packed"))
    if not all(x.isfinite().all() for _, x in held if x.is_floating_point()):
        raise Mismatch("loads with weights that are not finite")
    for x in inputs:
        try:
            out = network(x)
        except ValueError:
            continue
        values = out.count if isinstance(out, SpikeTrain) else out
        if isinstance(values, torch.Tensor) and not values.isfinite().all():
            raise Mismatch("loads, and its outputs are not finite")
        return
