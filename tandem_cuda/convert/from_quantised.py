"""Turn a quantised PyTorch network into a spiking network with the same integers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ..neuron import RadixIF
from ..nn.quantiser import WeightQuantiser
from ..nn.tandem import TandemLayer
from ..ops import checks
from .calibrate import CalibrationSettings
from .conversion import Conversion
from .graph import exported
from .inputs import example_of
from .make import calibrated_network
from .network import TandemNetwork
from .rules.quantised import is_exported, quantised_otherwise, refuse, unsigned
from .values import Options


def from_quantised(
    model: nn.Module | torch.export.ExportedProgram, example: Any, *, time_steps: int | None = None
) -> TandemNetwork:
    """Turn a quantised network of 8-bit activations and weights into a spiking network with the same integers.

    The value of a train of T = 8 radix spikes (:class:`tandem_cuda.RadixIF`) is a number from 0 to 255: an unsigned
    8-bit activation. Each layer gets neurons with theta = its output scale, and keeps the integer weights, their scales
    and the bias of the quantised network. Nothing is trained or calibrated::

        v = scale_w * scale_x * (sum of W * (q - zero_x)) + b
        q' = clip(floor(v / theta + zero_y + 1/2), 0, 255)

    The quantised network differs in two ways: it rounds x.5 to the even integer, the neurons round it up; and it adds
    floats, so that a number next to x.5 may be on the other side of it. Where all scales are powers of two, the second
    cannot happen. Such numbers are rare, except in averages of an even number of values.

    The model is what PT2E makes, after ``convert_pt2e`` of torchao: an exported graph of ``quantized_decomposed``
    operators. Weights are int8 with zero point 0, activations have one constant scale. A zero point of activations that
    is not the least integer becomes a part of the biases, and of the padding of the network's input. The last weight
    layer is a read-out of real numbers. What comes before the first quantisation or behind the last layer stays as it
    is. To train further, convert the float network instead: ``convert(ann, 8, neuron=RadixIF(), weights="int8")``.

    Args:
        model: the quantised network, or its exported program.
        example: the arguments of forward, as for :func:`convert`: a Tensor [N, ...], or a tuple or dict of several.
        time_steps: T, by default the number of bits of the activations, 8. A network of fewer steps has the same
            weights and coarser values (:meth:`TandemNetwork.set_time_steps` changes T later).

    Returns:
        The spiking network, in eval mode. Its layers have the names of the modules of the network that was quantised.

    Raises:
        TypeError: ``model`` is no module, or ``time_steps`` is no int.
        ValueError: the model is not quantised, or in another form; parts of it have no exact spiking form (the message
            names all of them, and what was expected); ``time_steps`` is not from 1 to the number of bits.

    Examples:
        >>> from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        >>> from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
        >>> ann, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).eval(), torch.rand(4, 6)
        >>> quantiser = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        >>> prepared = prepare_pt2e(torch.export.export(ann, (x,)).module(), quantiser)
        >>> _ = prepared(x)  # some data, to set the scales
        >>> snn = from_quantised(convert_pt2e(prepared), x)
        >>> snn(x).shape, snn.time_steps
        (torch.Size([4, 2]), 8)
    """
    model = model.module() if isinstance(model, torch.export.ExportedProgram) else model
    if not isinstance(model, nn.Module):
        raise TypeError(f"from_quantised: model must be an nn.Module or an ExportedProgram, got {type(model).__name__}")
    if not isinstance(model, fx.GraphModule) or not is_exported(model):
        found = quantised_otherwise(model) or "floats only; tandem_cuda.convert takes these"
        raise ValueError(
            "from_quantised: model must be quantised by PT2E (torchao.quantization.pt2e), after convert_pt2e, got a "
            f"{type(model).__name__} with {found}"
        )
    ann = _without_guards(model)
    graph = exported(ann, example_of(ann, example))
    description, scales = graph.description, unsigned(graph)
    bits = max(node.meta["code"].bits for node in graph.graph.nodes if "code" in node.meta)
    if time_steps is None:
        time_steps = bits
    checks.check_time_steps("from_quantised", time_steps)
    if time_steps > bits:
        raise ValueError(
            f"from_quantised: time_steps must be at most {bits}, the bits of activations, got {time_steps}"
        )
    options = Options(time_steps, "impulse", RadixIF(), "auto", False, True, False, None)
    with torch.inference_mode(False):
        conversion = Conversion(graph, options)
        writer = conversion.writer
        problems = [f"{call.name} ({call.what}): {call.why}" for call in conversion.analogue]
        if not problems and not writer.layers:
            problems = ["a weight layer must read the output of another one, but there is none that does"]
        refuse(problems)
        snn = conversion.written()
        layers = [x for x in snn.modules() if isinstance(x, TandemLayer) and id(x._buffers.get("weight")) in scales]
        problems = [f"{x.node.name}: its values must be quantised, once" for x in writer.layers if x.level is None]
        refuse(problems)
        for layer in layers:
            rounding = GivenIntegers(scales[id(layer._buffers["weight"])])
            parametrize.register_parametrization(layer, "weight", rounding, unsafe=True)
            layer.parametrizations["weight"]._non_persistent_buffers_set.add("original")  # as the weight was
        network, _ = calibrated_network(conversion, snn, CalibrationSettings({}, None, False, False), [])
    network.eval()
    network._record.rewrite, network._watch.description = unsigned, description
    return network


def _without_guards(model: fx.GraphModule) -> nn.Module:
    """Return the model as a plain module, which takes any number of samples."""
    graph = copy.deepcopy(model.graph)
    for node in list(graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            graph.erase_node(node)
    return fx.GraphModule(model, graph, "Quantised").eval()


class GivenIntegers(WeightQuantiser):
    """The integers of weights whose scales are known.

    Args:
        scale: the scale of each output, [O].
    """

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__(8)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.scale.view(-1, *[1] * (weight.dim() - 1))
        return (weight.detach() / scale).round().to(torch.int8), self.scale

    def kernel(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return self.integers(weight)
