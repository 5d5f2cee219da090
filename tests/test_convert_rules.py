"""The registry of conversion rules: rules of one's own, those of PyTorch's layers, and what must not be registered."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anns import Net
from tandem_cuda import SpikeTrain, TandemConv2d, TandemLinear, TandemNetwork, convert
from tandem_cuda.convert import rules
from tandem_cuda.convert.rules import Call, Unconvertible, WeightRule, register

pytestmark = pytest.mark.usefixtures("restored_rules")

DOCS = Path(__file__).parents[1] / "docs" / "adding_a_rule.md"


def conv(inputs: int = 1, kind: type[nn.Conv2d] = nn.Conv2d) -> nn.Conv2d:
    """With dyadic weights, whose sums are exact."""
    made = kind(inputs, 4, 3, padding=1)
    generator = torch.Generator().manual_seed(inputs)
    with torch.no_grad():
        for x in made.parameters():
            x.copy_(torch.randint(-4, 6, x.shape, generator=generator) / 4)
    return made


def images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 8, shape, generator=torch.Generator().manual_seed(0)) / 8


def read_out(features: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 3))


def with_head(*layers: nn.Module) -> nn.Sequential:
    """For images of 8 x 8, with a layer behind the layers given."""
    torch.manual_seed(0)
    return nn.Sequential(conv(), *layers, conv(4), nn.ReLU(), read_out(4 * 64))


def same_network(ann: nn.Module, other: nn.Module, **settings: object) -> TandemNetwork:
    """Both convert to networks of the same output; the first of them."""
    other.load_state_dict(dict(zip(other.state_dict(), ann.state_dict().values(), strict=True)))
    snn, want, x = convert(ann, 8, **settings), convert(other, 8, **settings), images(2, 1, 8, 8)
    torch.testing.assert_close(snn(x), want(x), rtol=0, atol=0)
    assert snn(x).std() > 0
    return snn


# --- rules of one's own ----------------------------------------------------------------------------------------------


@pytest.fixture
def documented() -> dict[str, object]:
    """What the worked example in the documentation defines."""
    (block,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(block, names)
    return names


def test_documented_example(documented):
    snn, ann = documented["snn"], documented["cylinder"]
    for module in (ann[0], ann[3]):
        module.load_state_dict(conv(module.in_channels).state_dict())
    x = images(2, 1, 8, 8)
    first = snn.snn.get_submodule("0")(snn.snn.encode(x))
    second = snn.snn.get_submodule("3")
    wide = F.pad(first.to_dense().flatten(0, 1), (1, 1, 0, 0), "circular").unflatten(0, (8, 2))
    want = second(SpikeTrain.from_dense(wide))
    assert 0 < want.firing_rate() < 1
    torch.testing.assert_close(snn(x), ann[6](want.count.flatten(1)), rtol=0, atol=0)
    snn(x).square().sum().backward()
    assert ann[0].weight.grad.abs().sum() > 0


def test_documented_example_in_front_of_the_relu(documented):
    def net(*layers: nn.Module) -> nn.Sequential:
        return nn.Sequential(conv(), *layers, conv(4), nn.ReLU(), read_out(4 * 80))

    pad = nn.CircularPad2d((1, 1, 0, 0))
    same_network(net(pad, nn.ReLU()), net(nn.ReLU(), pad), mode="constant")


def test_documented_example_refuses(documented):
    with pytest.raises(ValueError, match=r"1 \(CircularPad2d\): pad left and right alone"):
        convert(nn.Sequential(conv(), nn.CircularPad2d(1), nn.ReLU(), conv(4)), 8)


def test_function_of_torch():
    register(F.softplus, rules.relu_rule)

    def net(activation):
        return Net(lambda n, x: n.head(activation(n.b(activation(n.a(x))))), a=conv(), b=conv(4), head=read_out(256))

    same_network(net(F.softplus), net(F.relu))


def test_method_of_tensor():
    register(torch.Tensor.abs, rules.relu_rule)

    def net(method):
        def run(n, x):
            return n.head(getattr(n.b(getattr(n.a(x), method)()), method)())

        return Net(run, a=conv(), b=conv(4), head=read_out(256))

    same_network(net("abs"), net("relu"))


def positive(x):
    """Cannot be traced: control flow depends on the values."""
    return F.relu(x) if x.sum() > -1e9 else x


class UsesPositive(nn.Module):
    def forward(self, x):
        return positive(x)


def test_function_of_ones_own():
    with pytest.raises(ValueError, match=r"must not depend on the values of tensors, .*, or register a rule for"):
        convert(with_head(UsesPositive()), 8)
    register(positive, rules.relu_rule)
    same_network(with_head(UsesPositive()), with_head(nn.ReLU()))


class Positive(nn.Module):
    """As above."""

    def forward(self, x):
        return positive(x)


def test_class_is_traced_as_one_call():
    register(Positive, rules.relu_rule)
    same_network(with_head(Positive()), with_head(nn.ReLU()))

    class Derived(Positive):
        pass

    with pytest.raises(ValueError, match=r"must not depend on the values of tensors, .*, or register a rule for"):
        convert(with_head(Derived()), 8)


class Mean(nn.Module):
    def forward(self, x):
        return positive(F.adaptive_avg_pool2d(x, 4))


@pytest.mark.parametrize("calibrated", [False, True])
def test_like_another_module(calibrated):
    register(Mean, lambda call: call.like(nn.AdaptiveAvgPool2d(4)))

    def net(mean: nn.Module) -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(conv(), nn.ReLU(), mean, conv(4), nn.ReLU(), read_out(4 * 16))

    same_network(net(Mean()), net(nn.AdaptiveAvgPool2d(4)), calibrate=images(4, 1, 8, 8) if calibrated else None)


@pytest.mark.parametrize("module", [nn.Linear(2, 2), nn.Tanh()], ids=str)
def test_like_nothing_known(module):
    register(Mean, lambda call: call.like(module))
    with pytest.raises(TypeError, match=r"like: module must be of a class with a rule and without weights, got "):
        convert(nn.Sequential(conv(), nn.ReLU(), Mean(), conv(4), nn.ReLU(), read_out(64)), 8)


class Add(nn.Module):
    def forward(self, x, y):
        return x + y if x.sum() > -1e9 else x


def test_several_inputs():
    register(Add, Call.add)

    def net(add):
        def run(n, x):
            x = F.relu(n.a(x))
            return n.head(F.relu(n.merge(n.b(x), n.c(x))))

        return Net(run, a=conv(), b=conv(4), c=conv(4), merge=add, head=read_out(256))

    snn = same_network(net(Add()), net(torch.add))
    assert snn.spiking_layers == ("a", "add")


def test_real_inputs_need_no_rule():
    """In front of the first weight layer the ANN's module stays."""
    register(nn.CircularPad2d, pytest.fail)
    ann = nn.Sequential(nn.CircularPad2d(1), conv(), nn.ReLU(), read_out(4 * 64))
    assert convert(ann, 8).snn.get_submodule("0") is ann[0]


# --- weight layers ---------------------------------------------------------------------------------------------------


class Square(nn.Conv2d):
    """With arguments of its own."""

    def __init__(self, inputs, outputs, size, padding):
        super().__init__(inputs, outputs, size, padding=padding)

    def forward(self, x):
        return super().forward(x)


def test_weight_layers():
    def net(kind: type[nn.Conv2d]) -> nn.Sequential:
        torch.manual_seed(0)
        layers = conv(1, kind), nn.BatchNorm2d(4), nn.ReLU(), conv(4, kind), nn.ReLU(), read_out(4 * 64)
        return nn.Sequential(*layers)

    with pytest.raises(ValueError, match=r"use nn.Conv2d, .*or register a WeightRule for Square"):
        convert(net(Square), 8)
    register(Square, WeightRule(TandemConv2d, nn.BatchNorm2d))
    ann = net(Square)
    snn = same_network(ann, net(nn.Conv2d))
    assert snn.spiking_layers == ("0", "3")
    assert snn.snn.get_submodule("0").weight is ann[0].weight
    ann[0].bias = None
    with pytest.raises(RuntimeError, match=r"0\.bias"):
        snn(images(2, 1, 8, 8))


def test_weight_layers_say_which_norm():
    register(Square, WeightRule(TandemConv2d, nn.BatchNorm1d))
    with pytest.raises(ValueError, match=r"1 \(BatchNorm2d\): use nn.BatchNorm1d after 0"):
        convert(nn.Sequential(conv(1, Square), nn.BatchNorm2d(4), nn.ReLU(), conv(4)), 8)


# --- rules that are wrong --------------------------------------------------------------------------------------------


def test_a_second_rule():
    def first(call: Call) -> object:
        return call.input

    def second(call: Call) -> object:
        return call.fire()

    register(nn.ELU, first)
    with pytest.raises(
        ValueError,
        match=r"register: torch.*\.ELU already has the rule .*<locals>\.first, got .*<locals>\.second$",
    ):
        register(nn.ELU, second)
    with pytest.raises(ValueError, match=r"ReLU already has the rule tandem_cuda\..*\.relu_rule, got .*first$"):
        register(nn.ReLU, first)
    with pytest.raises(ValueError, match=r"rule WeightRule\(TandemConv2d, BatchNorm2d\), got .*first$"):
        register(nn.Conv2d, first)
    with pytest.raises(ValueError, match=r"relu already has the rule"):
        register(torch.Tensor.relu, first)
    assert rules.RULES[nn.ELU] is first


@pytest.mark.parametrize(
    "target",
    ["relu", nn.ReLU(), int, None, 3, partial(F.relu, inplace=True)],
    ids=["name", "module", "type", "none", "number", "partial"],
)
def test_rules_for_what_is_never_called(target):
    with pytest.raises(TypeError, match=r"register: target must be a class of nn.Module or a function, got "):
        register(target, rules.relu_rule)


@pytest.mark.parametrize("rule", [None, nn.ReLU, nn.ReLU(), "fire"], ids=str)
def test_rules_that_are_none(rule):
    with pytest.raises(TypeError, match="register: rule must be a function or a WeightRule, got "):
        register(nn.ELU, rule)


@pytest.mark.parametrize("target", [nn.Conv3d, nn.Linear, Positive, F.conv2d], ids=lambda x: x.__name__)
def test_weight_rules_for_other_layers(target):
    with pytest.raises(
        TypeError, match=r"target of a WeightRule must be the torch.nn base class of TandemConv2d or .*, got "
    ):
        register(target, WeightRule(TandemConv2d, nn.BatchNorm2d))


@pytest.mark.parametrize("what", [None, 3, nn.Identity()], ids=str)
def test_rules_that_return_something_else(what):
    register(nn.ELU, lambda call: what)
    with pytest.raises(TypeError, match=rf"a rule must return .*, got {type(what).__name__} from .*<lambda>"):
        convert(with_head(nn.ELU()), 8)


def test_errors_in_rules_are_not_swallowed():
    def rule(call: Call) -> object:
        raise ValueError("a mistake in it")

    register(nn.ELU, rule)
    with pytest.raises(ValueError, match=r"^a mistake in it$"):
        convert(with_head(nn.ELU()), 8)


def test_refusals_are_listed_together():
    def rule(call: Call) -> object:
        raise Unconvertible("use nn.ReLU", "use nn.ReLU in each")

    register(nn.ELU, rule)
    ann = nn.Sequential(conv(), nn.ELU(), conv(4), nn.ELU(), nn.Sigmoid(), conv(4), nn.ReLU(), read_out(4 * 64))
    with pytest.raises(ValueError, match=r"(?s)2 ELU: use nn.ReLU in each\n +1, 3\n.*4 \(Sigmoid\)"):
        convert(ann, 8)


def test_parameters_that_nothing_would_save():
    spiking = Net(lambda n, x: x, x=nn.Parameter(torch.zeros(())))
    register(nn.CircularPad2d, lambda call: call.apply(spiking))
    with pytest.raises(ValueError, match=r"2 \(Net\): build it from parameters and buffers of the ANN"):
        convert(with_head(nn.ReLU(), nn.CircularPad2d(0)), 8)


class NormAndReLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return positive(self.norm(x))


def test_parts_of_a_module():
    """Batch norm of the ANN's own is folded; that of a rule's would be trained in one twin alone."""
    rule = {"norm": lambda call: call.module.norm}
    register(NormAndReLU, lambda call: call.like(rule["norm"](call)))
    ann, other = with_head(NormAndReLU(), nn.ReLU()), with_head(nn.BatchNorm2d(4), nn.ReLU())
    same_network(ann, other)
    rule["norm"] = lambda call: nn.BatchNorm2d(4)
    with pytest.raises(ValueError, match=r"1 \(NormAndReLU\): its rule must put its parameters into the spiking twin"):
        convert(ann, 8)


@pytest.mark.parametrize("calibrated", [False, True])
def test_linear_layers_behind_an_average(calibrated):
    """Which are folded into each other in a calibrated network."""

    class Linear(nn.Linear):
        pass

    register(Linear, WeightRule(TandemLinear, nn.BatchNorm1d))

    def net(kind: type[nn.Linear]) -> nn.Sequential:
        torch.manual_seed(0)
        layers = conv(), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), kind(64, 16), nn.ReLU(), nn.Linear(16, 3)
        return nn.Sequential(*layers)

    same_network(net(Linear), net(nn.Linear), calibrate=images(4, 1, 8, 8) if calibrated else None)


def test_modules_in_front_of_the_relu():
    """What is done to currents cannot silently be done to spikes instead."""
    register(nn.CircularPad2d, lambda call: call.apply(nn.Identity()))
    net = nn.Sequential(conv(), nn.CircularPad2d(0), nn.ReLU(), conv(4), nn.ReLU(), read_out(4 * 64))
    with pytest.raises(ValueError, match=r"1 \(CircularPad2d\): put a ReLU before it: its input has negative values"):
        convert(net, 8)


# --- PyTorch's own ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "layers"),
    [
        (nn.MaxPool2d, [nn.ReLU(), nn.MaxPool2d(3, 1, 1)]),
        (nn.AvgPool2d, [nn.ReLU(), nn.AvgPool2d(3, 1, 1)]),
        (nn.Dropout, [nn.ReLU(), nn.Dropout()]),
        (nn.BatchNorm2d, [nn.BatchNorm2d(4), nn.ReLU()]),
        (nn.ReLU, [nn.ReLU()]),
        (nn.Conv2d, [nn.ReLU()]),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_there_is_nothing_beside_the_registry(target, layers):
    convert(with_head(*layers), 8)
    del rules.RULES[target]
    with pytest.raises(ValueError, match=target.__name__):
        convert(with_head(*layers), 8)


def test_dropout_of_an_average_that_is_used_twice():
    """The same average goes into weights as the spikes of its windows, and into a sum as spikes of its own neurons."""

    def run(n, x):
        x = n.drop(F.avg_pool2d(F.relu(n.a(x)), 2))
        return n.head(F.relu(n.b(x) + x))

    ann = Net(run, a=conv(), b=conv(4), drop=nn.Dropout2d(0.5), head=read_out(64))
    snn = convert(ann, 8, calibrate=images(4, 1, 8, 8))
    copies = sorted(module.copies for name, module in snn.snn.named_modules() if name.startswith("drop"))
    assert copies == [1, 4]
    snn(images(4, 1, 8, 8))
