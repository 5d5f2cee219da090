"""Networks to freeze and their inputs."""

import pytest
import torch
from torch import fx, nn

from exact import generator, train
from tandem_cuda import IF, Decode, Encode, SpikeTrain, TandemConv2d, TandemLinear, convert

pytest.importorskip("safetensors")


def result(out):
    """What a network returned, as tensors."""
    return (out.to_dense(), out.count) if isinstance(out, SpikeTrain) else (out,)


def randomised(net, seed=0):
    """Norms in any state, and enough current for neurons to fire."""
    torch.manual_seed(seed)
    for layer in net.modules():
        if hasattr(layer, "neuron"):
            fan_in = layer.weight[0].numel()
            nn.init.normal_(layer.weight, 0.5 / fan_in, 2 / fan_in**0.5)
        if getattr(layer, "norm", None) is not None:
            nn.init.uniform_(layer.norm.weight, -1.5, 1.5)
            nn.init.uniform_(layer.norm.bias, 0, 4)
            nn.init.uniform_(layer.norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.norm.running_var, 0.5, 2)
    return net


def small_network(mode="constant", norm="batch", neuron=IF(), time_steps=8, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    named = {"norm": norm, "neuron": neuron, "bias": bias}
    net = nn.Sequential(
        *([Encode(time_steps, mode)] if mode != "events" else []),
        TandemConv2d(2, 6, 3, padding=1, **named),
        nn.Sequential(TandemConv2d(6, 8, 3, stride=2, padding=1, **named), nn.Flatten()),
        TandemLinear(8 * 16, 20, **named),
        Decode(),
        nn.Dropout(),
        nn.Linear(20, 5),
    )
    return randomised(net).to(dtype).eval()


def input_of(mode, time_steps=8, batch=4, dtype=torch.float32, seed=1):
    if mode == "events":
        return SpikeTrain.from_dense(train(time_steps, batch, 2, 8, 8, seed=seed).to(dtype))
    return torch.randn(batch, 2, 8, 8, generator=generator(seed), dtype=dtype) * (4 if mode == "impulse" else 1)


def in_chunks(stream, sizes, x=None):
    """The last output of a stream run in chunks of these sizes, in turn; with x, spikes arrive chunk by chunk."""
    out, i = None, 0
    while stream.remaining:
        now = min(sizes[i % len(sizes)], stream.remaining)
        out = stream.advance(now if x is None else x.window(stream.done, stream.done + now))
        i += 1
    return out


MODES = ("constant", "impulse", "events")
every_mode = pytest.mark.parametrize("mode", MODES)


class Everything(nn.Module):
    """An ANN that converts into every kind of layer but one-dimensional convolutions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1, padding_mode="circular", bias=False), nn.BatchNorm2d(6))
        self.max = nn.MaxPool2d(2)
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.short = nn.Conv2d(6, 8, 3, 2, 1, bias=False)  # one tap would meet oneDNN#6035
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1, groups=2)
        self.mean, self.some = nn.AvgPool2d(3, 1, 1), nn.AdaptiveAvgPool2d((2, 3))
        self.drop, self.drop2d = nn.Dropout(), nn.Dropout2d()
        self.hidden, self.last = nn.Linear(36, 9), nn.Linear(9, 5)

    def forward(self, x):
        x = self.max(torch.relu(self.stem(x)))
        x = torch.relu(self.body(x) + self.short(x))
        x = self.mean(self.drop2d(torch.relu(self.second(x) + x)))
        x = torch.flatten(self.some(torch.relu(self.up(x))), 1)
        return self.last(self.drop(torch.relu(self.hidden(x))))


def line():
    return nn.Sequential(
        nn.Flatten(2), nn.Conv1d(2, 6, 3, 2), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 4, 3, padding="same"),
        nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(124, 5),
    )  # fmt: skip


def upwards():
    """Real input for a transposed convolution."""
    return nn.Sequential(
        nn.ConvTranspose2d(2, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 17 * 17, 5)
    )


def converted(make, mode="constant", time_steps=8, calibrated=False, dtype=torch.float32):
    torch.manual_seed(0)
    ann = make().to(dtype).eval()
    for layer in ann.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.uniform_(layer.bias, 0, 1)
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    x = input_of(mode, time_steps, dtype=dtype).count if mode == "events" else input_of(mode, dtype=dtype)
    mode = "spikes" if mode == "events" else mode
    calibrate = x if calibrated else None
    return convert(ann, time_steps, mode=mode, neuron=IF(), calibrate=calibrate, example=x)  # neurons that can stream


# --- the same as eval mode -------------------------------------------------------------------------------------------


def graph_of(net, calls):
    """A network that calls its modules so, {module: inputs}, as torch.fx writes it down."""
    graph = fx.Graph()
    values = {"x": graph.placeholder("x")}
    for name, inputs in calls.items():
        values[name] = graph.call_module(name, tuple(values[i] for i in inputs))
    graph.output(values[name])
    return fx.GraphModule(net, graph)


def graph_module(net):
    """A network with the calls of a Sequential."""
    names = [name for name, _ in net.named_children()]
    return graph_of(net, {name: (before,) for before, name in zip(["x", *names], names, strict=False)})


# --- files -----------------------------------------------------------------------------------------------------------


def paths_in(value, at=()):
    """Where the values of a JSON document stand."""
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths_in(item, (*at, key))
