"""convert: make a spiking network of an ANN."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace as replaced_fields
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..neuron import Neuron
from ..neuron.radix_if import MOST_STEPS, check_radix_steps
from ..nn.quantised import check_quantisable, quantised_layers, weight_layers
from ..nn.quantiser import quantiser
from ..nn.spiking import Spiking
from ..nn.tandem import TandemLayer
from ..nn.weights import stored
from ..ops import checks
from ..ops.product import ENGINES
from .advice import Problem, refusal
from .batches import Batch, calibration_batches, names_inputs
from .calibrate import Calibration, Level
from .calibrator import CalibrationSettings, Calibrator
from .comparison import likeness
from .conversion import Conversion, converted
from .effects import warn_of_stored
from .guess import guessed_example
from .means import replacing
from .network import TandemNetwork
from .nodes import inputs_of, some
from .options import Options
from .quantised_ann import refuse_quantised
from .record import Record, Sample
from .replace import check_found, check_replacements, warn_of
from .rules import RULES
from .trace import Traced, refuse_compiled, traced
from .trace_errors import Untraceable

_BITS = {"int8": 8, "int16": 16}
"""The bits of each value that ``weights`` can have."""


def convert(
    ann: nn.Module,
    time_steps: int,
    *,
    mode: str | None = None,
    neuron: Neuron | None = None,
    calibrate: Tensor | Iterable[Any] | Calibration | Mapping[str, Level] | None = None,
    percentile: float | None = None,
    per_channel: bool | None = None,
    correct_bias: bool | None = None,
    spiking_layers: int | None = None,
    engine: str = "auto",
    learn_thresholds: bool = False,
    weights: str | None = None,
    replace: Mapping[Any, Any] | None = None,
    gates: str | None = None,
    example: Tensor | Sequence[Tensor] | None = None,
) -> TandemNetwork:
    """Convert an ANN to a tandem SNN (Wu et al. 2021) that shares its parameters.

    The ANN's forward is traced with torch.fx. Each weight layer with its batch norm and ReLU becomes one tandem layer,
    which holds the ANN's own Parameters and batch-norm module: training either network trains both. Everything before
    the first weight layer stays as it is; ``Encode`` follows it. The last weight layer stays analogue: it reads the
    output of ``Decode``, and everything after it stays as it is, too. In mode "spikes" there is no ``Encode``: the SNN
    takes spike trains, the ANN takes their counts, and everything up to the last weight layer must be convertible.

    | in the ANN | in the SNN |
    |---|---|
    | a convolution or nn.Linear, then optionally batch norm, then ReLU | its tandem layer, such as TandemConv2d |
    | sums of these layers and of activations, then ReLU | TandemAdd |
    | average pooling, adaptive or not, or the mean over all pixels | SpikingAvgPool2d, SpikingAdaptiveAvgPool2d |
    | max pooling, dropout, dropout2d, also before the ReLU | SpikingMaxPool2d, TandemDropout, TandemDropout2d |
    | nn.Flatten, torch.flatten, x.view(len(x), -1) | SpikeTrain.flatten |
    | LeakyReLU, PReLU in place of ReLU | neurons for both signs, the slope is a factor of the negative ones |
    | nn.Identity; ReLU of non-negative values | nothing |

    ReLU, pooling, dropout and flatten may be modules, functions or methods. Optional arguments of forward keep their
    defaults. Inputs of the SNN may be passed by name, as for the ANN. :func:`tandem_cuda.convert.rules.register` adds
    rules for other classes and functions.

    Without ``calibrate``, every layer uses ``neuron`` as given, as in the paper; train the network afterwards. With
    ``calibrate``, start from a trained ANN: each threshold becomes its level, a large activation of the ANN, divided by
    T (level by percentile: Rueckauer et al., "Conversion of continuous-valued deep networks to efficient event-driven
    networks for image classification", 2017, doi:10.3389/fnins.2017.00682; correction of biases: Li et al., "A Free
    Lunch From ANN: Towards Efficient, Accurate Spiking Neural Networks Calibration", 2021, arXiv:2106.06984; thresholds
    layer by layer for T steps, then tandem learning: Wu et al., "Progressive Tandem Learning for Pattern Recognition
    with Deep Spiking Neural Networks", 2022, doi:10.1109/TPAMI.2021.3114196). A spike then has the weight of one
    threshold, and in mode "constant" the input is divided by T. So threshold * count approximates the ANN's activation,
    and weights, biases and batch norms are used unchanged. The defaults are the most accurate settings: neurons whose
    spike of step t weighs 2^(T-t) (:class:`RadixIF`), a threshold for each channel, and corrected biases. Such neurons
    take all T steps in one call. For streams and early exit pass ``neuron=IF(initial=0.5)``, for NIR ``neuron=IF()``.

    Average pooling adds no rounding error in a calibrated network: before the read-out it averages decoded counts, and
    before a spiking layer it is folded into that layer's weights (:class:`SpikeWindows`). Folding requires windows of
    one size that does not depend on the image; otherwise the pooling layer has neurons with a level of their own. In
    deep networks, rounding to whole spikes accumulates errors; further training, with gradients through the ANN as
    always, reduces them. ``convert`` compares the network with its ANN on up to 64 samples of the first batch
    (:meth:`TandemNetwork.report`), and warns if it gives the ANN's class for less than 90 % of them.

    With ``spiking_layers=k`` the result is a hybrid: the first k spiking layers, then ``Decode``, then the rest of the
    ANN unchanged (Wu et al. 2022). All stages share the ANN's parameters, so the next stage is a conversion with k + 1.
    Layers are counted in the order in which the ANN's forward runs their activations. A sum of branches with its ReLU
    is one layer. A cut inside a residual block is therefore always before the sum: spiking branches are decoded, and
    the ANN adds them. Pooling after the last spiking layer is the ANN's. Nothing after the cut needs to be convertible.

    Args:
        ann: the ANN. The SNN takes over its train or eval mode.
        time_steps: T.
        mode: "constant", "impulse" or "radix", as for ``Encode``, or "spikes". By default "constant", but "impulse" for
            RadixIF neurons. With "radix" the ANN takes pixels from 0 to 1.
        neuron: the neurons of every spiking layer. By default ``IF()``; with ``calibrate`` the neurons of that
            calibration. For new data the default is ``RadixIF()``, or ``IF(initial=0.5, two_phase=True)`` for more than
            8 time steps or mode "constant". With ``calibrate`` it must be IF(...), whose threshold and amplitude are
            replaced, or RadixIF(...), whose level is.
        calibrate: inputs for the ANN: one batch; a Dataset; or an iterable of batches, such as a DataLoader. A batch is
            a Tensor; a tuple or list that begins with the inputs in the order of ``forward``, or whose first element
            holds them; or a dict with the names that they have in ``forward``. What else it holds, such as labels, is
            ignored. (Several Tensors of the same size are batches of one input.) The ANN runs on them in eval mode
            without gradient. Alternatively the result of an earlier calibration, ``TandemNetwork.calibration`` or
            ``levels``, which is valid for any T: levels of layers that this network lacks are ignored, and pooling
            layers without a level use the level of the layer that they average over. With a Mapping of levels alone,
            biases are not corrected. The batches are held in memory until ``convert`` returns.
        percentile: take as level of a layer this percentile of its activations in each batch, in (0, 100], averaged
            over the batches. By default, the level is the one at which the activations, rounded to whole spikes and
            clipped at T, differ least from the ANN's (least squares). It depends on ``time_steps``.
        per_channel: find a level for each channel or feature instead of one for each layer. Gains and biases of the
            layer, and the weights of the layers that read it, then contain the thresholds. Average poolings with
            neurons fire at the thresholds of their input. By default (None), yes, unless a part of the ANN cannot take
            spikes of different weight; the report then names it.
        correct_bias: shift the pre-activations of the spiking twin, layer by layer, so that the mean of each channel's
            decoded spikes is the mean of the ANN's activations on ``calibrate``. The ANN's parameters stay as they are.
            By default (None), yes, but not in mode "spikes", where ``calibrate`` has no spike trains.
        spiking_layers: the number of spiking layers, at least 1; by default all. A smaller number requires
            ``calibrate``: the ANN after the cut expects activations, not counts.
        engine: "auto", "event" or "dense": how spiking products are computed.
        learn_thresholds: whether every spiking layer and TandemAdd learns its threshold (``learn_threshold``), starting
            from the threshold of ``neuron`` or of calibration. Average poolings with neurons keep their thresholds.
        replace: replace activations of the ANN itself, as in ``{nn.SiLU: nn.ReLU, F.gelu: F.relu}``. The keys are
            classes of modules; functions or methods of torch that forward calls; or names, such as "silu". Functions
            and names stand for all forms of an activation, also for modules of this name. The values are classes of
            modules (called without arguments), modules, or functions. The ANN then computes something else and wants
            fine-tuning; a warning says so. With data as ``calibrate``, biases and running means of the ANN are
            corrected, so that its layers keep their means; with ``correct_bias=False`` they stay.
        gates: "analogue" to keep squeeze-and-excitation: the factors of channels are computed from spike counts, by the
            ANN's own layers and without spikes (:class:`tandem_cuda.nn.TandemGate`). By default it is refused.
        weights: "int8" or "int16" to compute with integer weights of 8 or 16 bits in both twins, as
            :func:`tandem_cuda.quantise` does: the ANN is changed, too. Calibration measures the quantised ANN. By
            default weights stay as they are.
        example: an input of the ANN, or one for each of its inputs, of at least one sample; by default, from
            ``calibrate``. Required if control flow in forward or arguments of functions depend on the sizes of tensors,
            but not on the batch size. These sizes become numbers, and the network refuses inputs of other sizes. The
            ANN runs on two and three samples of the example, or on three and on two of the data for calibration, to
            check that the trace computes what the ANN does.

    Returns:
        A TandemNetwork. ``.ann()`` is the ANN; ``print(snn.report())`` shows what became of each layer.

    Raises:
        TypeError: an argument has the wrong type, or a parameter is neither float32 nor float64, or not float32 with
            integer ``weights``.
        ValueError: an argument is out of range; inputs, activations or weights to be quantised are not finite; torch.fx
            cannot trace the model; the model does something different in training than in eval mode; its forward
            changes parameters or buffers, disables gradients of trained layers, or calls functions with a backward of
            their own; or parts of it cannot be converted. The message lists all of these parts and what to use instead.

    Examples:
        >>> ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
        >>> images = torch.rand(16, 1, 28, 28)
        >>> snn = convert(ann, time_steps=8, calibrate=images)
        >>> snn(images).shape
        torch.Size([16, 10])
    """
    _check_ann(ann)
    checks.check_time_steps("convert", time_steps)
    if names_inputs(ann, calibrate):
        calibrate = [calibrate]
    settings = CalibrationSettings(calibrate, percentile, per_channel, correct_bias)
    changed = settings.not_default(neuron, time_steps, mode)
    neuron = settings.neuron(neuron, time_steps, mode)
    if mode is None:
        mode = "impulse" if neuron.radix else "constant"
    _check_choices(mode, engine, weights, gates, learn_thresholds, spiking_layers)
    settings.check(mode)
    _check_code(neuron, mode, time_steps)
    _check_dtypes(ann, weights)
    check_quantisable("convert", "ann", weight_layers(ann) if weights else [])
    batches = calibration_batches(ann, calibrate) if settings.on_data else []
    if example is None and batches and inputs_of(ann) is not None:
        example = tuple(x[:3] for x in batches[0])
    replace = {} if replace is None else replace
    check_replacements(replace, ann)
    calibrated, per_channel = calibrate is not None, settings.channels(settings.earlier(time_steps))
    options = Options(
        time_steps, mode, neuron, engine, learn_thresholds, gates is not None, calibrated, per_channel, spiking_layers
    )
    with torch.inference_mode(False), ExitStack() as undone_on_error:  # calibration makes tensors that training needs
        names, effect = undone_on_error.enter_context(replacing(ann, replace, batches, correct_bias is not False))
        # Calibration compares the trace with the ANN once more, on up to two samples.
        trace = _traced(ann, example, (3,) if batches else (2, 3), options)
        check_found(replace, ann, names, trace.replaced, trace.graph)
        conversion, snn, per_layer = _written(trace, ann, options, weights)
        record = conversion.record()
        record.replaced, record.per_layer = (*names, *trace.replaced), per_layer
        record.sizes = None if example is None else _sizes(example)
        with quantised_layers(weight_layers(ann, snn), _BITS[weights]) if weights else nullcontext():
            network = _calibrated(conversion, snn, ann, options, settings, batches, record)
            if record.sample.inputs:
                has_levels = any(layer.level is not None for layer in conversion.writer.layers)
                _warn_if_unlike(network, trace, [] if has_levels else changed, neuron)
            warn_of(names, trace.replaced if replace else (), effect)
            warn_of_stored(trace.stored)
            return network


def _written(
    trace: Traced, ann: nn.Module, options: Options, weights: str | None
) -> tuple[Conversion, fx.GraphModule, tuple[str, ...]]:
    """Convert, and write the SNN.

    Returns:
        The conversion, the SNN, and what rules out thresholds of channels where ``per_channel`` is None.

    Raises:
        ValueError: parts of the ANN cannot be converted, or cannot have thresholds of channels.
    """
    conversion, per_layer = _converted(trace, options)
    if conversion.problems and trace.example is None:
        conversion.problems = _with_guess(ann, conversion.problems, options)
    snn = conversion.written()
    repeated = () if options.per_channel is False else _repeated_integers(snn, weights)
    if not repeated:
        return conversion, snn, per_layer
    if options.per_channel:
        raise ValueError(
            "convert: per_channel must be False with integer weights of a layer that is called several times: they "
            f"would contain the thresholds of one call, got thresholds of channels and calls of {repeated[0]}"
        )
    conversion, _ = _converted(trace, replaced_fields(options, per_channel=False))
    return conversion, conversion.written(), repeated


def _calibrated(
    conversion: Conversion,
    snn: fx.GraphModule,
    ann: nn.Module,
    options: Options,
    settings: CalibrationSettings,
    batches: list[Batch],
    record: Record,
) -> TandemNetwork:
    """Return the network, with thresholds and corrected biases as the settings say."""
    calibrator, earlier = Calibrator(conversion, snn, settings), settings.earlier(options.time_steps)
    if earlier is not None:
        calibration: Calibration | None = calibrator.fitting(earlier)
    else:
        calibration = calibrator.calibration(batches) if options.calibrated else None
    network = TandemNetwork(snn, ann, calibration, conversion.writer, record)
    if calibration is not None and batches and options.mode != "spikes":  # counts do not tell when the spikes come
        record.sample = Sample(batches[0])
        if settings.correct_bias is not False:
            network.calibration = replaced_fields(calibration, corrections=calibrator.corrections(batches))
    network.split()
    return network


def _traced(ann: nn.Module, example: Any, samples: Collection[int], options: Options) -> Traced:
    """Trace the ANN.

    Raises:
        ValueError: it cannot be traced; the message lists everything that would keep it from being converted then.
    """
    try:
        return traced(ann, RULES, example, samples=samples)
    except Untraceable as error:
        problem = _in_forward(ann, error)
        found = _with_guess(ann, [problem], options)
        if found == [problem]:
            raise
        raise ValueError(refusal(found)) from error


def _in_forward(ann: nn.Module, error: Untraceable) -> Problem:
    name = type(ann).__name__
    return Problem(name, f"forward of {name}", name, error.why, error.why)


def _with_guess(ann: nn.Module, problems: list[Problem], options: Options) -> list[Problem]:
    """Return the problems that an example solves, and the problems that would remain, by a guessed example."""
    solved = [problem for problem in problems if problem.why.startswith("pass example=")]
    example = guessed_example(ann) if solved else None
    if example is None:
        return problems
    try:
        trace = traced(ann, RULES, example, samples=()).fix_sizes()
    except Untraceable as error:  # also with an example
        return [_in_forward(ann, error)]
    except ValueError:
        return problems
    others = _tried(trace, options)[0].problems
    left = {problem.name for problem in others}
    return [*(problem for problem in solved if problem.name not in left), *others]


def _repeated_integers(snn: nn.Module, weights: str | None) -> tuple[str, ...]:
    """Return the names of layers that share their integer weights with another layer of neurons."""
    layers = [(name, x) for name, x in snn.named_modules() if isinstance(x, TandemLayer)]
    weight_of = {name: id(getattr(*stored(x, "weight"))) for name, x in layers if weights or quantiser(x) is not None}
    calls, first = Counter(weight_of.values()), {x: name for name, x in reversed(weight_of.items())}
    return tuple(name for x, name in first.items() if calls[x] > 1)


def _converted(trace: Traced, options: Options) -> tuple[Conversion, tuple[str, ...]]:
    """Convert for images of every size; if that is not possible and there is an example, for images of its size.

    Returns:
        The conversion, and what in the ANN rules out thresholds of channels where ``per_channel`` is None.
    """
    found = _tried(trace, options)
    return _tried(trace.fix_sizes(), options) if found[0].problems and trace.example is not None else found


def _tried(trace: Traced, options: Options) -> tuple[Conversion, tuple[str, ...]]:
    conversion = converted(trace, replaced_fields(options, per_channel=options.per_channel is not False))
    if options.per_channel is not None or not conversion.problems:
        return conversion, ()
    per_layer = tuple(dict.fromkeys(problem.name for problem in conversion.problems))
    return converted(trace, replaced_fields(options, per_channel=False)), per_layer


def _sizes(example: Tensor | Sequence[Tensor]) -> tuple[tuple[torch.Size, torch.dtype], ...]:
    inputs = [example] if isinstance(example, Tensor) else example
    return tuple((torch.Size([1, *x.shape[1:]]), x.dtype) for x in inputs)


def _warn_if_unlike(network: TandemNetwork, trace: Traced, changed: Sequence[str], neuron: Neuron) -> None:
    """Warn if a calibrated network does not compute what its ANN does, and say what to change.

    ``changed``: the arguments that make the network less accurate than the defaults.
    """
    assert network._record is not None
    found = likeness(network, network._record, trace)
    if not found.is_unlike:
        return
    remedies = [f"leave out {' and '.join(changed)}, since the defaults are better"] if changed else []
    if not (neuron.radix and network.time_steps == MOST_STEPS):
        remedies.append(f"use more time steps than {network.time_steps}")
    remedies.append(f"{'or ' if remedies else ''}train the network further")
    warnings.warn(
        f"convert: {found}. To change that: {'; '.join(remedies)}. print(snn.report()) shows the error of each layer",
        stacklevel=3,
    )


def _check_code(neuron: Neuron, mode: str, time_steps: int) -> None:
    """Raise a ValueError unless the neurons can read what Encode returns, and can have that many time steps."""
    if neuron.radix:
        check_radix_steps("convert", time_steps, "pass neuron=IF(initial=0.5, two_phase=True) for more")
        if mode == "constant":
            raise ValueError(
                f"convert: mode must be 'impulse', 'radix' or 'spikes' with {type(neuron).__name__} neurons, got "
                "'constant'"
            )
    if mode == "radix":
        check_radix_steps("convert", time_steps, "pass mode='impulse' for more")
        if not neuron.two_phase:
            raise ValueError(
                "convert: neuron must wait for all time steps with mode 'radix', as RadixIF(...) and "
                f"IF(two_phase=True) do, got {neuron}"
            )


def _check_choices(
    mode: Any, engine: Any, weights: Any, gates: Any, learn_thresholds: Any, spiking_layers: Any
) -> None:
    if mode not in ("constant", "impulse", "radix", "spikes"):
        raise ValueError(f"convert: mode must be 'constant', 'impulse', 'radix' or 'spikes', got {mode!r}")
    if engine not in ENGINES:
        raise ValueError(f"convert: engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if weights not in (None, *_BITS):
        raise ValueError(f"convert: weights must be None, {' or '.join(map(repr, _BITS))}, got {weights!r}")
    if gates not in (None, "analogue"):
        raise ValueError(f"convert: gates must be None or 'analogue', got {gates!r}")
    if not isinstance(learn_thresholds, bool):
        raise TypeError(f"convert: learn_thresholds must be True or False, got {type(learn_thresholds).__name__}")
    if spiking_layers is not None:
        if isinstance(spiking_layers, bool) or not isinstance(spiking_layers, int):
            raise TypeError(f"convert: spiking_layers must be an int, got {type(spiking_layers).__name__}")
        if spiking_layers < 1:
            raise ValueError(
                f"convert: spiking_layers must be at least 1 (with none, use the ANN itself), got {spiking_layers}"
            )


def _check_ann(ann: Any) -> None:
    """Raise a TypeError unless it is a module, a ValueError if it was compiled or quantised, or spikes already."""
    if not isinstance(ann, nn.Module):
        raise TypeError(f"convert: ann must be an nn.Module, got {type(ann).__name__}")
    refuse_compiled(ann)
    refuse_quantised(ann)
    for name, module in ann.named_modules():
        if isinstance(module, (Spiking, TandemNetwork)):
            where = f"{name} ({type(module).__name__})" if name else f"a {type(module).__name__}"
            raise ValueError(
                f"convert: ann must be an ANN, got {where}, which belongs to a spiking network: pass the network that "
                "it was made from (set_time_steps gives a TandemNetwork another T)"
            )


def _check_dtypes(ann: nn.Module, weights: str | None) -> None:
    """Raise a TypeError if a parameter has a dtype that spiking layers do not support."""
    dtypes = torch.float32, torch.float64
    floats = {name: p.dtype for name, p in ann.named_parameters() if p.is_floating_point()}
    other = {name: dtype for name, dtype in floats.items() if dtype not in dtypes}
    if weights and not other and torch.float64 in floats.values():
        name = next(name for name, dtype in floats.items() if dtype == torch.float64)
        raise TypeError(f"convert: ann must have parameters of float32 with weights={weights!r}, got float64 in {name}")
    if other:
        got = ", ".join(sorted({str(dtype) for dtype in other.values()}))
        raise TypeError(
            f"convert: ann must have parameters of float32 or float64, got {got} in {some([*other], 3)}; call "
            "ann.float() first (products still run in lower precision under torch.autocast)"
        )
