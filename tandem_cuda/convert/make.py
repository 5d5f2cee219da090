"""convert: make a spiking network of an ANN."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace as replaced_fields
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.optim.swa_utils import AveragedModel

from ..neuron import Neuron
from ..neuron.radix_if import MOST_STEPS, check_radix_steps
from ..nn.quantised import check_quantisable, quantised_layers, weight_layers
from ..nn.quantiser import quantiser
from ..nn.spiking import Spiking
from ..nn.tandem import TandemLayer
from ..nn.weights import stored
from ..ops import checks
from ..ops.product import ENGINES
from .calibrate import Calibration, CalibrationSettings, Calibrator, Level, most_accurate
from .comparison import Likeness, Sample, likeness, run_both
from .conversion import Conversion, converted
from .graph import Graph, check_one_sample, exported
from .inputs import Batch, calibration_batches, example_of, names_inputs, part, samples_of
from .network import TandemNetwork
from .nodes import some
from .replace import called, check_replacements, replacing, warn_of
from .report import analogue_in_words
from .rules.quantised import refuse_quantised
from .values import Options

_BITS = {"int8": 8, "int16": 16}
"""The bits of each value that ``weights`` can have."""
_TRIED = 16
"""Samples that other settings are tried on, before a warning names them."""


def convert(
    ann: nn.Module,
    time_steps: int,
    *,
    mode: str | None = None,
    neuron: Neuron | None = None,
    calibrate: Tensor | Iterable[Any] | Calibration | Mapping[str, Level] | None = None,
    percentile: float | None = None,
    per_channel: bool = False,
    correct_bias: bool | None = None,
    spiking_layers: int | None = None,
    engine: str = "auto",
    learn_thresholds: bool = False,
    weights: str | None = None,
    replace: Mapping[str, str] | None = None,
    analogue: bool = True,
    example: Tensor | Sequence[Any] | Mapping[str, Any] | None = None,
) -> TandemNetwork:
    """Convert an ANN to a tandem SNN (Wu et al. 2021) that shares its parameters.

    ``torch.export`` gives the graph of the ANN: the ATen calls of its forward in eval mode, whether functions, methods
    or modules make them. Each weight layer with its batch norm and ReLU becomes one tandem layer, which holds the ANN's
    own Parameters and batch-norm module: training either network trains both. Weights that forward computes from
    parameters, as weight norm does, are computed once a call, with their gradients. Everything before the first weight
    layer stays as it is; ``Encode`` follows it. The last weight layer reads the output of ``Decode``, and everything
    after it stays as it is, too. In mode "spikes" there is no ``Encode``: the SNN takes spike trains, the ANN takes
    their counts.

    | in the ANN | in the SNN |
    |---|---|
    | a convolution or linear map, then optionally batch norm, then ReLU | its tandem layer, such as TandemConv2d |
    | sums of these layers and of activations, then ReLU | TandemAdd |
    | average pooling, adaptive or not, or the mean over all pixels | SpikingAvgPool2d, SpikingAdaptiveAvgPool2d |
    | max pooling, dropout, dropout2d, also before the ReLU | SpikingMaxPool2d, TandemDropout, TandemDropout2d |
    | flattening, slices, concatenations, padding, upsampling, shuffled channels | the same for spikes |
    | LeakyReLU, PReLU in place of ReLU | neurons for both signs, the slope is a factor of the negative ones |
    | anything else, such as SiLU, layer norm, attention | computed on decoded values: *analogue*; then TandemNeurons |

    A warning and ``print(snn.report())`` name analogue calls, and the report names what is random in training alone,
    such as stochastic depth, which is left out. :func:`tandem_cuda.convert.register` adds rules for further calls.

    Without ``calibrate``, every layer uses ``neuron`` as given, as in the paper; train the network afterwards. With
    ``calibrate``, start from a trained ANN: each threshold becomes its level, a large activation of the ANN, divided by
    T (level by percentile: Rueckauer et al., "Conversion of continuous-valued deep networks to efficient event-driven
    networks for image classification", 2017, doi:10.3389/fnins.2017.00682; correction of biases: Li et al., "A Free
    Lunch From ANN: Towards Efficient, Accurate Spiking Neural Networks Calibration", 2021, arXiv:2106.06984; thresholds
    layer by layer for T steps, then tandem learning: Wu et al., "Progressive Tandem Learning for Pattern Recognition
    with Deep Spiking Neural Networks", 2022, doi:10.1109/TPAMI.2021.3114196). So threshold * count approximates the
    ANN's activation, and weights, biases and batch norms are used unchanged; in mode "constant" the input is divided by
    T. The defaults are the most accurate settings: neurons whose spike of step t weighs 2^(T-t) (:class:`RadixIF`), and
    corrected biases. Such neurons take all T steps in one call. For streams and early exit pass
    ``neuron=IF(initial=0.5)``, for NIR ``neuron=IF()``.

    Averages of spikes are decoded before the read-out, and folded into the weights of a spiking layer
    (:class:`SpikeWindows`) if their windows have one size that does not depend on the image; other poolings have
    neurons with a level of their own. In deep networks, rounding to whole spikes accumulates errors, which further
    training reduces. ``convert`` compares the network with its ANN on the first batch, or on 64 of its samples without
    corrected biases, and warns if it gives the ANN's class for less than 90 % of them. The warning names what is
    better: ``convert`` tries the defaults or, if these are in use, ``per_channel=True``, and T = 8, each calibrated on
    up to 16 of these samples and compared on as many others.

    With ``spiking_layers=k`` the result is a hybrid: the first k spiking layers, in the order in which forward runs
    their activations, then ``Decode``, then the rest of the ANN unchanged (Wu et al. 2022). The next stage is a
    conversion with k + 1. A sum of branches with its ReLU is one layer, so a cut inside a residual block is before the
    sum, and the ANN adds the branches. Pooling after the last spiking layer is the ANN's.

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
            ignored. (Several Tensors of the same size are batches of one input.) The batches are held in memory until
            ``convert`` returns. Alternatively the result of an earlier calibration, ``TandemNetwork.calibration`` or
            ``levels``, which is valid for any T: levels of layers that this network lacks are ignored, and pooling
            layers without a level use the level of the layer that they average over. With a Mapping of levels alone,
            biases are not corrected.
        percentile: take as level of a layer this percentile of its activations in each batch, in (0, 100], averaged
            over the batches. By default, the level is the one at which the activations, rounded to whole spikes and
            clipped at T, differ least from the ANN's (least squares). It depends on ``time_steps``.
        per_channel: find a level for each channel or feature instead of one for each layer. Gains and biases of the
            layer, and the weights of the layers that read it, then contain the thresholds. It can help at few time
            steps, if ``calibrate`` has hundreds of samples of the data that the network will see. On other data a
            channel may exceed by far what it reached on a few samples.
        correct_bias: shift the pre-activations of the spiking twin, layer by layer, so that the mean of each channel's
            decoded spikes is the mean of the ANN's activations on ``calibrate``. The ANN's parameters stay as they are.
            By default (None), yes, but not in mode "spikes", where ``calibrate`` has no spike trains.
        spiking_layers: the number of spiking layers, at least 1; by default all. A smaller number requires
            ``calibrate``: the ANN after the cut expects activations, not counts.
        engine: "auto", "event" or "dense": how spiking products are computed.
        learn_thresholds: whether every spiking layer and TandemAdd learns its threshold (``learn_threshold``), starting
            from the threshold of ``neuron`` or of calibration. Average poolings with neurons keep their thresholds.
        replace: replace activations of the ANN itself, by their names in torch.nn.functional: {"silu": "relu"}. The ANN
            then computes something else and wants fine-tuning; a warning says so. With data as ``calibrate``, biases
            and running means of the ANN are corrected, so that its layers keep their means; with
            ``correct_bias=False`` they stay.
        analogue: whether calls without a spiking form are computed on real values. With False they are refused.
        weights: "int8" or "int16" to compute with integer weights of 8 or 16 bits in both twins, as
            :func:`tandem_cuda.quantise` does: the ANN is changed, too. Calibration measures the ANN as it is before, so
            that corrected biases also make up for what rounding does to means. By default weights stay as they are.
        example: the arguments of forward: a Tensor, a tuple of tensors, or of lists and dicts of tensors, or a dict of
            arguments by name, of at least one sample; by default, from ``calibrate``. The network takes any number of
            samples, but other sizes of images are refused.

    Returns:
        A TandemNetwork. ``.ann()`` is the ANN; ``print(snn.report())`` shows what became of each layer.

    Raises:
        TypeError: an argument has the wrong type, or a parameter is neither float32 nor float64, or not float32 with
            integer ``weights``.
        ValueError: an argument is out of range; neither ``example`` nor data to calibrate on are given; inputs,
            activations or weights to be quantised are not finite; torch.export cannot export forward, or forward fixes
            the batch size; forward does something else in training than in eval mode that is not random, or for one
            sample than for several; it changes parameters or buffers, or has a backward of its own; or, with
            ``analogue=False``, calls have no spiking form. The message lists them.

    Examples:
        >>> ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
        >>> images = torch.rand(16, 1, 28, 28)
        >>> snn = convert(ann, time_steps=8, calibrate=images)
        >>> snn(images).shape
        torch.Size([16, 10])
    """
    return network_of(
        ann, time_steps, {}, mode=mode, neuron=neuron, calibrate=calibrate, percentile=percentile,
        per_channel=per_channel, correct_bias=correct_bias, spiking_layers=spiking_layers, engine=engine,
        learn_thresholds=learn_thresholds, weights=weights, replace=replace, analogue=analogue, example=example,
    )  # fmt: skip


def network_of(
    ann: Any,
    time_steps: int,
    levels: Mapping[str, tuple[float, float]],
    *,
    mode: str | None = None,
    neuron: Neuron | None = None,
    calibrate: Any = None,
    percentile: float | None = None,
    per_channel: bool = False,
    correct_bias: bool | None = None,
    spiking_layers: int | None = None,
    engine: str = "auto",
    learn_thresholds: bool = False,
    weights: str | None = None,
    replace: Mapping[str, str] | None = None,
    analogue: bool = True,
    example: Any = None,
) -> TandemNetwork:
    """Return what :func:`convert` returns for these arguments.

    ``levels``: by the names of modules that are activations with levels, the largest value and the neurons' level.
    """
    ann = unwrapped(ann)
    _check_ann(ann)
    checks.check_time_steps("convert", time_steps)
    if names_inputs(ann, calibrate):
        calibrate = [calibrate]
    settings = CalibrationSettings(calibrate, percentile, per_channel, correct_bias)
    changed = settings.not_default(neuron, time_steps, mode)
    neuron = settings.neuron(neuron, time_steps, mode)
    if mode is None:
        mode = "impulse" if neuron.radix else "constant"
    _check_choices(mode, engine, weights, analogue, learn_thresholds, spiking_layers)
    settings.check(mode)
    _check_code(neuron, mode, time_steps)
    _check_dtypes(ann, weights)
    check_quantisable("convert", "ann", weight_layers(ann) if weights else [])
    given = () if example is None else example_of(ann, example)
    batches = calibration_batches(ann, calibrate, len(given)) if settings.on_data else []
    if example is None and not batches:
        raise ValueError(
            "convert: example must be given: the arguments of forward, such as torch.zeros(1, 3, 32, 32), or data as "
            f"calibrate, got {'None' if calibrate is None else 'the result of an earlier calibration'}"
        )
    arguments = given or batches[0]
    check_replacements(replace)
    options = Options(
        time_steps, mode, neuron, engine, learn_thresholds, calibrate is not None,
        settings.channels(settings.earlier(time_steps)), spiking_layers, analogue, levels,
    )  # fmt: skip
    with torch.inference_mode(False), ExitStack() as undone_on_error:  # calibration makes tensors that training needs
        names, effect = undone_on_error.enter_context(replacing(ann, replace or {}, batches, correct_bias is not False))
        graph = exported(ann, arguments)
        called(ann, replace or {})
        check_one_sample(graph, arguments)
        conversion, snn = _written(graph, options, weights)
        check_quantisable("convert", "ann", weight_layers(snn) if weights else [])
        with _quantised(ann, snn, weights):
            network, found = calibrated_network(conversion, snn, settings, batches)
            network._record.replaced = names
            if batches and mode != "spikes":
                has_levels = any(layer.level is not None for layer in conversion.writer.layers)
                found = found or likeness(network, network._record, graph)
                if found.is_unlike:
                    by_channel = not (has_levels or _repeated_integers(snn, weights))
                    trials = _trials(settings, options, [] if has_levels else changed, by_channel)
                    _warn_of_unlike(found, _tried(network, graph, trials, weights, batches[0]))
            warn_of(names, effect)
            if network._record.analogue:
                warnings.warn(
                    f"convert: {analogue_in_words(network._record)} (analogue=False refuses such calls)", stacklevel=3
                )
            return network


def unwrapped(ann: Any) -> Any:
    """Return the network in wrappers of torch: DataParallel, AveragedModel, compiled modules, exported programs."""
    while True:
        if isinstance(ann, torch.export.ExportedProgram):
            ann = ann.module()
            del ann.train, ann.eval  # which refuse to be called
        elif isinstance(ann, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)):
            ann = ann.module
        elif isinstance(ann, torch._dynamo.OptimizedModule):
            ann = ann._orig_mod
        else:
            return ann


def _written(graph: Graph, options: Options, weights: str | None) -> tuple[Conversion, fx.GraphModule]:
    """Convert, and write the SNN.

    Raises:
        ValueError: channels shall have levels, but layers of integer weights are called twice.
    """
    conversion = converted(graph, options)
    snn = conversion.written()
    if options.per_channel and (repeated := _repeated_integers(snn, weights)):
        raise ValueError(
            f"convert: per_channel must be False with weights={weights!r}, got layers that are called twice: "
            f"{some(repeated, 3)}"
        )
    return conversion, snn


def calibrated_network(
    conversion: Conversion, snn: fx.GraphModule, settings: CalibrationSettings, batches: list[Batch]
) -> tuple[TandemNetwork, Likeness | None]:
    """Return the network, with thresholds and corrected biases as the settings say, and how near it is to its ANN.

    That is known where biases are corrected, from the same runs.
    """
    options = conversion.options
    calibrator, earlier = Calibrator(conversion, snn, settings), settings.earlier(options.time_steps)
    if earlier is not None:
        calibration: Calibration | None = calibrator.fitting(earlier)
    else:
        calibration = calibrator.calibration(batches) if options.calibrated else None
    network, found = TandemNetwork(snn, conversion.ann, calibration, conversion), None
    if batches and earlier is None:
        network._record.doubts = calibrator.data.doubts(batches)
    if calibration is not None and batches and options.mode != "spikes":  # counts do not tell when the spikes come
        network._record.sample = Sample(batches[0])
        if settings.correct_bias is not False:
            corrections, found = calibrator.corrections(batches)
            network.calibration = replaced_fields(calibration, corrections=corrections)
    network.split()
    return network, found


def _quantised(ann: nn.Module, snn: nn.Module, weights: str | None) -> AbstractContextManager[None]:
    """Return a context in which both twins get integer weights, and keep them if it does not fail."""
    return quantised_layers(weight_layers(ann, snn), _BITS[weights]) if weights else nullcontext()


def _repeated_integers(snn: nn.Module, weights: str | None) -> tuple[str, ...]:
    """Return the names of layers that share their integer weights with another layer of neurons."""
    layers = [(name, x) for name, x in snn.named_modules() if isinstance(x, TandemLayer)]
    held = [(name, x) for name, x in layers if "weight" in x._parameters or quantiser(x) is not None]
    weight_of = {name: id(getattr(*stored(x, "weight"))) for name, x in held if weights or quantiser(x) is not None}
    calls, first = Counter(weight_of.values()), {x: name for name, x in reversed(weight_of.items())}
    return tuple(name for x, name in first.items() if calls[x] > 1)


def _trials(
    settings: CalibrationSettings, options: Options, changed: Sequence[str], by_channel: bool
) -> dict[str, tuple[CalibrationSettings, Options]]:
    """Return settings that may be better, by what the user would change.

    ``changed``: the arguments that make the network less accurate than the defaults. ``by_channel``: whether channels
    can have levels.
    """
    found = {}
    if changed:
        neuron = most_accurate(options.time_steps, None)
        mode = "impulse" if neuron.radix else "constant"
        best = replaced_fields(options, neuron=neuron, mode=mode, per_channel=False)
        found[f"leave out {' and '.join(changed)}"] = CalibrationSettings(settings.calibrate, None, False, None), best
    elif by_channel:
        channels = replaced_fields(settings, per_channel=True), replaced_fields(options, per_channel=True)
        found["per_channel=True"] = channels
    steps = MOST_STEPS if options.neuron.radix else 4 * options.time_steps
    if steps > options.time_steps:
        found[f"time_steps={steps}"] = settings, replaced_fields(options, time_steps=steps)
    return found


def _tried(
    network: TandemNetwork,
    graph: Graph,
    trials: Mapping[str, tuple[CalibrationSettings, Options]],
    weights: str | None,
    batch: Batch,
) -> list[str]:
    """Return which settings are better than the network's, in words.

    Networks with other settings are calibrated on up to 16 samples of the batch, and compared on as many others.
    """
    most = min(samples_of(batch) // 2, _TRIED)
    fitted, judged = part(batch, slice(most)), part(batch, slice(most, 2 * most))

    def judgement(network: TandemNetwork) -> Likeness:
        return run_both(network, network._record, judged, {}, graph).likeness()

    found, now = [], judgement(network)
    for words, (settings, options) in trials.items():
        # Levels change how weights are rounded, which must not happen to the ANN.
        source = graph.copied() if weights or graph.rounded else graph
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers that these few samples never activate
            conversion, snn = _written(source, options, weights)
            with _quantised(source.ann, snn, weights):
                other, _ = calibrated_network(conversion, snn, settings, [fitted])
        if (near := judgement(other)).is_nearer_than(now):
            found.append(f"{words} ({near.in_place_of(now)})")
    return found


def _warn_of_unlike(found: Likeness, better: Sequence[str]) -> None:
    """Warn that a calibrated network does not compute what its ANN does, and say which settings are better."""
    remedies = [*better, f"{'or ' if better else ''}train the network further"]
    warnings.warn(
        f"convert: {found}. To change that: {'; '.join(remedies)}. print(snn.report()) shows the error of each layer",
        stacklevel=4,
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
    mode: Any, engine: Any, weights: Any, analogue: Any, learn_thresholds: Any, spiking_layers: Any
) -> None:
    if mode not in ("constant", "impulse", "radix", "spikes"):
        raise ValueError(f"convert: mode must be 'constant', 'impulse', 'radix' or 'spikes', got {mode!r}")
    if engine not in ENGINES:
        raise ValueError(f"convert: engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if weights not in (None, *_BITS):
        raise ValueError(f"convert: weights must be None, {' or '.join(map(repr, _BITS))}, got {weights!r}")
    for name, value in (("learn_thresholds", learn_thresholds), ("analogue", analogue)):
        if not isinstance(value, bool):
            raise TypeError(f"convert: {name} must be True or False, got {type(value).__name__}")
    if spiking_layers is not None:
        if isinstance(spiking_layers, bool) or not isinstance(spiking_layers, int):
            raise TypeError(f"convert: spiking_layers must be an int, got {type(spiking_layers).__name__}")
        if spiking_layers < 1:
            raise ValueError(
                f"convert: spiking_layers must be at least 1 (with none, use the ANN itself), got {spiking_layers}"
            )


def _check_ann(ann: Any) -> None:
    """Raise a TypeError unless it is a module, a ValueError if it is scripted or quantised, or spikes already."""
    if not isinstance(ann, nn.Module):
        raise TypeError(f"convert: ann must be an nn.Module, got {type(ann).__name__}")
    if isinstance(ann, torch.jit.ScriptModule):
        raise ValueError(
            f"convert: ann must be a module of Python, got {type(ann).__name__}: pass the module it was made of"
        )
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
