"""ANNs that can be converted, and what the tests of their conversion share."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exact import generator
from tandem_cuda import IF, convert


class Net(nn.Module):
    """These modules, and ``run(net, x)`` as forward."""

    def __init__(self, run, **modules):
        super().__init__()
        self.run = run
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.run(self, x)


class Pair(Net):
    """With two inputs."""

    def forward(self, x, y):
        return self.run(self, x, y)


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Dropout2d(0.1),
        nn.Flatten(),
        nn.Linear(32, 12),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(12, 5),
    )


class Functional(nn.Module):
    """As in PyTorch's tutorials: functions, methods, a view, pooling in front of the ReLU."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3)
        self.drop = nn.Dropout2d(0.5)
        self.fc1 = nn.Linear(32, 12)
        self.fc2 = nn.Linear(12, 5)
        self.register_buffer("mean", torch.tensor(0.25))

    def forward(self, x):
        x = F.relu(self.conv1((x - self.mean) / 0.5))
        x = torch.relu(F.max_pool2d(self.drop(self.conv2(x)), kernel_size=2, padding=1))
        x = F.avg_pool2d(x, 2)
        x = x.view(x.size(0), -1)
        x = F.dropout(self.fc1(x).relu_(), 0.25, training=self.training)
        return F.log_softmax(self.fc2(x), dim=1)


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride, out_of_place):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.out_of_place = out_of_place
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            # One tap and so few channels would meet a fault of oneDNN, which writes past its memory (oneDNN#6035).
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, stride, stride), nn.BatchNorm2d(outputs))

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.out_of_place:
            out = torch.add(self.shortcut(x), out)
        else:
            out += self.shortcut(x)
        return self.relu(out)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.blocks = nn.Sequential(Block(6, 6, 1, False), Block(6, 8, 2, True))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x).relu()).mean((2, 3)))


class OneDimension(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Flatten(2),
            nn.Conv1d(2, 6, 3, stride=2),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.Conv1d(6, 4, 3, padding="same"),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(124, 5),
        )


class Decoder(nn.Module):
    """Whose parts have the names that the spiking network wants for its own."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(2, 6, 3, stride=2, padding=1, padding_mode="reflect"), nn.ReLU())
        self.decode = nn.Sequential(
            nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1)
        )
        self.relu = nn.Sigmoid()

    def forward(self, x):
        return self.relu(self.decode(self.encode(x)))


class TwoHeads(nn.Module):
    """Layers that no input reaches, two outputs, a sum of activations without a ReLU."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.unused = nn.BatchNorm1d(3)
        self.heads = nn.ModuleList([nn.Linear(4, 5), nn.Linear(4, 2)])

    def forward(self, x):
        x = torch.flatten(self.pool(F.relu(self.a(x)) + self.b(x).relu()), 1)
        return self.heads[0](x), self.heads[1](x)


MODELS = {"cnn": cnn, **{c.__name__: c for c in (Functional, Residual, OneDimension, Decoder, TwoHeads)}}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def per_layer(neuron=IF()):
    """Settings of a calibration that finds one level for each layer and leaves biases as they are."""
    return {"neuron": neuron, "correct_bias": False}


def made(make, **named):
    torch.manual_seed(0)
    ann = make()
    return ann, convert(ann, 8, **{"example": inputs(1), **named})


def inputs(n=6, seed=0):
    return 2 * torch.rand(n, 2, 8, 8, generator=generator(seed))


def whole(outputs):
    """Outputs as one tensor."""
    return torch.cat([y.flatten(1) for y in (outputs if isinstance(outputs, tuple) else (outputs,))], 1)


def kinds(snn):
    return [type(m) for m in snn.snn.modules() if type(m).__module__.startswith("tandem_cuda")]


# --- hybrids ---------------------------------------------------------------------------------------------------------


def trained(make):
    """An ANN in eval mode whose batch norms have statistics."""
    torch.manual_seed(0)
    ann = make()
    for seed in range(30):
        ann(inputs(32, seed % 3))
    return ann.eval()


def assert_no_leak(snn):
    """Nothing but the first layers spikes."""
    spiking = [name for name, m in snn.snn.named_modules() if hasattr(m, "neuron") and ".branches." not in name]
    assert sorted(spiking) == sorted(snn.spiking_layers)
