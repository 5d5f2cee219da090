"""Turn a quantised PyTorch network into a spiking network with the same integers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..convert.quantised_ann import foreign_weights, has_observers, is_eager, is_exported
from ..freeze import FrozenNetwork
from ..ops import checks
from .build import bits_of, built
from .check import check_integers, saturates_here
from .exported import ExportedReader
from .reader import Reader, as_graph

__all__ = ["from_quantised"]


def from_quantised(
    model: nn.Module | torch.export.ExportedProgram, example: Any, *, time_steps: int | None = None
) -> FrozenNetwork:
    """Turn a quantised network of 8-bit activations and weights into a spiking network with the same integers.

    The value of a train of T = 8 radix spikes (:class:`tandem_cuda.RadixIF`) is a number from 0 to 255: an unsigned
    8-bit activation. Each layer gets neurons with theta = its output scale, and keeps the integer weights, their scales
    and the bias of the quantised network. Nothing is trained or calibrated::

        v = scale_w * scale_x * (sum of W * (q - zero_x)) + b
        q' = clip(floor(v / theta + zero_y + 1/2), 0, 255)

    The sums are integers in both networks. Two things differ: PyTorch rounds x.5 to the even integer, the neurons round
    it up; and both networks round products of scales, so that a number next to x.5 may be on the other side of it.
    Where all scales are powers of two, the second cannot happen. So the integers of a layer are the quantised layer's.
    Only a number that is x.5, up to the rounding of floats, may become one more or less. Such numbers are rare, except
    in averages of an even number of values: of averages of four, 1 in 8 to 1 in 4 differ. (PyTorch's engine "qnnpack"
    rounds biases, too.) ``from_quantised`` runs both networks on the example, and raises an error if an integer of a
    layer differs by more.

    Two forms of quantised networks are read:

    - ``torch.ao.quantization``, eager mode or FX mode, after ``convert``: modules such as
      ``torch.ao.nn.quantized.Conv2d``.
    - PT2E of torchao, after ``convert_pt2e``, such as with ``X86InductorQuantizer``: exported graphs of
      ``quantized_decomposed`` operators. torchao itself is not needed.

    Convolutions of one and two dimensions, linear layers, ReLU, ReLU6, sums, flatten, max and average pooling of images
    are turned into spiking layers. Weights are int8 with zero point 0, and one scale or one for each output. A zero
    point of activations that is not the least integer is exact, too: it is a part of the biases, and the padding of the
    network's input. Where a layer's output is quantised, the layer gets neurons, also if it is the last one. Otherwise
    the last layer is a read-out of real numbers, as in converted networks. What comes before the first quantisation or
    behind the last stays as it is.

    To train further, convert the float network instead: ``convert(ann, 8, neuron=RadixIF(), weights="int8")``.

    Args:
        model: the quantised network, in eval mode, or its exported program.
        example: an input, a Tensor [N, ...], or a tuple of several; both networks run on it.
        time_steps: T, by default the number of bits of the activations, 8. A network of fewer steps has the same
            weights and coarser values; several can form a :class:`tandem_cuda.Cascade`.

    Returns:
        The spiking network. Its layers have the names that the quantised network's graph gives them.

    Raises:
        TypeError: ``model`` is no module, or ``time_steps`` is no int.
        ValueError: the model is not quantised, or in another form; parts of it have no spiking form (the message names
            all of them, and what was expected); ``time_steps`` is not from 1 to the number of bits.
        RuntimeError: an integer of a layer differs by more than one from the quantised network's. On processors without
            VNNI, where the products of torch.ao's modules saturate, this is a warning.

    Examples:
        >>> from torch.ao.quantization import DeQuantStub, QuantStub, get_default_qconfig, prepare
        >>> ann = nn.Sequential(QuantStub(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2), DeQuantStub()).eval()
        >>> ann.qconfig = get_default_qconfig(torch.backends.quantized.engine)
        >>> prepared, x = prepare(ann), torch.rand(4, 6)
        >>> _ = prepared(x)  # some data, to set the scales
        >>> quantised = torch.ao.quantization.convert(prepared)
        >>> snn = from_quantised(quantised, x)
        >>> snn(x).shape, snn.time_steps
        (torch.Size([4, 2]), 8)
    """
    inputs = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    for x in inputs:
        checks.check_tensor("from_quantised", "example", x)
        if x.dim() == 0 or 0 in x.shape:
            raise ValueError(f"from_quantised: example must be [N, ...] and not empty, got {list(x.shape)}")
    if isinstance(model, torch.export.ExportedProgram):
        model = model.module()
    if not isinstance(model, nn.Module):
        raise TypeError(f"from_quantised: model must be an nn.Module or an ExportedProgram, got {type(model).__name__}")
    _check_form(model)
    if model.training and is_eager(model):
        raise ValueError("from_quantised: model must be in eval mode, got a model in training mode")
    network = _reader(model)(as_graph(model), inputs).read()
    bits = bits_of(network)
    if time_steps is None:
        time_steps = bits
    checks.check_time_steps("from_quantised", time_steps)
    if time_steps > bits:
        raise ValueError(
            f"from_quantised: time_steps must be at most {bits}, the bits of activations, got {time_steps}"
        )
    snn = built(network, bits)
    check_integers(snn, network, inputs, is_eager(model) and saturates_here())
    return snn if time_steps == bits else built(network, time_steps)


def _reader(model: nn.Module) -> type[Reader]:
    if is_exported(model):
        return ExportedReader
    from .eager import EagerReader  # of torch.ao, which PyTorch is to drop

    return EagerReader


def _check_form(model: nn.Module) -> None:
    """Raise a ValueError unless the model is quantised in a form that is read."""
    if is_exported(model) or is_eager(model):
        return
    if foreign := foreign_weights(model):
        reason = (
            f"weights of {', '.join(foreign)}, whose layers quantise their inputs in each call and return floats; "
            "quantise with PT2E (torchao.quantization.pt2e)"
        )
    elif has_observers(model):
        reason = "observers; call torch.ao.quantization.convert or convert_pt2e"
    else:
        reason = "floats only; tandem_cuda.convert takes these"
    raise ValueError(
        "from_quantised: model must be quantised by torch.ao.quantization or by PT2E, in graphs of int8 weights and "
        f"constant scales of activations, got a {type(model).__name__} with {reason}"
    )
