"""to_nir: export a network as a NIR graph."""

from __future__ import annotations

import os
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..convert import TandemNetwork, flattened_to, sized_as_traced
from ..convert.nodes import leading_to
from ..freeze.functions import constants_of, frozen_call
from ..nn.modes import evaluating
from ..nn.spiking import Spiking
from ..spike_train import SpikeTrain
from .nir_file import write
from .nir_format import NIRTorchTracer, check_dt, nir, unsupported
from .nir_writer import FLATTENED, NirGraphWriter, form_of, is_add, name_of

_NO_NODE = "NIR has no node for it; nothing may come before Encode, and only what freeze takes after Decode"


def to_nir(
    model: nn.Module,
    sample: Tensor | SpikeTrain,
    path: str | os.PathLike[str] | None = None,
    *,
    dt: float = 1e-4,
    groups: bool = True,
) -> nir.NIRGraph:
    """Export a network, as it is in eval mode, as a NIR graph. Batch norm is folded into the weights.

    Neurons are mapped so that a simulator that integrates NIR's equations by the forward Euler method, with a time step
    of dt, computes u[t] = leak * u[t-1] + x[t] - threshold * s[t-1]:

    - IF: nir.IF with r = 1 / dt, v_threshold = threshold and v_reset = 0.
    - LIF: nir.LIF with tau = dt / (1 - leak), r = 1 / (1 - leak), v_leak = 0, v_threshold = threshold and v_reset =
      threshold * (1 - 1 / leak).
    - Reset: in continuous time a neuron spikes exactly at v = v_threshold, so setting v to v_reset subtracts
      v_threshold - v_reset. In discrete time v may exceed v_threshold, so the simulator must be set to *subtract* this
      difference (reset "soft" or "subtract"). The potential leaks afterwards, and leak * (v_threshold - v_reset) =
      threshold.
    - A neuron spikes if u >= threshold.
    - Biases are per time step, b / T.
    - Weights are multiplied by the ``amplitude`` of the spikes that they receive, or by the ``scale`` of ``Encode``.
    - With ``learn_threshold``, weights and biases are divided by exp(``log_threshold``), not the threshold multiplied.
    - ``TandemAdd``: neurons with an edge from each branch, whose currents add up. The first branch holds the sum of all
      biases. Spikes of amplitude 1 enter directly, others through a 1 x 1 convolution (for features, a matrix).
    - ``TandemElementwise``: a depthwise 1 x 1 convolution (for features, a matrix).
    - Values of both signs, ``input_scale``: the weights of all neurons, as the products take them. A signed or scaled
      ``Decode``: the weights of the read-out.
    - ``SpikeCat``, ``SpikeRearrange``, ``SpikeWindows``: no nodes. The layer that reads them has weights for each of
      the concatenated parts, whose currents add up, and reads each value where it comes from: padding, cropping,
      channels and windows are part of its convolution. Where they cannot be (as when padding follows cropping),
      neurons that repeat each spike at once come in between.
    - Average pooling: AvgPool2d and neurons if the window size is a power of two and there is no padding. Otherwise
      SumPool2d, or a depthwise convolution of ones, and neurons whose threshold is multiplied by the window size, so
      that sums are exact. Lines [N, C, L] always get a convolution. Windows of different sizes become a convolution of
      the whole image, whose stride is the size of the image.
    - Upsampling, pixel shuffling, padding with the image's own spikes, strides of transposed convolutions: such
      convolutions for the rows and for the columns, each with neurons that repeat each spike at once.
    - Max pooling: integrators (I) count the spikes, and gates (Threshold) compare two counts at a time, in the step of
      the spikes (:mod:`tandem_cuda.exchange.nir_maximum`).
    - ``TandemGate``, and functions after ``Decode`` that NIR has no node for, such as a ReLU: nodes of the types
      TandemGate and TandemFunction, which extend NIR. ``from_nir`` reads them; NIR's own reader refuses the file.
    - Input: the input itself at every time step (``Encode(T, "constant")``); the input at the first step and zeros
      afterwards ("impulse"); or the recorded spikes (no ``Encode``).
    - Output: spikes, or a current after ``Decode`` and linear layers. Its sum over the T steps is the model's output
      (the spike counts if the model ends in a tandem layer). A node with several inputs adds them up.

    The graph's metadata hold dt, T (``time_steps``), the encoding and the reset, "subtract". The metadata of each LIF
    node hold its leak.

    NIR has no integer weights. A quantised network (:func:`tandem_cuda.quantise`) is written with the floats that its
    integers stand for, integer * scale. The metadata of their node hold ``weight_bits``, and ``weight_scale`` [O], with
    batch norm folded in, so that round(weight / weight_scale) returns the integers. Neither is there where several
    weights for one spike add up (a value concatenated with itself, overlapping windows), or where scales of single
    channels leave no integers. Sums of these floats are rounded, so other simulators may have other spikes.

    Args:
        model: a model whose forward pass, as traced by torch.fx, calls ``Encode``, tandem layers, ``TandemAdd``,
            ``TandemGate``, ``SpikeCat``, ``SpikeRearrange``, pooling of spikes, flattening, dropout and ``Decode``,
            after it what :func:`tandem_cuda.freeze` takes. It may have branches. The result of
            :func:`tandem_cuda.convert` works, too.
        sample: an input of the model, a Tensor or SpikeTrain [N, ...], which defines the shapes and T.
        path: the HDF5 file to write the graph to; by default none is written.
        dt: duration of a time step in seconds. snnTorch and SpikingJelly assume 1e-4.
        groups: False writes grouped convolutions, also for ``TandemElementwise`` and average pooling, as plain
            convolutions with zeros between the groups. They have as many times more weights as there are groups, but
            SpikingJelly, snnTorch, sinabs and norse read no grouped convolutions.

    Returns:
        The graph. Its weights have the values and dtype of the folded weights.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``dt`` is not positive; ``sample`` is empty or has radix spikes; parts of ``model`` cannot be
            exported (the message names all of them); or weights are not finite.
        OSError: the file cannot be written.

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(784, 50), Decode(), nn.Linear(50, 10)).eval()
        >>> from tandem_cuda.exchange import to_nir
        >>> graph = to_nir(net, torch.rand(1, 784))
        >>> [type(node).__name__ for node in graph.nodes.values()]
        ['Input', 'Affine', 'IF', 'Affine', 'Output']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"to_nir: model must be an nn.Module, got {type(model).__name__}")
    if not isinstance(sample, (Tensor, SpikeTrain)):
        raise TypeError(f"to_nir: sample must be a Tensor or a SpikeTrain, got {type(sample).__name__}")
    if len(sample.shape) < 2 or 0 in sample.shape:
        raise ValueError(f"to_nir: sample must be [N, ...] and not empty, got {list(sample.shape)}")
    if isinstance(sample, SpikeTrain) and sample.radix:
        raise ValueError("to_nir: sample must have spikes that all weigh the same, as in NIR, got radix spikes")
    check_dt("to_nir", dt)
    if not isinstance(groups, bool):
        raise TypeError(f"to_nir: groups must be True or False, got {type(groups).__name__}")
    with evaluating(model), torch.no_grad():
        value = sample[:1] if isinstance(sample, Tensor) else sample.rearranged(lambda bits: bits[:, :1])
        graph = NirGraphWriter(dt, value, groups).graph(*_traced(model))
    if path is not None:
        write(graph, os.fspath(path))
    return graph


def _is_leaf(module: nn.Module) -> bool:
    """Return whether a module is a layer, whose calls are not looked into."""
    form = form_of(module)
    return bool(getattr(module, "no_nir", None)) if form is None else form.leaf


class _Tracer(NIRTorchTracer):  # type: ignore[misc]  # nirtorch has no types
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_leaf(m) or bool(super().is_leaf_module(m, module_qualified_name))


def _traced(model: nn.Module) -> tuple[fx.GraphModule, list[fx.Node]]:
    """Return a module and the calls of its forward pass; raise a ValueError if some cannot be exported."""
    # A network of layers may have a method of the name by chance.
    if _is_leaf(model) and (isinstance(model, Spiking) or not any(map(_is_leaf, model.children()))):
        model = nn.Sequential(OrderedDict({type(model).__name__.lower(): model}))
    if isinstance(model, TandemNetwork):
        model.check_twins()
        model = model.snn
    try:
        traced = _Tracer(autowrap_functions=(flattened_to, sized_as_traced)).trace(model)
    except Exception as error:  # a user's forward may raise anything when it meets a proxy
        raise ValueError(f"to_nir: model must be traceable by torch.fx, got the error: {error}") from error
    for node in traced.nodes:
        if node.target is sized_as_traced:  # the graph is for the sizes of the sample
            node.replace_all_uses_with(node.args[0])
    graph = fx.GraphModule(model, traced)
    used = leading_to([*traced.nodes][-1:])
    nodes = [node for node in traced.nodes if node in used or node.op == "placeholder"]
    problems, constants = [], constants_of(graph)
    for node in nodes:
        what = f"{getattr(node.target, '__name__', node.target)} ({node.op})"
        wanted = 1
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            what = name_of(node, module)
            if form_of(module) is None:
                problems.append(f"{what}: {getattr(module, 'no_nir', None) or _NO_NODE}")
                continue
            wanted = getattr(module, "arity", 1)
            if not all(bool(x.isfinite().all()) for x in (*module.parameters(), *module.buffers())):
                problems.append(f"{what}: weights and bias must be finite, got NaN or infinite values")
                continue
        elif node.op == "placeholder":
            wanted = 0
            if node is not nodes[0]:
                problems.append(f"{what}: the model must have only one input")
        elif node.op == "output":
            what = "output"
            if not isinstance(node.args[0], fx.Node):
                problems.append("output: it must be a single value")
        elif node in constants or is_add(node) or node.target in (*FLATTENED, F.pad):
            continue
        else:
            try:
                frozen_call(graph, node, constants)
            except (ValueError, TypeError) as error:
                problems.append(f"{what}: it {error}")
            continue
        inputs = [x for x in (*node.args, *node.kwargs.values()) if isinstance(x, fx.Node)]
        if len(inputs) != wanted and node.op != "output":
            problems.append(f"{what}: it must have {wanted} inputs, got {len(inputs)}")
    if problems:
        raise unsupported("to_nir: model", problems)
    return graph, nodes
