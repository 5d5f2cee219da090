"""register: conversion rules for ATen calls and for operators of one's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anns import Net
from tandem_cuda import convert
from tandem_cuda.convert import Analogue, register
from tandem_cuda.convert.rules import RULES
from tandem_cuda.nn import SpikeRearrange

pytestmark = [
    pytest.mark.usefixtures("restored_rules"),
    pytest.mark.filterwarnings("ignore:convert.* computed on real values"),
]
aten = torch.ops.aten
IMAGES = torch.randint(0, 8, (2, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 8


def conv(inputs=1):
    """With dyadic weights, whose sums are exact."""
    made = nn.Conv2d(inputs, 4, 3, padding=1)
    generator = torch.Generator().manual_seed(inputs)
    with torch.no_grad():
        for x in made.parameters():
            x.copy_(torch.randint(-4, 6, x.shape, generator=generator) / 4)
    return made


def network(between):
    torch.manual_seed(0)
    return Net(
        lambda n, x: n.head(F.relu(n.b(between(n.a(x)))).flatten(1)), a=conv(), b=conv(4), head=nn.Linear(256, 3)
    )


def same_network(between, other, **settings):
    """Both convert to networks of the same output; the first of them."""
    snn, want = (convert(network(f), 8, example=IMAGES, **settings) for f in (between, other))
    torch.testing.assert_close(snn(IMAGES), want(IMAGES), rtol=0, atol=0)
    assert snn(IMAGES).std() > 0
    return snn


@torch.library.custom_op("tests::rectify", mutates_args=())
def rectify(x: Tensor) -> Tensor:
    return x.clamp(min=0)


rectify.register_fake(torch.empty_like)


def test_operators_of_ones_own():
    snn = convert(network(rectify), 8, example=IMAGES)
    assert [call.why for call in snn.report().analogue] == ["it has no rule"]
    register(torch.ops.tests.rectify.default, lambda call: call.fire())
    snn = same_network(rectify, F.relu)
    assert snn.report().analogue == ()
    assert snn.spiking_layers == ("a", "b")


def test_calls_of_aten():
    """Circular padding of columns, before and behind the ReLU; with other arguments it stays analogue."""
    del RULES[aten.pad.default]

    def rule(call):
        left, right, *rows = call.ints("pad")
        if call["mode"] != "circular" or any(rows):
            raise Analogue("it pads more than columns")
        return call.rearrange("circular_pad", left, right, 0, 0)

    register(aten.pad.default, rule)

    def padded(x, rows=0):
        return F.pad(x, (1, 1, rows, rows), mode="circular")[..., 1:-1]

    snn = same_network(lambda x: F.relu(padded(x)), lambda x: padded(F.relu(x)))
    assert any(isinstance(module, SpikeRearrange) for module in snn.modules())
    snn = convert(network(lambda x: F.relu(padded(x, 1))[:, :, 1:-1]), 8, example=IMAGES)
    assert [call.what for call in snn.report().analogue] == ["pad", "relu"]


def test_modules_of_ones_own():
    """What is done to currents is done to spikes behind the neurons, if the rule says that it commutes."""
    del RULES[aten.channel_shuffle.default]
    how = {"commutes": True}
    register(
        aten.channel_shuffle.default,
        lambda call: call.apply(SpikeRearrange("channel_shuffle", call.ints("groups")), **how),
    )
    same_network(lambda x: F.relu(F.channel_shuffle(x, 2)), lambda x: F.channel_shuffle(F.relu(x), 2))
    how.clear()
    snn = convert(network(lambda x: F.relu(F.channel_shuffle(x, 2))), 8, example=IMAGES)
    assert snn.report().analogue[0].why == "its input may be negative"


def test_several_inputs():
    register(torch.ops.tests.plus.default, lambda call: call.add())
    snn = same_network(lambda x: F.relu(plus(x, F.relu(x))), lambda x: F.relu(x + F.relu(x)))
    assert snn.report().analogue == ()


@torch.library.custom_op("tests::plus", mutates_args=())
def plus(self: Tensor, other: Tensor) -> Tensor:
    return self + other


plus.register_fake(lambda x, y: torch.empty_like(x))


def test_inputs_need_no_rule():
    """Before the first weight layer the ANN's calls stay."""
    register(torch.ops.tests.rectify.default, pytest.fail)
    ann = Net(lambda n, x: n.head(F.relu(n.a(rectify(x))).flatten(1)), a=conv(), head=nn.Linear(256, 3))
    assert convert(ann, 8, example=IMAGES).report().analogue == ()


def test_wrong_rules():
    def rule(call):
        raise ValueError("a mistake in it")

    with pytest.raises(ValueError, match=r"register: aten.relu.default already has a rule$"):
        register(aten.relu.default, rule)
    for target in (aten.relu, nn.ReLU, F.relu, "relu", None):
        with pytest.raises(TypeError, match="register: target must be an overload of an operator"):
            register(target, rule)
    with pytest.raises(TypeError, match="register: rule must be a function that takes a Call, got str"):
        register(torch.ops.tests.rectify.default, "fire")
    register(torch.ops.tests.rectify.default, rule)
    with pytest.raises(ValueError, match=r"^a mistake in it$"):
        convert(network(rectify), 8, example=IMAGES)
    RULES[torch.ops.tests.rectify.default] = lambda call: nn.Identity()
    with pytest.raises(TypeError, match="a rule must return the result of a method of its call, got Identity from"):
        convert(network(rectify), 8, example=IMAGES)
