"""Constructors and functions with one argument spoilt: what they raise, or what they are."""

import torch
from torch import nn

import tandem_cuda as tandem
from tandem_cuda import IF, LIF, Decode, Encode, SpikeTrain, convert, freeze, ops, quantise, synops

from .digest import attempt

VALUES = (None, "text", -1, 0, 1, 2.5, float("nan"), True, (1, 2), (), [1], nn.ReLU(), torch.zeros(2))


def train(*shape, steps=4, **named):
    torch.manual_seed(0)
    bits = ops.pack_spikes((torch.rand(steps, *shape) < 0.4).to(torch.uint8))
    return SpikeTrain(bits, steps, **named)


def inputs_of_layers():
    """Inputs that no layer, or not every layer, takes."""
    return (
        None, torch.zeros(2, 3), torch.zeros(2, 3, 6, 6), train(2, 3), train(2, 4), train(2, 3, 6), train(2, 3, 6, 6),
        train(2, 4, 6, 6), train(2, 3, 6, 6, dtype=torch.float64), train(2, 3, 6, 6, 2), train(0, 3, 6, 6),
        train(2, 3, 1, 1), Encode(4)(torch.zeros(2, 3, 6, 6)), Encode(4, "impulse")(torch.zeros(2, 4)),
    )  # fmt: skip


def ann():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)
    return nn.Sequential(*layers).eval()


CONV = {"in_channels": 3, "out_channels": 4, "kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1, "groups": 1}
LAYER = {"bias": True, "norm": None, "neuron": IF(), "engine": "auto", "learn_threshold": False}
POOL = {"threshold": 1.0, "amplitude": 1.0, "initial": 0.0, "two_phase": False, "engine": "auto"}
CALLS = {
    "IF": (IF, {"threshold": 1.0, "amplitude": 1.0, "initial": 0.5, "two_phase": False, "refractory": 0, "clip": None}),
    "LIF": (LIF, {"leak": 0.9, "threshold": 1.0, "initial": 0.0}),
    "Encode": (Encode, {"time_steps": 4, "mode": "constant", "scale": 1.0}),
    "Decode": (Decode, {"signed": False}),
    "TandemConv1d": (tandem.TandemConv1d, {**CONV, "padding_mode": "zeros", **LAYER}),
    "TandemConv2d": (tandem.TandemConv2d, {**CONV, "padding_mode": "zeros", **LAYER}),
    "TandemConvTranspose2d": (tandem.TandemConvTranspose2d, {**CONV, "output_padding": 0, **LAYER}),
    "TandemLinear": (tandem.TandemLinear, {"in_features": 3, "out_features": 4, **LAYER}),
    "TandemNeurons": (tandem.TandemNeurons, {"time_steps": 4, "neuron": IF(), "signed": False, "features": False}),
    "TandemDropout": (tandem.TandemDropout, {"p": 0.5}),
    "TandemStochasticDepth": (tandem.TandemStochasticDepth, {"p": 0.5, "mode": "row"}),
    "SpikingAvgPool2d": (tandem.SpikingAvgPool2d, {"kernel_size": 2, "stride": 2, "padding": 0, **POOL}),
    "SpikingAdaptiveAvgPool2d": (tandem.SpikingAdaptiveAvgPool2d, {"output_size": 2, **POOL}),
    "SpikingMaxPool2d": (tandem.SpikingMaxPool2d, {"kernel_size": 2, "stride": 2, "padding": 0}),
    "SpikeWindows": (tandem.SpikeWindows, {"kernel_size": 2, "stride": 2, "padding": 0}),
    "SpikeRearrange": (lambda how, n: tandem.SpikeRearrange(how, n), {"how": "channel_shuffle", "n": 2}),
    "SpikeTrain": (
        SpikeTrain, {"bits": train(2, 3).bits, "time_steps": 4, "count": None, "dtype": None, "amplitude": 1.0}
    ),
    "quantise": (quantise, {"model": tandem.TandemLinear(3, 4), "bits": 8}),
    "convert": (
        lambda **named: str(convert(**named)),
        {
            "ann": None, "time_steps": 4, "mode": "constant", "neuron": None, "calibrate": None, "percentile": None,
            "per_channel": False, "correct_bias": None, "engine": "auto", "weights": None, "spiking_layers": None,
            "replace": None, "analogue": True, "example": torch.zeros(1, 3, 6, 6),
        },
    ),
    "freeze": (lambda model: str(freeze(model)), {"model": None}),
    "synops": (lambda **named: str(synops(**named)), {"model": None, "inputs": torch.zeros(2, 3, 6, 6)}),
}  # fmt: skip
LAYERS = {
    "TandemConv1d": lambda: tandem.TandemConv1d(3, 4, 3, norm="batch"),
    "TandemConv2d": lambda: tandem.TandemConv2d(3, 4, 3, norm="batch"),
    "TandemConv2d, reflected": lambda: tandem.TandemConv2d(3, 4, 3, padding=1, padding_mode="reflect"),
    "TandemConvTranspose2d": lambda: tandem.TandemConvTranspose2d(3, 4, 3),
    "TandemLinear": lambda: tandem.TandemLinear(3, 4),
    "TandemAdd": lambda: tandem.TandemAdd(tandem.TandemConv2d(3, 3, 3, padding=1), nn.Identity()),
    "TandemNeurons": lambda: tandem.TandemNeurons(4),
    "SpikingAvgPool2d": lambda: tandem.SpikingAvgPool2d(2),
    "SpikingAdaptiveAvgPool2d": lambda: tandem.SpikingAdaptiveAvgPool2d(2),
    "SpikingGlobalMaxPool2d": lambda: tandem.SpikingGlobalMaxPool2d(),
    "SpikingMaxPool2d": lambda: tandem.SpikingMaxPool2d(2),
    "SpikeWindows": lambda: tandem.SpikeWindows(2),
    "SpikeCat": lambda: tandem.SpikeCat(False, False),
    "TandemDropout": lambda: tandem.TandemDropout(0.5),
    "Decode": lambda: Decode(),
    "TandemNetwork": lambda: convert(ann(), 4, example=torch.zeros(1, 3, 6, 6)),
    "FrozenNetwork": lambda: freeze(convert(ann(), 4, example=torch.zeros(1, 3, 6, 6))),
}


def names():
    return [*(f"arguments of {name}" for name in CALLS), *(f"inputs of {name}" for name in LAYERS)]


def run(name):
    kind, name = name.split(" of ")
    if kind == "inputs":
        return {key: value for training in (True, False) for key, value in inputs(name, training)}
    function, arguments = CALLS[name]
    found = {}
    for key in arguments:
        for i, value in enumerate(VALUES):
            good = {other: ann() if other in ("ann", "model") and x is None else x for other, x in arguments.items()}
            found[f"{key}, {i}"] = attempt(function, **good | {key: value})
        found[f"without {key}"] = attempt(function, **{other: x for other, x in good.items() if other != key})
    return found


def inputs(name, training):
    torch.manual_seed(0)
    layer = LAYERS[name]().train(training)
    mode = "training" if training else "eval"
    values = inputs_of_layers()
    for i, value in enumerate(values):
        yield f"{mode}, {i}", attempt(layer, value)
        yield f"{mode}, {i} twice", attempt(layer, value, value)
    yield f"{mode}, two", attempt(layer, values[6], values[7])
