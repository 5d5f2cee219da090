"""How active a network is, and what that costs next to its ANN: synops and record_activity."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import EncodedInput
from ..nn.modes import evaluating
from ..spike_train import SpikeTrain
from .activity_record import ActivityRecord, Watch
from .activity_table import ActivityTable


def synops(model: nn.Module, inputs: Any) -> ActivityTable:
    """Run samples through a network and count the operations of each layer.

    A synaptic operation (SynOp) is what a spike costs at each neuron that it reaches: one addition, where the ANN
    multiplies and adds (Merolla et al., "A million spiking-neuron integrated circuit", Science 2014,
    doi:10.1126/science.1254642; compared with the operations of an ANN as in Wu et al., "A Tandem Learning Rule", IEEE
    TNNLS 2021, doi:10.1109/TNNLS.2021.3095724, energy efficiency). Conventions:

    - SynOps are exact: every input spike times the number of output neurons that it reaches. In a convolution that
      depends on stride, padding, dilation and groups, and is smaller at the borders.
    - MACs are what a dense implementation does, O * Ho * Wo * (C / groups) * kH * kW for a convolution, C * H * W *
      (O / groups) * kH * kW for a transposed one and F * O for a linear layer: taps in the zero padding count. Batch
      norm (folded), bias and neuron updates are not counted, nor is pooling.
    - A TandemAdd does what its branches do, and through nn.Identity one operation a spike. Its zero weights cost time,
      but are no synapses.
    - A tandem layer fed by ``Encode`` multiplies its real input by the weights once, whatever T: ``analogue``.
    - Weights behind ``Decode`` (nn.Linear, nn.Conv*d, or calls of the same functions) read the counts once, after the
      last step: one operation for each count that is not zero and each output that it reaches. What only moves or
      scales counts may stand in between, such as nn.Flatten, dropout, or a division by T.
    - Weights that read other real values, such as those of the ANN behind the cut of a hybrid (``convert`` with
      ``spiking_layers``), do what they do in the ANN: ``analogue``.
    - What else multiplies, such as attention, recurrent layers and other modules with parameters, is named below the
      table.
    - Energy is an estimate of the arithmetic alone, without memory and neuron updates: 0.9 pJ for a SynOp (a float32
      addition) and 4.6 pJ for a MAC, also where a spiking layer reads real input and where a read-out multiplies
      counts (Horowitz, "Computing's energy problem", ISSCC 2014, doi:10.1109/ISSCC.2014.6757323: 45 nm process).

    Spikes are counted on the device, from the bit planes; the host waits for it once, after the last batch.

    Args:
        model: any module with tandem layers in it, or what ``freeze`` made of one. Runs in eval mode without gradient;
            each submodule gets its own mode back. Hooks of its own run as usual; compiled parts run in eager mode.
        inputs: a batch for ``model`` (Tensor, SpikeTrain or EncodedInput), or an iterable of batches such as a
            DataLoader; of a batch that is a tuple or list, the first element is used. Tensors and spike trains are
            moved to the device of the model's parameters. Samples must all have one shape, batches may differ in size.

    Returns:
        One LayerActivity per layer with weights, and per TandemAdd, in order of execution, averaged over all samples; a
        list whose ``str`` is a table. A layer that runs twice is listed twice.

    Raises:
        TypeError: ``model`` is no nn.Module, ``inputs`` neither a batch nor iterable.
        ValueError: no tandem layer ran, a batch is empty, or the samples of batches differ in shape.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"synops: model must be an nn.Module, got {type(model).__name__}")
    with record_activity(model) as record, evaluating(model), torch.no_grad():
        for batch in _batches(model, inputs):
            model(batch)
    return record.table()


@contextmanager
def record_activity(model: nn.Module) -> Iterator[ActivityRecord]:
    """Record what the layers of a network do in the forward passes inside the ``with`` block.

    For counting during training, without a forward pass more::

        with record_activity(net) as record:
            logits = net(images)
        print(record.table())  # or update the metrics of tandem_cuda.metrics with it

    Counts as :func:`synops` does, in whatever mode the model is in. Parts that torch.compile compiled run in eager mode
    inside the block.

    Args:
        model: any module with tandem layers in it, or what ``freeze`` made of one.

    Yields:
        The record, which grows with every forward pass; nothing in it makes the host wait before ``table()``.

    Raises:
        TypeError: ``model`` is no nn.Module.
        ValueError: inside the block, at a frozen network that runs in chunks of time (``stream``, ``predict``).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"record_activity: model must be an nn.Module, got {type(model).__name__}")
    record = ActivityRecord()
    handles = [model.register_forward_pre_hook(record._begin)]
    try:
        for module, name in _names(model).items():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks, and calls no function that Python sees
                if any(True for _ in module.parameters(recurse=False)):
                    record._not_counted[f"{name} ({module.original_name}, scripted)"] = None
                continue
            handles.append(module.register_forward_pre_hook(_named(name, record._enter)))
            handles.append(module.register_forward_hook(record._leave, always_call=True))
        with torch.compiler.set_stance("force_eager"), Watch(record):
            yield record
    finally:
        for handle in handles:
            handle.remove()


def _names(model: nn.Module) -> dict[nn.Module, str]:
    """Every module with its qualified name; the layers of a frozen network with those of its nodes."""
    from ..freeze import FrozenNetwork  # which imports this file

    names = {module: path or type(module).__name__ for path, module in model.named_modules()}
    for path, module in model.named_modules():
        if isinstance(module, FrozenNetwork):
            names |= {node.layer: f"{path}.{node.name}" if path else node.name for node in module.nodes}
    return names


def _batches(model: nn.Module, inputs: Any) -> Iterator[Any]:
    kinds = (Tensor, SpikeTrain, EncodedInput)
    tensor = next(itertools.chain(model.parameters(), model.buffers()), None)
    if isinstance(inputs, kinds):
        inputs = [inputs]
    elif isinstance(inputs, (str, bytes)) or not isinstance(inputs, Iterable):
        raise TypeError(
            "synops: inputs must be a Tensor, SpikeTrain or EncodedInput, or an iterable of batches, got "
            f"{type(inputs).__name__}"
        )
    for batch in inputs:
        x = batch[0] if isinstance(batch, (tuple, list)) and not isinstance(batch, EncodedInput) else batch
        yield x.to(tensor.device) if tensor is not None and isinstance(x, (Tensor, SpikeTrain)) else x


def _named(name: str, hook: Any) -> Any:
    return lambda *args: hook(name, *args)
