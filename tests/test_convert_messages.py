"""What convert says about networks that cannot be traced: all at once, in the user's words, with what to do."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exact import generator
from tandem_cuda import convert

IMAGES = torch.rand(4, 3, 8, 8, generator=generator(0))


class Net(nn.Module):
    """``step`` is something between two layers."""

    def __init__(self, step, **modules):
        super().__init__()
        self.first, self.last, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)
        self.step = step
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        x = self.step(self, F.relu(self.first(x)))
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


class Step(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.run = run

    def forward(self, x):
        return self.run(x)


@torch.jit.script
def scripted(x):
    return torch.relu(x)


def written(x):
    x[:, 0] = 0
    return x


def one_by_one(x):
    return torch.cat([image[None] for image in x])


def in_numpy(x):
    return x * float(np.sqrt(x.size(1)))


def with_zeros(x):
    return x + torch.zeros(x.size(0), 8, x.size(2), x.size(3))


def on_values(x):
    return x if x.mean() > 0 else -x


def on_item(x):
    return x if x.max().item() > 0 else -x


def on_samples(x):
    return x if x.size(0) > 1 else -x


def failing(x):
    raise KeyError("no such thing")


def on_size(x):
    return x if x.size(2) > 4 else -x


ODD = {
    scripted: "cannot be traced: use functions of torch that return new tensors",
    written: r"`x\[:, 0\] = 0` \(test_convert_messages.py, line \d+\) cannot be traced: use functions of torch",
    one_by_one: r"must not depend on the batch size, as in `return torch.cat\(\[image\[None\] for image in x\]\)`",
    in_numpy: r"`return x \* float\(np.sqrt\(x.size\(1\)\)\)` \(.*\) cannot be traced: use functions of torch",
    with_zeros: r"`return x \+ torch.zeros\(x.size\(0\), 8, x.size\(2\), x.size\(3\)\)` \(.*\) cannot be traced",
    on_values: r"must not depend on the values of tensors, as in `return x if x.mean\(\) > 0 else -x` .*: use oper",
    on_item: r"must not depend on the values of tensors, as in `return x if x.max\(\).item\(\) > 0 else -x`",
    on_samples: r"must not depend on the batch size, as in `return x if x.size\(0\) > 1 else -x`",
}
OF_THE_TRACE = (
    "Proxy",
    "_Answers",
    "symbolic",
    "aten.",
    "__array",
    "positional argument",
    "TorchScript",
    "item assign",
)


@pytest.mark.parametrize("example", [None, IMAGES])
@pytest.mark.parametrize(("step", "message"), ODD.items(), ids=[step.__name__ for step in ODD])
def test_the_line_is_named(step, message, example):
    """Both in the network's own forward and in the forward of a module, which a rule can replace."""
    with pytest.raises(ValueError, match=message) as of_network:
        convert(Net(lambda n, x: step(x)), 8, example=example)
    with pytest.raises(ValueError, match=rf"\n  block \(Step\): .*{message}.*, or register a rule for ") as of_module:
        convert(Net(lambda n, x: n.block(x), block=Step(step)), 8, example=example)
    for error in (of_network, of_module):
        assert not [word for word in OF_THE_TRACE if word in str(error.value)]
    assert "rule" not in str(of_network.value)


def test_errors_of_the_network_itself():
    step = Net(lambda n, x: failing(x))
    message = r"`raise KeyError\(\"no such thing\"\)` \(.*\) cannot be traced \(KeyError: 'no such thing'\)"
    with pytest.raises(ValueError, match=message):
        convert(step, 8)
    with pytest.raises(ValueError, match=r"with any number of samples, but for .* its forward raises KeyError"):
        convert(step, 8, example=IMAGES)


def lines(make, **settings):
    with pytest.raises(ValueError, match="these are not:\n") as error:
        convert(make(), 8, **settings)
    return str(error.value).splitlines()[1:]


def gate(n, x):
    return x * torch.sigmoid(n.up(F.relu(n.down(F.adaptive_avg_pool2d(x, 1)))))


def several(n, x):
    """Control flow on sizes, a size as an argument, squeeze-and-excitation, and an activation."""
    x = on_size(x)
    return n.act(F.avg_pool2d(gate(n, x), x.size(3) // 4))


MODULES = {"act": nn.SiLU, "up": lambda: nn.Conv2d(2, 8, 1), "down": lambda: nn.Conv2d(8, 2, 1)}


def net_of_several(step=several):
    return Net(step, **{name: make() for name, make in MODULES.items()}).eval()


def test_everything_is_listed_at_once():
    """Whoever follows all advice gets a network that converts: no second list."""
    first, *rest = lines(net_of_several)
    assert first.startswith("  forward of Net: pass example=, an input of ann, ")
    assert "`return x if x.size(2) > 4 else -x`" in first
    assert [line.split(":")[0].split(" (")[0].strip() for line in rest] == ["mul", "act"]
    assert "gates='analogue'" in rest[0]
    assert "replace={nn.SiLU: nn.ReLU}" in rest[1]
    followed = {"gates": "analogue", "replace": {nn.SiLU: nn.ReLU}, "example": IMAGES}
    with pytest.warns(UserWarning, match="wants fine-tuning"):
        snn = convert(net_of_several(), 8, **followed)
    assert snn(IMAGES).isfinite().all()
    assert [*rest] == lines(net_of_several, example=IMAGES)


def test_sizes_and_what_follows_them():
    """A size as an argument does not hide what is behind it, nor what depends on it."""

    def run(n, x):
        x = n.act(F.avg_pool2d(x, x.size(3) // 4))
        return x.view(x.size(0), x.size(3), x.size(2), -1).transpose(1, 3)

    found = lines(lambda: net_of_several(run))
    assert "pass example=" in found[0]
    assert any("act (SiLU)" in line for line in found)
    assert found[1:] == lines(lambda: net_of_several(run), example=IMAGES)


def test_modules_do_not_hide_each_other():
    def run(n, x):
        return n.act(n.three(n.two(n.one(x))))

    def make():
        return Net(run, one=Step(on_size), two=Step(on_values), three=Step(written), act=nn.SiLU())

    found = lines(make)
    assert [line.split(" (")[0].strip() for line in found] == ["one", "two", "three", "act"]
    assert "pass example=" in found[0]
    assert found[1:] == lines(make, example=IMAGES)


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (
            lambda act: nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), act, nn.Flatten(), nn.Linear(4 * 576, 5)),
            (1, 28, 28),
        ),
        (lambda act: nn.Sequential(nn.Linear(12, 8), nn.ReLU(), act, nn.Linear(8, 5)), (12,)),
        (
            lambda act: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), act, nn.Linear(8, 5)),
            (1, 8, 8),
        ),
        (lambda act: nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), act, nn.Conv1d(4, 5, 3)), (2, 32)),
        (lambda act: nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU(), act, nn.Conv3d(4, 5, 3)), (2, 8, 16, 16)),
    ],
)
def test_examples_are_guessed(net, shape, caplog, capfd):
    """Of images, rows, lines and volumes."""

    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net(nn.SiLU())

        def forward(self, x):
            if x.shape[-1] < 2:
                raise ValueError("too small")
            return self.net(x)

    found = lines(Sized)
    assert len(found) == 2
    assert found[0].startswith("  forward of Sized: pass example=")
    assert "(SiLU)" in found[1]
    assert not caplog.records
    assert not any(capfd.readouterr())
    with pytest.warns(UserWarning, match="wants fine-tuning"):
        convert(Sized(), 8, example=torch.rand(2, *shape), replace={nn.SiLU: nn.ReLU})


def test_nothing_is_guessed_for_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)

        def forward(self, x, y):
            return self.b(F.silu(self.a(x) if x.size(2) > 4 else self.a(y)))

    with pytest.raises(ValueError, match=r"must be traceable by torch.fx, but Two is not: pass example="):
        convert(Two(), 8)


@pytest.mark.parametrize("step", [on_size, F.relu])
def test_examples_that_are_no_inputs(step):
    message = (
        r"ann must take inputs of the example's sizes, .* for \[\d, 4, 8, 8\] its forward raises RuntimeError: Given"
    )
    with pytest.raises(ValueError, match=message):
        convert(Net(lambda n, x: step(x)), 8, example=torch.rand(1, 4, 8, 8))


def test_gates_are_listed_beside_an_activation_before_them():
    """They multiply what has been refused already."""

    def run(n, x):
        return gate(n, F.relu(n.b(F.silu(x))))

    def made():
        up, down = MODULES["up"](), MODULES["down"]()
        return Net(run, b=nn.Conv2d(8, 8, 1), up=up, down=down).eval()

    found = [line for line in lines(made, example=IMAGES) if not line.startswith("   ")]
    assert len(found) == 2
    assert "replace={'silu': nn.ReLU}" in found[0]
    assert "gates='analogue'" in found[1]
    with pytest.warns(UserWarning, match="wants fine-tuning"):
        convert(made(), 8, example=IMAGES, replace={"silu": nn.ReLU}, gates="analogue")
