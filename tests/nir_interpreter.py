"""An interpreter of NIR graphs, for tests: the equations of the NIR paper, step by step, with a reset that subtracts.

Pedersen et al., "Neuromorphic intermediate representation", Nature Communications 2024, table 1. It knows NIR and
torch, and nothing of tandem_cuda.
"""

from collections import defaultdict

import nir
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def executed(graph: nir.NIRGraph, steps: list[Tensor], dt: float | None = None) -> Tensor:
    """The sum over time of what the graph puts out, given its input [N, ...] at each step; in float64."""
    dt = graph.metadata["dt"] if dt is None else dt
    sources = defaultdict(list)
    for source, target in graph.edges:
        sources[target].append(source)
    order: list[str] = []
    while len(order) < len(graph.nodes):
        ready = [n for n in graph.nodes if n not in order and all(source in order for source in sources[n])]
        assert ready, "a cycle"
        order += ready
    values: dict[str, list[Tensor]] = {}
    for name in order:
        node, potentials = graph.nodes[name], {}
        if isinstance(node, nir.Input):
            values[name] = [x.double() for x in steps]
        else:
            inputs = [sum(parts) for parts in zip(*(values[source] for source in sources[name]), strict=True)]
            values[name] = [_step(name, node, x, potentials, dt) for x in inputs]
        assert list(node.output_type["output"]) == list(values[name][0].shape[1:]), name
    (output,) = (name for name in order if isinstance(graph.nodes[name], nir.Output))
    return sum(values[output])


def _step(name: str, node: nir.NIRNode, x: Tensor, potentials: dict[str, Tensor], dt: float) -> Tensor:
    if isinstance(node, nir.Output):
        return x
    if isinstance(node, nir.Flatten):
        start, end = (dim + 1 if dim >= 0 else dim for dim in (node.start_dim, node.end_dim))
        return x.flatten(start, end)
    if isinstance(node, (nir.Linear, nir.Affine)):
        return F.linear(x, _tensor(node.weight), _tensor(node.bias) if isinstance(node, nir.Affine) else None)
    if isinstance(node, (nir.Conv1d, nir.Conv2d)):
        convolve = F.conv1d if isinstance(node, nir.Conv1d) else F.conv2d
        geometry = node.stride, node.padding, node.dilation, int(node.groups)
        return convolve(x, _tensor(node.weight), _tensor(node.bias), *map(_plain, geometry))
    if isinstance(node, (nir.AvgPool2d, nir.SumPool2d)):
        divisor = 1 if isinstance(node, nir.SumPool2d) else None
        kernel, stride, padding = map(_plain, (node.kernel_size, node.stride, node.padding))
        return F.avg_pool2d(x, kernel, stride, padding, divisor_override=divisor)
    v = potentials.get(name, torch.zeros_like(x))
    r, threshold, reset = (_tensor(p) for p in (node.r, node.v_threshold, node.v_reset))
    if isinstance(node, nir.IF):  # dv/dt = R I
        v = v + dt * r * x
    else:  # tau dv/dt = (v_leak - v) + R I
        assert isinstance(node, nir.LIF)
        v = v + dt / _tensor(node.tau) * ((_tensor(node.v_leak) - v) + r * x)
    z = (v >= threshold).double()
    potentials[name] = v - z * (threshold - reset)
    return z


def _tensor(x) -> Tensor:
    return torch.from_numpy(np.asarray(x, dtype=np.float64))


def _plain(x):
    """What torch takes."""
    if isinstance(x, (str, int)):
        return x
    sizes = np.asarray(x).reshape(-1).tolist()
    return sizes if len(sizes) > 1 else sizes[0]
