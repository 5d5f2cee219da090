"""synops and record_activity: how active a network is, and what it costs compared with its ANN."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._progress import progress
from ..freeze import FrozenNetwork
from ..nn.modes import evaluating
from ..spike_train import SpikeTrain
from .activity_record import ActivityRecord, FunctionWatch
from .activity_table import ActivityTable
from .inputs import arguments, is_batch


def synops(model: nn.Module, inputs: Any) -> ActivityTable:
    """Run samples through a network and count the operations of each layer.

    A synaptic operation (SynOp) is the cost of a spike at one neuron that it reaches: one addition, where the ANN
    multiplies and adds (Merolla et al., "A million spiking-neuron integrated circuit", Science 2014,
    doi:10.1126/science.1254642; compared with the operations of an ANN as in Wu et al., "A Tandem Learning Rule", IEEE
    TNNLS 2021, doi:10.1109/TNNLS.2021.3095724, energy efficiency). Conventions:

    - SynOps are exact: every input spike times the number of output neurons that it reaches. In a convolution this
      number depends on stride, padding, dilation and groups, and is smaller at the borders.
    - MACs count a dense implementation with the same synapses: F * O for a linear layer, and for a convolution
      O * (C / groups) times the pairs of an output pixel and a tap. Pairs in the zero padding do not count, so that an
      input whose neurons all spike once costs as many SynOps as the ANN has MACs. (Counters of FLOPs often count them:
      O * Ho * Wo * (C / groups) * kH * kW.) Batch norm (folded), bias, neuron updates and pooling do not count.
    - A TandemAdd has the operations of its branches; an nn.Identity branch has one per spike. Weights that
      are zero cost time but are not synapses, and do not count.
    - A tandem layer after ``Encode`` multiplies its real input by the weights once, whatever T is. It is ``analogue``.
    - Weights after ``Decode`` (nn.Linear, nn.Conv*d, or calls of the same functions) read the counts once, after the
      last step: one operation for each nonzero count and each output that it reaches. Layers that only move or scale
      counts may come in between, such as nn.Flatten, dropout, or a division by T.
    - Weights that read other real values do the same operations as in the ANN. They are ``analogue``, too. Examples are
      the layers after the cut of a hybrid (``convert`` with ``spiking_layers``).
    - Anything else that multiplies, such as attention, recurrent layers and other modules with parameters, is not
      counted and is named below the table.
    - Energy is an estimate for arithmetic only, without memory access and neuron updates: 0.9 pJ per SynOp (a float32
      addition) and 4.6 pJ per MAC, also if a spiking layer reads real input or a read-out multiplies counts (Horowitz,
      "Computing's energy problem", ISSCC 2014, doi:10.1109/ISSCC.2014.6757323: 45 nm process).

    Spikes are counted on the device, from the bit planes. The host waits for the device once, after the last batch.

    Args:
        model: any module that contains tandem layers, or the result of ``freeze``. It runs in eval mode without
            gradient; afterwards each submodule has its own mode again. Its hooks run as usual; compiled parts run in
            eager mode.
        inputs: a batch for ``model`` (Tensor, SpikeTrain or EncodedInput), or an iterable of batches such as a
            DataLoader. If a batch is a tuple or list, its first element is used, or for a model of several inputs the
            elements that it begins with, or that its first element holds. Tensors and spike trains are moved to the
            device of the model's parameters. All samples must have the same shape; batches may differ in size.

    Returns:
        A list whose ``str`` is a table: one LayerActivity per layer with weights and per TandemAdd, in order of
        execution, averaged over all samples. A layer that runs twice is listed twice.

    Raises:
        TypeError: ``model`` is not an nn.Module, or ``inputs`` is neither a batch nor an iterable.
        ValueError: no tandem layer ran, a batch is empty, or samples differ in shape.

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(784, 50), Decode(), nn.Linear(50, 10)).eval()
        >>> table = synops(net, torch.rand(8, 784))
        >>> [(row.name, row.neurons, row.macs) for row in table]
        [('1', 50, 39200), ('3', 10, 500)]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"synops: model must be an nn.Module, got {type(model).__name__}")
    with record_activity(model) as record, evaluating(model), torch.no_grad():
        for batch in _batches(model, inputs):
            model(*batch)
    return record.table()


@contextmanager
def record_activity(model: nn.Module) -> Iterator[ActivityRecord]:
    """Record the activity of a network's layers in all forward passes inside the ``with`` block.

    Use it to count operations during training without an extra forward pass::

        with record_activity(net) as record:
            logits = net(images)
        print(record.table())  # or update the metrics of tandem_cuda.analysis.metrics with it

    Operations are counted as by :func:`synops`, in train or eval mode, whichever the model is in. Compiled parts run in
    eager mode inside the block.

    Args:
        model: any module that contains tandem layers, or the result of ``freeze``.

    Yields:
        The record, to which every forward pass is added. The host does not wait for the device before ``table()``.

    Raises:
        TypeError: ``model`` is not an nn.Module.
        ValueError: a frozen network runs in chunks of time (``stream``, ``predict``) inside the block.

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(784, 50), Decode(), nn.Linear(50, 10)).eval()
        >>> with record_activity(net) as record:
        ...     logits = net(torch.rand(8, 784))
        >>> record.table()[0].macs
        39200
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"record_activity: model must be an nn.Module, got {type(model).__name__}")
    record = ActivityRecord()
    handles = [model.register_forward_pre_hook(record._begin)]
    try:
        for module, name in _names(model).items():
            if isinstance(module, torch.jit.ScriptModule):  # has no hooks, and its functions do not run in Python
                if any(True for _ in module.parameters(recurse=False)):
                    record._not_counted[f"{name} ({module.original_name}, scripted)"] = None
                continue
            handles.append(module.register_forward_pre_hook(partial(record._enter, name)))
            handles.append(module.register_forward_hook(record._leave, always_call=True))
        with torch.compiler.set_stance("force_eager"), FunctionWatch(record):
            yield record
    finally:
        for handle in handles:
            handle.remove()


def _names(model: nn.Module) -> dict[nn.Module, str]:
    """Return every module with its qualified name. Layers of a frozen network have the names of its nodes."""
    names = {module: path or type(module).__name__ for path, module in model.named_modules()}
    for path, module in model.named_modules():
        if isinstance(module, FrozenNetwork):
            for node in module.nodes:
                names |= dict.fromkeys(node.layer.modules(), f"{path}.{node.name}" if path else node.name)
    return names


def _batches(model: nn.Module, inputs: Any) -> Iterator[tuple[Any, ...]]:
    tensor = next(itertools.chain(model.parameters(), model.buffers()), None)
    if is_batch(model, inputs):
        inputs = [inputs]
    elif isinstance(inputs, (str, bytes)) or not isinstance(inputs, Iterable):
        raise TypeError(
            "synops: inputs must be a Tensor, SpikeTrain or EncodedInput, or an iterable of batches, got "
            f"{type(inputs).__name__}"
        )
    for batch in progress(inputs, "synops"):
        yield tuple(
            x.to(tensor.device) if tensor is not None and isinstance(x, (Tensor, SpikeTrain)) else x
            for x in arguments(model, batch)
        )
