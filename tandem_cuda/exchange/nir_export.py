"""to_nir: a network as a NIR graph."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from ..convert import TandemNetwork, flattened_to
from ..nn import Decode, Encode, SpikingMaxPool2d, TandemAdd
from ..nn.modes import evaluating
from ..nn.tandem import TandemLayer
from ..spike_train import SpikeTrain
from .nir_format import NIRTorchTracer, check_dt, nir, unsupported
from .nir_writer import IDLE, MEANS, POOLS, READ_OUTS, Export, name_of

_FLATTENED = (torch.flatten, flattened_to, "flatten")
_LEAVES = (TandemLayer, TandemAdd, *POOLS, SpikingMaxPool2d, Encode, Decode, nn.Flatten, *IDLE)
_NO_MAXIMUM = "NIR has no max pooling; pool averages, or let the convolution stride"
_NO_NODE = "NIR has no node for it; real numbers go into Encode, and what Decode returns into linear layers"


def to_nir(
    model: nn.Module,
    sample: Tensor | SpikeTrain,
    path: str | os.PathLike[str] | None = None,
    *,
    dt: float = 1e-4,
) -> nir.NIRGraph:
    """Describe a network in NIR, batch norm folded into the weights, as it is in eval mode.

    With a time step of dt, a simulator that integrates NIR's equations by the forward Euler method computes what
    u[t] = leak * u[t-1] + x[t] - threshold * s[t-1] says:

    - IF: nir.IF with r = 1 / dt, v_threshold = threshold and v_reset = 0.
    - LIF: nir.LIF with tau = dt / (1 - leak), r = 1 / (1 - leak), v_leak = 0, v_threshold = threshold and v_reset =
      threshold * (1 - 1 / leak).
    - In continuous time a neuron spikes at v = v_threshold exactly, and setting v to v_reset is subtracting
      v_threshold - v_reset. In time steps it is not: the simulator has to *subtract* it, as its setting for resets
      ("soft", "subtract") makes it do. The potential leaks after that, and leak * (v_threshold - v_reset) = threshold.
    - A neuron spikes where u >= threshold.
    - Biases are those of one time step, b / T.
    - Weights are multiplied by the ``amplitude`` of the spikes they receive, or the ``scale`` of ``Encode``.
    - ``TandemAdd``: neurons with an edge from each branch, whose currents add up; the first branch has the biases of
      all. Spikes of amplitude 1 enter directly, others through a 1 x 1 convolution (of features, a matrix).
    - Average pooling: neurons behind AvgPool2d where the size of a window is a power of two and there is no padding,
      else with as many times the threshold behind SumPool2d or a depthwise convolution of ones, so that sums are exact.
      Windows of different sizes become a convolution of the whole image, which must be flattened behind the neurons.
    - Input: at every time step the input itself (``Encode(T, "constant")``), or that at the first step and zeros
      afterwards ("impulse"), or the recorded spikes (no ``Encode``).
    - Output: spikes, or behind ``Decode`` and linear layers a current; summed over the T steps it is what the model
      returns (the spike counts of a model that ends in a tandem layer).

    dt, T (``time_steps``), the encoding and the reset, "subtract", are in the graph's metadata, each LIF's leak in that
    of its node.

    Args:
        model: its forward pass, as torch.fx traces it, calls ``Encode``, tandem layers, ``TandemAdd``, average pooling
            of spikes, flattening, dropout, ``Decode`` and, behind it, nn.Linear, nn.Conv1d, nn.Conv2d and average
            pooling; branches may part and join. Also what :func:`tandem_cuda.convert` has returned.
        sample: an input of the model, Tensor or SpikeTrain [N, ...], for the shapes and T.
        path: where to write the graph, as HDF5; by default nowhere.
        dt: duration of a time step in seconds; 1e-4 is what snnTorch and SpikingJelly assume.

    Returns:
        The graph. Its weights have the values and dtype of the folded ones.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: ``dt`` is not positive, or ``sample`` is empty; ``model`` has parts that have no place in the graph,
            all of which the message names, or weights that are not finite.
        OSError: the file cannot be written.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"to_nir: model must be an nn.Module, got {type(model).__name__}")
    if not isinstance(sample, (Tensor, SpikeTrain)):
        raise TypeError(f"to_nir: sample must be a Tensor or a SpikeTrain, got {type(sample).__name__}")
    if len(sample.shape) < 2 or 0 in sample.shape:
        raise ValueError(f"to_nir: sample must be [N, ...] and not empty, got {list(sample.shape)}")
    check_dt("to_nir", dt)
    with evaluating(model), torch.no_grad():
        value = sample[:1] if isinstance(sample, Tensor) else sample.rearranged(lambda bits: bits[:, :1])
        graph = Export(dt, value).graph(*_traced(model))
    if path is not None:
        _write(graph, os.fspath(path))
    return graph


def _write(graph: nir.NIRGraph, path: str) -> None:
    contents = io.BytesIO()  # libhdf5's own errors do not say what the system said
    nir.write(contents, graph)
    try:
        Path(path).write_bytes(contents.getbuffer())
    except OSError as error:
        raise OSError(error.errno, f"to_nir: path cannot be written: {error.strerror}", path) from error


def _traced(model: nn.Module) -> tuple[nn.Module, list[fx.Node]]:
    """A module and what its forward pass calls; ValueError where that has no place in a graph."""
    if isinstance(model, _LEAVES):
        model = nn.Sequential(OrderedDict({type(model).__name__.lower(): model}))
    if isinstance(model, TandemNetwork):
        model = model.snn
    try:
        nodes = list(NIRTorchTracer(_LEAVES, autowrap_functions=(flattened_to,)).trace(model).nodes)
    except Exception as error:  # whatever a user's forward raises when it meets a proxy
        raise ValueError(f"to_nir: model must have a forward pass that torch.fx can trace, got {error}") from error
    nodes = _used(nodes)
    problems = []
    for node in nodes:
        what = f"{node.target} ({node.op})"
        wanted = 1
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            what = name_of(node, module)
            if not isinstance(module, (*_LEAVES, *READ_OUTS, *MEANS)) or isinstance(module, SpikingMaxPool2d):
                problems.append(f"{what}: {_NO_MAXIMUM if isinstance(module, SpikingMaxPool2d) else _NO_NODE}")
                continue
            wanted = len(module.branches) if isinstance(module, TandemAdd) else 1
            if not all(bool(x.isfinite().all()) for x in (*module.parameters(), *module.buffers())):
                problems.append(f"{what}: its weights and bias must be finite, got NaN or infinite ones")
                continue
        elif node.op == "placeholder":
            wanted = 0
            if node is not nodes[0]:
                problems.append(f"{what}: a model with one input is what can be exported")
        elif node.op == "output":
            what = "output"
            if not isinstance(node.args[0], fx.Node):
                problems.append("output: it must be one value")
        elif not (node.op in ("call_method", "call_function") and node.target in _FLATTENED):
            problems.append(f"{what}: only calls of modules and flattening can be exported")
            continue
        inputs = [x for x in (*node.args, *node.kwargs.values()) if isinstance(x, fx.Node)]
        if len(inputs) != wanted and node.op != "output":
            problems.append(f"{what}: it must have {wanted} inputs, got {len(inputs)}")
    if problems:
        raise unsupported("to_nir: model", problems)
    return model, nodes


def _used(nodes: list[fx.Node]) -> list[fx.Node]:
    """The input, and what the output depends on."""
    found = {nodes[-1]}
    for node in reversed(nodes):
        if node in found:
            found.update(node.all_input_nodes)
    return [node for node in nodes if node in found or node.op == "placeholder"]
