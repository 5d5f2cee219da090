"""Every layer: constructor arguments and the shapes of what it takes. A new layer joins the tests by an entry here.

test_every_layer.py makes of this list the tests that all layers pass; test_more_layers.py, test_pooling_layers.py,
test_joins.py, test_layer_changes.py, test_func.py, test_leaks.py and others take their layers from here, too.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import nn

import tandem_cuda.nn
from tandem_cuda import IF, LIF, SpikeTrain
from tandem_cuda import reference as ref
from tandem_cuda.nn.tandem import TandemLayer
from tensors import generator, planes


@dataclass(frozen=True)
class LayerCase:
    """A layer of `tandem_cuda.nn`, and of `tandem_cuda.reference` if it is there."""

    name: str
    kind: str
    """The name of its class."""
    arguments: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)
    samples: tuple[tuple[int, ...], ...] = ()
    """The shape of a sample of each of its inputs."""

    def make(self, package=tandem_cuda.nn, **more):
        """The layer; `more` are further keywords, of a sum's branches where only these have them."""
        if self.kind == "Identity":
            return nn.Identity()
        if self.kind != "TandemAdd":
            return getattr(package, self.kind)(*self.arguments, **self.named | more)
        own = {name: more.pop(name) for name in ("neuron", "learn_threshold") if name in more}
        return package.TandemAdd(*(branch.make(package, **more) for branch in self.arguments), **self.named | own)

    def inputs(self, batch=3, time_steps=8, rate=0.4, dtype=torch.float32, **code):
        """Spikes for each of its inputs; a real value for TandemNeurons."""
        if not self.reads_spikes:
            return [8 * torch.randn(batch, *self.samples[0], generator=generator(9)).to(dtype)]
        return [
            SpikeTrain(planes(time_steps, batch, *sample, seed=i, rate=rate), time_steps, dtype=dtype, **code)
            for i, sample in enumerate(self.samples)
        ]

    @property
    def reads_spikes(self):
        return self.kind != "TandemNeurons"

    @property
    def in_reference(self):
        return hasattr(ref, self.kind)

    @property
    def encodes(self):
        """Whether it takes real input."""
        return self.kind in WEIGHTED

    @property
    def has_weights(self):
        return self.encodes or any(branch.has_weights for branch in self.arguments if isinstance(branch, LayerCase))

    def __str__(self):
        return self.name


WEIGHTED = {
    name
    for name in tandem_cuda.nn.__all__
    if issubclass(getattr(tandem_cuda.nn, name), TandemLayer) and name not in ("TandemElementwise", "TandemInterpolate")
}
"""Layers that take real input."""


def layer(name, kind, *arguments, of, **named):
    return LayerCase(name, kind, arguments, named, (of,))


def linear(name, *arguments, of, **named):
    return layer(name, "TandemLinear", *arguments, of=of, **named)


def line(name, *arguments, of, **named):
    return layer(name, "TandemConv1d", *arguments, of=of, **named)


def image(name, *arguments, of, **named):
    return layer(name, "TandemConv2d", *arguments, of=of, **named)


def volume(name, *arguments, of, **named):
    return layer(name, "TandemConv3d", *arguments, of=of, **named)


def transposed(name, *arguments, of, **named):
    return layer(name, "TandemConvTranspose2d", *arguments, of=of, **named)


CONVOLUTIONS = (
    line("1d", 3, 5, 3, of=(3, 7)),
    line("1d odd", 4, 6, 4, stride=3, padding=2, dilation=2, groups=2, of=(4, 17)),
    line("1d same", 3, 5, 4, padding="same", bias=False, of=(3, 9)),
    line("1d reflect", 3, 5, 3, padding=2, padding_mode="reflect", of=(3, 5)),
    line("1d wide", 70, 66, 1, of=(70, 1)),
    volume("3d", 3, 5, 3, padding=1, of=(3, 4, 5, 6)),
    volume(
        "3d odd", 4, 6, (2, 3, 1), stride=(2, 1, 3), padding=(1, 2, 0), dilation=(3, 1, 2), groups=2, of=(4, 6, 3, 5)
    ),
    volume("3d same", 3, 5, (2, 3, 4), padding="same", dilation=(1, 2, 1), bias=False, of=(3, 4, 3, 5)),
    volume("3d depthwise", 3, 6, (3, 2, 2), groups=3, of=(3, 4, 3, 5)),
    volume("3d of slices", 3, 5, (1, 3, 3), stride=(2, 1, 1), of=(3, 4, 3, 5)),
    volume("3d wide", 70, 66, (3, 1, 1), of=(70, 3, 2, 1)),
    volume("3d batch norm", 3, 5, 2, norm="batch", of=(3, 4, 3, 5)),
    *(
        volume(f"3d {mode}", 3, 5, (3, 2, 3), padding=(2, 1, 1), padding_mode=mode, stride=(1, 2, 1), of=(3, 4, 3, 5))
        for mode in ("circular", "reflect", "replicate")
    ),
    transposed("transposed", 3, 5, 3, of=(3, 4, 5)),
    transposed(
        "transposed stride", 4, 6, (3, 4), stride=(2, 3), padding=(1, 2), output_padding=(1, 0), groups=2, of=(4, 5, 3)
    ),
    transposed("transposed cropped", 3, 5, 2, padding=3, stride=2, bias=False, of=(3, 6, 7)),
    transposed("transposed dilated", 3, 4, 2, dilation=(2, 3), stride=2, of=(3, 1, 2)),
    transposed("transposed depthwise", 5, 10, 2, stride=2, groups=5, of=(5, 3, 3)),
    *(
        image(f"{mode} {(2, 3)}", 3, 5, (3, 2), padding=(2, 3), padding_mode=mode, stride=(1, 2), of=(3, 4, 5))
        for mode in ("circular", "reflect", "replicate")
    ),
    *(
        image(f"{mode} same", 3, 5, (3, 2), padding="same", padding_mode=mode, of=(3, 4, 5))
        for mode in ("circular", "reflect", "replicate")
    ),
)
"""Convolutions but those that the operators compute as they are."""
PLAIN = (
    image("two-dimensional", 3, 5, 3, padding=1, of=(3, 4, 5)),
    linear("linear", 12, 30, of=(12,)),
    linear("linear to few", 12, 5, bias=False, of=(12,)),
)
VARIED = (
    image("grouped", 4, 6, (2, 3), stride=2, padding=1, groups=2, of=(4, 5, 6)),
    image("depthwise", 4, 8, 3, groups=4, of=(4, 7, 6)),
    image("one channel", 1, 6, 3, of=(1, 7, 6)),
    image("one column", 1, 6, 3, stride=4, of=(1, 7, 6)),
    linear("linear, batch norm", 5, 7, norm="batch", of=(5,)),
    linear("linear of rows", 5, 7, of=(7, 5)),
    image("batch norm", 4, 6, 3, stride=2, norm="batch", of=(4, 7, 6)),
    image("two phases", 4, 6, 3, neuron=IF(initial=0.5, two_phase=True), of=(4, 7, 6)),
    image("leaky, learned threshold", 4, 6, 3, neuron=LIF(), learn_threshold=True, of=(4, 7, 6)),
)
IMAGE = (3, 7, 5)
VOLUME = (3, 5, 4, 6)
AVERAGES = tuple(
    layer(f"average {name}", kind, *arguments, of=IMAGE, **named)
    for name, kind, arguments, named in (
        ("2", "SpikingAvgPool2d", (2,), {}),
        ("3x2", "SpikingAvgPool2d", ((3, 2), (2, 1)), {"threshold": 0.5}),
        ("padded", "SpikingAvgPool2d", (3, 2, 1), {}),
        ("ceil", "SpikingAvgPool2d", (3, 2, 1), {"ceil_mode": True}),
        ("inside", "SpikingAvgPool2d", (3, 2, 1), {"count_include_pad": False}),
        ("ceil inside", "SpikingAvgPool2d", (2, 3), {"ceil_mode": True, "count_include_pad": False}),
        ("override", "SpikingAvgPool2d", (3, 2), {"divisor_override": 2, "ceil_mode": True}),
        ("one window of many", "SpikingAvgPool2d", (2, 8), {}),
        ("one row of windows", "SpikingAvgPool2d", (2, (8, 2), 1), {}),
        ("initial", "SpikingAvgPool2d", (2,), {"threshold": 0.75, "initial": 0.5}),
        ("global", "SpikingAdaptiveAvgPool2d", (1,), {}),
        ("adaptive", "SpikingAdaptiveAvgPool2d", ((2, 3),), {}),
        ("same height", "SpikingAdaptiveAvgPool2d", ((None, 3),), {"initial": 0.25}),
        ("larger", "SpikingAdaptiveAvgPool2d", ((9, 4),), {"threshold": 0.25}),
    )
) + tuple(
    layer(f"average 3d {name}", kind, *arguments, of=VOLUME, **named)
    for name, kind, arguments, named in (
        ("2", "SpikingAvgPool3d", (2,), {}),
        ("3x2x1", "SpikingAvgPool3d", ((3, 2, 1), (1, 2, 1)), {"threshold": 0.5}),
        ("padded", "SpikingAvgPool3d", (3, 2, 1), {}),
        ("ceil inside", "SpikingAvgPool3d", (3, 2, 1), {"ceil_mode": True, "count_include_pad": False}),
        ("override", "SpikingAvgPool3d", (2,), {"divisor_override": 3, "ceil_mode": True}),
        ("initial", "SpikingAvgPool3d", ((2, 1, 2),), {"threshold": 0.75, "initial": 0.5}),
        ("global", "SpikingAdaptiveAvgPool3d", (1,), {}),
        ("adaptive", "SpikingAdaptiveAvgPool3d", ((2, 3, None),), {}),
    )
)
MAXIMA = tuple(
    layer(f"maximum {name}", "SpikingMaxPool2d", *arguments, of=IMAGE, **named)
    for name, arguments, named in (
        ("2", (2,), {}),
        ("3 s2 p1", (3, 2, 1), {}),
        ("ceil", ((3, 2), 2), {"ceil_mode": True}),
        ("dilated", ((2, 3), 1, 1, (3, 2)), {}),
        ("ceil padded", (2, 3, 1), {"ceil_mode": True}),
    )
) + tuple(
    layer(f"maximum 3d {name}", "SpikingMaxPool3d", *arguments, of=VOLUME, **named)
    for name, arguments, named in (
        ("2", (2,), {}),
        ("3 s2 p1", (3, 2, 1), {}),
        ("of slices", ((1, 2, 2),), {}),
        ("ceil, dilated", ((2, 3, 1), (1, 2, 3), (1, 1, 0), (2, 1, 1)), {"ceil_mode": True}),
    )
)
OTHERS = (
    layer("maximum of all pixels", "SpikingGlobalMaxPool2d", of=IMAGE),
    layer("windows", "SpikeWindows", 2, of=IMAGE),
    layer("rearranged", "SpikeRearrange", "channels", 1, 3, of=IMAGE),
    layer("sliced", "SpikeRearrange", "slice", 3, 1, -1, 2, of=IMAGE),
    layer("elementwise", "TandemElementwise", 3, 3, 3, of=IMAGE),
    layer("interpolated", "TandemInterpolate", 3, 3, 3, None, (2.0, 1.5), of=IMAGE),
    layer("interpolated to a size", "TandemInterpolate", 3, 3, 3, (4, 9), None, "bicubic", True, of=IMAGE),
    layer("dropout", "TandemDropout", 0.5, of=IMAGE),
    layer("dropout of channels", "TandemDropout2d", 0.5, of=IMAGE),
    layer("dropout of channels of volumes", "TandemDropout3d", 0.5, of=VOLUME),
    layer("stochastic depth", "TandemStochasticDepth", 0.5, of=IMAGE),
    layer("neurons", "TandemNeurons", 8, of=IMAGE),
    layer("neurons of features", "TandemNeurons", 8, IF(3.0, two_phase=True), signed=True, features=True, of=(5, 4)),
    LayerCase("concatenation", "SpikeCat", (False, False), samples=(IMAGE, IMAGE)),
)


# --- sums ------------------------------------------------------------------------------------------------------------


def identity(*of):
    return layer("identity", "Identity", of=of)


def join(name, *branches):
    samples = tuple(shape for branch in branches for shape in branch.samples)
    return LayerCase(name, "TandemAdd", branches, samples=samples)


JOINS = (
    join("identity", image("", 5, 5, 3, padding=1, of=(5, 6, 7)), identity(5, 6, 7)),
    join(
        "downsample",
        image("", 6, 6, 3, padding=1, of=(6, 3, 4)),
        image("", 4, 6, 1, stride=2, bias=False, of=(4, 6, 8)),
    ),
    join("odd downsample", image("", 6, 6, 3, padding=1, of=(6, 4, 3)), image("", 4, 6, 1, stride=2, of=(4, 7, 5))),
    join("bottleneck", image("", 4, 8, 1, of=(4, 3, 3)), image("", 6, 8, 1, stride=2, of=(6, 6, 5))),
    join("two kernels", image("", 3, 5, 3, padding=1, of=(3, 6, 6)), image("", 4, 5, 5, padding=2, of=(4, 6, 6))),
    join("strided", image("", 3, 5, 3, stride=2, padding=1, of=(3, 7, 8)), identity(5, 4, 4)),
    join(
        "dilated, grouped",
        image("", 4, 6, 3, padding=2, dilation=2, groups=2, of=(4, 5, 5)),
        image("", 3, 6, 2, of=(3, 6, 6)),
    ),
    join("three", image("", 5, 5, 3, padding=1, of=(5, 4, 4)), identity(5, 4, 4), image("", 2, 5, 1, of=(2, 4, 4))),
    join(
        "two strides",
        image("", 3, 4, 3, padding=1, of=(3, 4, 4)),
        image("", 3, 4, 3, padding=1, stride=2, of=(3, 8, 8)),
    ),
    join("two identities", identity(4, 5, 5), image("", 3, 4, 3, padding=1, of=(3, 5, 5)), identity(4, 5, 5)),
    join("valid", image("", 3, 4, (2, 3), of=(3, 5, 6)), image("", 3, 4, 1, padding=1, of=(3, 2, 2))),
    join("circular", image("", 3, 3, 3, padding=1, padding_mode="circular", of=(3, 4, 5)), identity(3, 4, 5)),
    join("transposed", transposed("", 3, 4, 2, stride=2, of=(3, 3, 2)), identity(4, 6, 4)),
    join("1d", line("", 3, 3, 3, padding=1, of=(3, 7)), identity(3, 7)),
    join("3d", volume("", 3, 3, 3, padding=1, of=(3, 3, 4, 2)), identity(3, 3, 4, 2)),
    join("3d strided", volume("", 3, 4, 1, stride=2, of=(3, 3, 4, 2)), volume("", 4, 4, 3, padding=1, of=(4, 2, 2, 1))),
    join("linear", linear("", 6, 4, of=(6,)), identity(4)),
    join("identities", identity(3, 2, 2), identity(3, 2, 2)),
)
CASES = (
    *PLAIN,
    *CONVOLUTIONS,
    *VARIED,
    *AVERAGES,
    *MAXIMA,
    *OTHERS,
    *(replace(case, name=f"sum, {case.name}") for case in JOINS),
    join("sum, batch norm", image("", 4, 4, 3, padding=1, norm="batch", of=(4, 7, 6)), identity(4, 7, 6)),
)


def named(name):
    """The case of this name."""
    (found,) = (case for case in CASES if case.name == name)
    return found


def of_each_kind():
    """The first case of each class."""
    found = {}
    for case in CASES:
        found.setdefault(case.kind, case)
    return tuple(found.values())


def with_weights():
    """One case of each class that has weights and takes real input."""
    return [case for case in of_each_kind() if case.encodes]


def every(cases):
    """Parametrise a test by these cases."""
    return pytest.mark.parametrize("case", cases, ids=str)


DROP_INS = [
    (getattr(tandem_cuda, case.kind), getattr(nn, case.kind.removeprefix("Tandem")), case.arguments)
    for case in with_weights()
]
"""Layers that take the place of torch's: class, torch's class, arguments of both."""
every_drop_in = pytest.mark.parametrize(
    ("tandem", "plain", "arguments"), DROP_INS, ids=[plain.__name__ for _, plain, _ in DROP_INS]
)
