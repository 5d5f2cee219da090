"""Cases of conversions to radix spikes: as other conversions, at every T; and what else may be done to the network."""

import copy
import re
import warnings

import torch
from torch import nn

from tandem_cuda import (
    Cascade,
    FiringRatePenalty,
    RadixIF,
    SynOpsPenalty,
    convert,
    freeze,
    quantise,
    record_activity,
    synops,
)

from .conversions import REFUSED, again, agree, check_edits, check_saved, error, network, network_of_rows, values
from .draw import Draw, Mismatch
from .radix_networks import check_file, must_refuse

TOLERANCE = 0.1
"""Of the outputs' relative error at T = 8, whose values are from 0 to 255."""


def radix_conversions(draw: Draw):
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # calls that are analogue
        torch.manual_seed(draw.int(0, 2**31))
        try:
            _case(draw)
        except ValueError as refused:
            if not any(reason in str(refused) for reason in REFUSED):
                raise


def _case(draw):
    ann, x = draw.one((network, network_of_rows))(draw)
    how = {
        "mode": draw.one(("impulse", "radix")),
        "engine": draw.one(("auto", "event", "dense") if draw.chance(0.2) else ("auto", "event")),
        "weights": draw.one((None, None, None, "int8", "int16")),
    }
    initial = draw.one((0.5, 0.5, 0.0, 0.25))
    neuron = RadixIF(draw.one((1.0, 2.5)), clip=draw.chance(0.3), initial=initial)
    settings = {"per_channel": draw.one((False, True)), "correct_bias": draw.one((None, False, True))}
    settings |= {"learn_thresholds": True} if how["weights"] is None and draw.chance(0.3) else {}
    draw.note(ann=str(ann), **how, neuron=str(neuron), **settings)
    how["example"] = x[:1]
    with torch.no_grad():
        if draw.chance(0.5):
            near = convert(ann, 8, calibrate=x, neuron=neuron, percentile=100.0, **how, **settings)
            exact = how["weights"] is None and initial == 0.5
            if exact and (found := error(near, ann, x)) > TOLERANCE:
                raise Mismatch(f"the network differs from its ANN by {found:.3f} at T = 8")
        given = None if draw.chance(0.15) else x
        if given is None:
            settings |= {"per_channel": False, "correct_bias": None}
        snn = convert(ann, draw.int(1, 8), calibrate=given, neuron=neuron, **how, **settings)
        draw.note(steps=snn.time_steps, calibrated=given is not None)
        if given is not None and "learn_thresholds" not in settings:
            check_saved(draw, ann, snn, x, how)
        for check in (check_every_t, check_life, check_file_of, check_cascade):
            if draw.chance(0.5):
                check(draw, ann, snn, x, how)
    if draw.chance(0.5):
        check_training(draw, copy.deepcopy(snn), x)
    if given is not None and "learn_thresholds" not in settings:
        with torch.no_grad():
            check_edits(draw, ann, snn, x, how)


def check_every_t(draw, ann, snn, x, how):
    """Another T: as a new conversion with the same levels."""
    before, want = snn.time_steps, values(snn(x))
    steps = draw.int(1, 8)
    snn.set_time_steps(steps)
    got = values(snn(x))
    if not agree(values(freeze(snn)(x)), got, snn):
        raise Mismatch(f"after set_time_steps({steps}), the frozen network differs")
    if snn.calibration is not None and not any(name.endswith("log_threshold") for name, _ in snn.named_parameters()):
        new = again(ann, snn, how)
        if how["weights"] is None and not torch.equal(values(new(x)), got):
            raise Mismatch(f"after set_time_steps({steps}), the network differs from a new conversion")
    must_refuse(ValueError, "time_steps", lambda: snn.set_time_steps(draw.one((0, 9, 16))))
    snn.set_time_steps(before)
    if not torch.equal(values(snn(x)), want):
        raise Mismatch(f"after another T and T = {before} again, the network differs")


def check_life(draw, ann, snn, x, how):
    """Reports, operations, recorded activity, graphs for other programs."""
    from tandem_cuda.exchange import to_nir

    want = values(snn(x))
    str(snn.report(x)), str(snn.report()), str(synops(snn, x))
    with record_activity(snn) as record:
        if not torch.equal(values(snn(x)), want):
            raise Mismatch("with its activity recorded, the network differs")
    str(record)
    must_refuse(ValueError, "^to_nir: ", lambda: to_nir(snn, x[:1]))


def check_file_of(draw, ann, snn, x, how):
    if not isinstance(snn(x), torch.Tensor):
        return
    snn = copy.deepcopy(snn)
    if how["weights"] is None and draw.chance(0.3):
        try:
            quantise(snn, draw.one((8, 16)))
        except ValueError as refused:
            if not re.search("no other parametrisations of weights|weights that are parameters", str(refused)):
                raise
    frozen = freeze(snn)
    want = frozen(x)
    if not agree(values(want), values(snn(x)), snn):
        raise Mismatch("the frozen network differs")
    check_file(draw, frozen, x, want, batches=False)


def check_cascade(draw, ann, snn, x, how):
    if not isinstance(snn(x), torch.Tensor) or snn(x).dim() != 2:
        return  # no classes
    frozen, before = [], snn.time_steps
    for steps in sorted({draw.int(1, 8) for _ in range(3)}):
        snn.set_time_steps(steps)
        frozen.append(freeze(snn))
    snn.set_time_steps(before)
    prediction = Cascade(frozen).predict(x, exit_confidence=1.0)
    sure = prediction.logits.softmax(1).amax(1) >= 1
    want = frozen[-1](x)
    if not torch.allclose(prediction.logits[~sure], want[~sure], rtol=1e-4, atol=1e-5):
        raise Mismatch("a cascade that exits nowhere differs from its last network")
    Cascade(frozen).predict(x, exit_confidence=0.3)
    whole = frozen[-1].predict(x, 0.5, chunk=frozen[-1].time_steps)
    if not torch.allclose(whole.logits, want, rtol=1e-4, atol=1e-5):
        raise Mismatch("predictions differ from the network")


def check_training(draw, snn, x):
    """A step of training with a penalty, after which the frozen network is as the network in eval mode."""
    penalty_class = draw.one((FiringRatePenalty, SynOpsPenalty))
    parameters = [p for p in snn.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, 1e-3)
    snn.train()
    with penalty_class(snn) as penalty:
        for _ in range(draw.int(1, 2)):
            loss = values(snn(x)).square().mean() + 1e-3 * penalty()
            optimiser.zero_grad()
            loss.backward()
            for name, p in snn.named_parameters():
                if p.grad is not None and not p.grad.isfinite().all():
                    raise Mismatch(f"the gradient of {name} is not finite")
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
    snn.eval()
    with torch.no_grad():
        want = values(snn(x))
        if not agree(values(freeze(snn)(x)), want, snn):
            raise Mismatch("after training, the frozen network differs")
    if not agree(values(snn(x)), want, snn):
        raise Mismatch("with gradients, the network differs")
