"""Cases of conversions: near their ANN with many steps, frozen and saved to the bit, and never silently out of date.

After an edit of the ANN, the network must raise a RuntimeError or compute what a new conversion of the ANN does.
"""

import copy
import io
import pickle
import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils._pytree import tree_leaves

from tandem_cuda import IF, TandemLinear, convert, freeze, quantise
from tandem_cuda.convert import Calibration

from .draw import Draw, Mismatch

STEPS = 1024
TOLERANCE, INT8_TOLERANCE = 0.03, 0.1
"""Of the outputs' relative error at that many steps, where no level cuts anything off: with real and int8 weights."""


class Join(nn.Module):
    """Blocks side by side: their sum, or their values along the channels."""

    def __init__(self, how, *blocks):
        super().__init__()
        self.how, self.blocks = how, nn.ModuleList(blocks)

    def forward(self, x):
        values = [block(x) for block in self.blocks]
        if self.how == "cat":
            return torch.cat(values, 1)
        one, *others = values
        for other in others:
            one = one + other
        return F.relu(one) if self.how == "relu of sum" else one


class Scaled(nn.Module):
    """A constant factor and offset, attributes of the module."""

    def __init__(self, factor, offset):
        super().__init__()
        self.factor, self.offset = factor, offset

    def forward(self, x):
        return x * self.factor + self.offset


class InPlace(nn.Module):
    """Writes into its input, or into a part of a copy."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        if self.how == "relu_":
            return x.relu_()
        if self.how == "mul_":
            return x.mul_(0.5).add_(0.1)
        x = x.clone()
        x[:, 0] = x[:, -1]
        return x


class Gated(nn.Module):
    """A product of activations: a gate of each channel, or of each element."""

    def __init__(self, channels, dims, pooled):
        super().__init__()
        self.gate = nn.Conv2d(channels, channels, 1) if dims == 2 else nn.Linear(channels, channels)
        self.pooled = pooled and dims == 2

    def forward(self, x):
        return x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True) if self.pooled else x))


class LastNorm(nn.Module):
    """Layer norm over the channels of images."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Rows that attend to each other."""

    def __init__(self, features):
        super().__init__()
        self.qkv, self.out = nn.Linear(features, 3 * features), nn.Linear(features, features)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return x + self.out(F.scaled_dot_product_attention(q, k, v))


def analogue(draw, channels, dims):
    """A module whose calls have no spiking form, for images or rows of features."""
    norm = LastNorm(channels) if dims == 2 else nn.LayerNorm(channels)
    gates = [Gated(channels, dims, pooled) for pooled in (False, True)]
    return draw.one((nn.SiLU(), nn.GELU(), nn.Sigmoid(), norm, *gates, *([Attention(channels)] if dims == 1 else [])))


class Standardised(nn.Module):
    def forward(self, weight):
        axes = tuple(range(1, weight.dim()))
        return (weight - weight.mean(axes, keepdim=True)) / (weight.std(axes, keepdim=True, correction=0) + 0.1)


class Summed(nn.Module):
    """A weight plus a learned one, as in low-rank updates."""

    def __init__(self, like):
        super().__init__()
        self.other = nn.Parameter(0.1 * torch.randn(like.shape))

    def forward(self, weight):
        return weight + self.other


def compute_weights(draw, ann):
    """Let parametrizations compute the weight of a layer."""
    layer = draw.one([m for m in ann.modules() if isinstance(m, (nn.Conv2d, nn.Conv1d, nn.Linear))])
    how = draw.one(("weight norm", "spectral norm", "standardised", "summed"))
    if how == "weight norm":
        parametrizations.weight_norm(layer)
    elif how == "spectral norm":
        parametrizations.spectral_norm(layer)
    else:
        made = Standardised() if how == "standardised" else Summed(layer.weight)
        parametrize.register_parametrization(layer, "weight", made)


class Outputs(nn.Module):
    """Two outputs: the network's own, and what a further layer makes of it."""

    def __init__(self, net):
        super().__init__()
        self.net, self.other = net, nn.Linear(4, 3)

    def forward(self, x):
        y = self.net(x)
        return {"classes": y, "others": (self.other(y.relu()), 2 * y)}


def activation(draw):
    return draw.one((nn.ReLU, nn.ReLU, nn.ReLU, nn.ReLU6, lambda: nn.Hardtanh(0.0, 2.0)))()


def block(draw, inputs, outputs):
    kernel = draw.one((1, 3))
    groups = draw.one([g for g in (1, 1, 2) if inputs % g == outputs % g == 0])
    layers = [nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, groups=groups, bias=draw.chance(0.6))]
    layers += [nn.BatchNorm2d(outputs)] if draw.chance(0.4) else []
    layers += [activation(draw)] if draw.chance(0.8) else []
    return nn.Sequential(*layers)


def pool(draw):
    kernel = draw.one((2, 3))
    if draw.chance(0.3):
        return nn.MaxPool2d(kernel, 2)
    return nn.AvgPool2d(kernel, 2, divisor_override=draw.one((None, None, 1, 2, kernel**2, 12)))


def network(draw):
    """An ANN for images [N, 1 or 2, 8, 8], in eval mode."""
    inputs = channels = draw.int(1, 2)
    layers = []
    for _ in range(draw.int(1, 4)):
        outputs = draw.one((2, 3, 4, 6))
        how = draw.one(("", "", "cat", "sum", "relu of sum"))
        if how == "":
            layers.append(block(draw, channels, outputs))
        elif how == "cat":
            layers.append(Join(how, block(draw, channels, outputs), block(draw, channels, 2)))
            outputs += 2
        else:
            layers.append(Join(how, block(draw, channels, outputs), block(draw, channels, outputs)))
        channels = outputs
        if draw.chance(0.15):
            layers.append(nn.BatchNorm2d(channels))
        if draw.chance(0.15):
            layers.append(Scaled(draw.one((0.5, 1.5, -1.0)), draw.one((0.0, 0.1))))
        layers.append(analogue(draw, channels, 2) if draw.chance(0.15) else nn.ReLU())
        if draw.chance(0.1):
            layers.append(InPlace(draw.one(("relu_", "mul_", "part"))))
        if (
            len(layers) < 8
            and draw.chance(0.4)
            and sum(isinstance(x, (nn.AvgPool2d, nn.MaxPool2d)) for x in layers) < 2
        ):
            layers.append(pool(draw))
        if draw.chance(0.2):
            layers.append(nn.Dropout(0.3))
    layers.append(nn.AdaptiveAvgPool2d(1) if draw.chance(0.3) else nn.Identity())
    layers += [nn.Flatten(), nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, 4)]
    ann = nn.Sequential(*layers).eval()
    ann(torch.rand(2, inputs, 8, 8))
    ann = finished(draw, ann)
    with torch.no_grad():
        for module in ann.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(-1, 2)
    return ann, torch.rand(16, inputs, 8, 8)


def finished(draw, ann):
    """The network with computed weights or several outputs, now and then."""
    if draw.chance(0.2):
        compute_weights(draw, ann)
    return (Outputs(ann) if draw.chance(0.15) else ann).eval()


def linear_block(draw, rows, inputs, outputs):
    layers = [nn.Linear(inputs, outputs, bias=draw.chance(0.6))]
    layers += [nn.BatchNorm1d(rows)] if draw.chance(0.15) else []
    layers += [activation(draw)] if draw.chance(0.4) else []
    return nn.Sequential(*layers)


def network_of_rows(draw):
    """An ANN for rows of features [N, L, F], in eval mode. L and F are often alike, which hides mistakes."""
    sizes = draw.one(((4,), (6,), (2, 4), (3, 6), (2, 3, 4)))
    rows, inputs = draw.one(sizes), draw.one(sizes)
    length, features, layers = rows, inputs, []
    for _ in range(draw.int(1, 3)):
        outputs, how = draw.one(sizes), draw.one(("", "", "cat", "sum", "relu of sum", "convolution"))
        if how == "":
            layers.append(linear_block(draw, length, features, outputs))
        elif how == "convolution":
            outputs, channels = features, draw.one(sizes)
            layers.append(nn.Conv1d(length, channels, 3, padding=1))
            length = channels
        else:
            layers.append(Join(how, *(linear_block(draw, length, features, outputs) for _ in range(2))))
            length *= 2 if how == "cat" else 1
        features = outputs
        layers += [Scaled(draw.one((0.5, 1.5, -1.0)), draw.one((0.0, 0.1)))] if draw.chance(0.15) else []
        layers += [nn.ReLU()] if draw.chance(0.3) else []
        layers += [analogue(draw, features, 1)] if draw.chance(0.15) else []
        layers += [nn.Dropout(0.3)] if draw.chance(0.2) else []
    if draw.chance(0.5):
        layers.append(nn.Flatten())
        features *= length
    if draw.chance(0.5):
        layers += [nn.Linear(features, 5), nn.ReLU()]
        features = 5
    ann = finished(draw, nn.Sequential(*layers, nn.Linear(features, 4)))
    with torch.no_grad():
        for module in ann.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(-1, 2)
    return ann, torch.rand(16, rows, inputs)


def values(outputs):
    """All outputs in a row."""
    return torch.cat([x.flatten(1) for x in tree_leaves(outputs)], 1)


def agree(got, want, network):
    """Whether outputs are equal, but for a rounding of torch's own Linear.

    Its product of an input that is not contiguous is another one if the weight requires a gradient.
    """
    own = [m for m in network.modules() if isinstance(m, nn.Linear) and not isinstance(m, TandemLinear)]
    if own and want.numel():
        return torch.allclose(got, want, rtol=1e-5, atol=1e-6 * float(want.abs().max()))
    return torch.equal(got, want)


def error(snn, ann, x):
    with torch.no_grad():
        want = values(ann(x.clone()))
        return float((values(snn(x)) - want).norm() / want.norm().clamp(min=1e-6))


# ---- What may happen to an ANN after its conversion; each returns the input for afterwards


def _some(draw, ann, *kinds):
    """A module of one of these classes, and its name; None if there is none."""
    found = [(name, module) for name, module in ann.named_modules() if isinstance(module, kinds)]
    return draw.one(found) if found else None


def replaced(draw, ann, snn, x):
    found = _some(draw, ann, nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.AvgPool2d, nn.MaxPool2d, nn.Identity, nn.BatchNorm2d)
    if found is None:
        return x
    name, old = found
    parent, _, key = name.rpartition(".")
    new = draw.one((nn.ReLU(), nn.Hardtanh(0.0, 0.3), nn.Identity(), copy.deepcopy(old)))
    setattr(ann.get_submodule(parent), key, new.eval())
    return x


def set_differently(draw, ann, snn, x):
    pools = ("kernel_size", 2), ("stride", 2), ("divisor_override", 3)
    others = ("p", 0.5), ("max_val", 0.7), ("eps", 0.1), ("momentum", 0.3), ("inplace", True)
    own = ("factor", 0.25), ("offset", 0.2), ("how", "sum"), ("unused", 3)
    name, value = draw.one((*pools, *others, *own))
    plain = (module for module in ann.modules() if name != "kernel_size" or not hasattr(module, "weight"))
    having = [module for module in plain if name in vars(module)] or [ann]
    setattr(draw.one(having), name, value)
    return x


def overridden(draw, ann, snn, x):
    _, module = _some(draw, ann, nn.Conv2d, nn.Linear, nn.ReLU, nn.AvgPool2d, Join)
    forward = module.forward
    module.forward = lambda *inputs: 1.5 * forward(*inputs)
    return x


def moved(draw, ann, snn, x):
    dtypes = draw.one(((torch.float64,), (torch.float64, torch.float32), (torch.float32,)))
    for dtype in dtypes:
        draw.one((ann, snn)).to(dtype)
    return x.to(dtypes[-1])


def converted_again(draw, ann, snn, x):
    weights = None if snn.levels is None or not draw.chance(0.5) else "int8"
    if next(ann.parameters()).dtype == torch.float32:
        convert(ann, draw.one((2, 4)), calibrate=2 * x, weights=weights)
    return x


def quantised(draw, ann, snn, x):
    if next(ann.parameters()).dtype == torch.float32:
        quantise(draw.one((ann, snn, snn.snn)), draw.one((2, 4, 8)))
    return x


def pruned(draw, ann, snn, x):
    modules = draw.one((ann, snn.snn)).modules()
    layers = [module for module in modules if getattr(module._parameters.get("weight"), "ndim", 0) > 1]
    if layers:
        prune.l1_unstructured(draw.one(layers), "weight", 0.5)
    return x


def loaded(draw, ann, snn, x):
    state = {name: value * 0.9 if value.is_floating_point() else value for name, value in ann.state_dict().items()}
    draw.one((ann, snn)).load_state_dict(state, assign=draw.chance(0.3))
    return x


def copied(draw, ann, snn, x):
    return x


EDITS = (replaced, set_differently, overridden, moved, converted_again, quantised, pruned, loaded, copied)


def again(ann, snn, how):
    """A new conversion of the ANN as it is now, with the same thresholds."""
    options = {key: how[key] for key in ("mode", "engine")}
    options["example"] = how["example"].to(next(ann.parameters()).dtype)
    return convert(copy.deepcopy(ann), snn.time_steps, calibrate=snn.calibration, **options)


def check_edits(draw, ann, snn, x, how):
    for edit in [draw.one(EDITS) for _ in range(draw.int(1, 3))]:
        draw.note(edits=[*draw.notes.get("edits", []), edit.__name__])
        try:
            x = edit(draw, ann, snn, x)
        except (RuntimeError, ValueError, TypeError):
            return  # refused at once
        try:
            ann(x.clone())
        except RuntimeError:
            return  # the edit has broken the ANN itself
        try:
            got = values(snn(x))
        except RuntimeError as refused:
            if not str(refused).startswith(("TandemNetwork: the ANN must", "TandemNetwork: the spiking twin must")):
                raise
            return
        with torch.no_grad():
            want = values(again(ann, snn, how)(x))
        if not torch.equal(got, want):
            raise Mismatch(
                f"after {edit.__name__}, the network differs from a new conversion: {(got - want).abs().max()}"
            )


def check_saved(draw, ann, snn, x, how):
    """Whole copies and state dicts, and the frozen network."""
    want = values(snn(x))
    if not any(hasattr(module, "parametrizations") for module in snn.modules()):
        for other in (copy.deepcopy(snn), pickle.loads(pickle.dumps(snn))):
            if not torch.equal(values(other(x)), want):
                raise Mismatch("a copy of the network differs")
    if not agree(values(freeze(snn)(x)), want, snn):
        raise Mismatch("the frozen network differs")
    file = io.BytesIO()
    torch.save(snn.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    options = {key: how[key] for key in ("mode", "engine", "weights", "example") if key in how}
    other = convert(copy.deepcopy(ann), snn.time_steps, calibrate=Calibration.of_state(state), **options)
    other.load_state_dict(state)
    if not torch.equal(values(other(x)), want):
        raise Mismatch("the network that loads the state differs")


REFUSED = (
    "pass per_channel=False",
    "ann must have no other parametrisations of weights",
    # All values are analogue, or the only layer reads real input.
    "model must run a tandem layer",
    "model must have tandem layers",
)  # fmt: skip


def conversions(draw: Draw):
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
        "mode": draw.one(("constant", "constant", "impulse")),
        "engine": draw.one(("auto", "event")),
        "weights": draw.one((None, None, None, "int8", "int16")),
    }
    neuron = draw.one((None, None, IF(), IF(initial=0.5), IF(initial=0.25, two_phase=True)))
    settings = {} if draw.chance(0.5) else {"per_channel": draw.chance(0.5), "correct_bias": draw.chance(0.5)}
    draw.note(ann=str(ann), **how, neuron=str(neuron), **settings)
    with torch.no_grad():
        # With an impulse, one-phase neurons spike in bunches, whose error does not vanish with many steps.
        converges = how["mode"] == "constant" or neuron is None or neuron.two_phase
        if converges and draw.chance(0.5):
            near = convert(ann, STEPS, calibrate=x, neuron=neuron, percentile=100.0, **how, **settings)
            if (found := error(near, ann, x)) > (INT8_TOLERANCE if how["weights"] == "int8" else TOLERANCE):
                raise Mismatch(f"the network differs from its ANN by {found:.3f} at T = {STEPS}")
        how["example"] = x[:1]
        snn = convert(ann, draw.one((1, 2, 4, 8)), calibrate=x, neuron=neuron, **how, **settings)
        if draw.chance(0.5):
            check_saved(draw, ann, snn, x, how)
        check_edits(draw, ann, snn, x, how)
