"""Every operator once: how to call it, what it must return, which arguments have a gradient.

test_operators.py makes of this list the tests that all operators pass on every path of the CPU. test_cuda_operators.py,
test_cuda_host.py, test_leaks.py, test_func.py, test_past_end.py and bench/test_bench_ops.py take their calls from here
too. A new operator is one more `Case`; what is special about it is tested in a file of its own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from neurons import EVERY_KIND, EVERY_MODEL, joining, state_of, steps_of
from tandem_cuda import IF, ops
from tandem_cuda import reference as ref
from tensors import ENGINES, FLOATS, INTEGERS, WEIGHTS, dyadic, generator, integers, normal, planes, train

RAW = torch.ops.tandem_cuda
MODES = ("constant", "impulse", "series", "once")

# ---- What a case is


@dataclass(frozen=True)
class Case:
    """One way to call one operator."""

    name: str
    operator: str
    draw: Callable[..., dict[str, Any]]
    """(time_steps, neurons, dtype, seed, optional) -> the arguments by name, optional ones too or only those that it
    needs."""
    neurons: tuple[int, ...] = (2, 6, 5, 4)
    """[N, C, *spatial] of the input, where nothing else is asked for."""
    dtypes: tuple[torch.dtype, ...] = FLOATS
    reference: Callable[..., Any] | None = None
    """What it must return, to the bit where sums are exact; by default the function of the same name in `reference`."""
    kernel: Callable[..., Any] | None = None
    """The function that users call; by default the one of the same name in `ops`."""
    differentiable: tuple[str, ...] = ()
    """Arguments to which a gradient flows, from the output that has one."""
    smooth: bool = False
    """Whether this is the derivative of what is computed; the tandem rule replaces a value and keeps its gradient."""
    features: int | None = 1
    """The dimension of the features in [N, ...], which is innermost in the memory of all outputs; None: not so."""
    takes_engine: bool = False

    def arguments(self, dtype=torch.float32, seed=0, time_steps=9, neurons=None, optional=True):
        return self.draw(time_steps, self.neurons if neurons is None else neurons, dtype, seed, optional)

    def run(self, **arguments):
        return (self.kernel or getattr(ops, self.operator))(**arguments)

    def expected(self, **arguments):
        return (self.reference or getattr(ref, self.operator))(**arguments)

    def engines(self, dtype):
        """The keywords that choose how to compute, which the reference does not have."""
        if not self.takes_engine:
            return [{}]
        return [{"engine": engine} for engine in ENGINES]

    def packed(self, arguments):
        """The same, with weights arranged beforehand."""
        if not self.takes_engine:
            return {}
        return {"packed": ops.pack_weight(arguments["weight"], arguments.get("groups", 1))}

    def with_gradient(self, out):
        """The output that has one."""
        return out if isinstance(out, torch.Tensor) else out[1 if self.operator.startswith("spiking") else 0]

    def __str__(self):
        return self.name


def tensors_of(arguments):
    return {name: x for name, x in arguments.items() if isinstance(x, torch.Tensor)}


def outputs_of(out):
    return (out,) if isinstance(out, torch.Tensor) else tuple(out)


class _Calls(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, arguments=(), named=None):
        if isinstance(function, torch._ops.OpOverloadPacket) and str(function).startswith("tandem_cuda."):
            self.seen.append((function.default, arguments, named or {}))
        return function(*arguments, **(named or {}))


def raw_call(case, **arguments):
    """The operator that a function calls in the end, and what it passes on, by name."""
    with _Calls() as calls:
        case.run(**arguments)
    operator, positional, named = calls.seen[-1]
    names = [argument.name for argument in operator._schema.arguments]
    return operator, dict(zip(names, positional, strict=False)) | named


def raw(name, **arguments):
    """Call an operator with no Python in between; optional arguments that are not given are None."""
    operator = getattr(RAW, name).default
    given = dict.fromkeys(a.name for a in operator._schema.arguments if "Optional" in str(a.type))
    return operator(**given | arguments)


# ---- Products


@dataclass(frozen=True)
class Convolution:
    """Sizes, and the spikes that are drawn for them."""

    batch: int
    channels: int
    image: tuple[int, int]
    outputs: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    time_steps: int = 8
    rate: float = 0.3

    @property
    def input(self):
        return self.batch, self.channels, *self.image

    @property
    def weight(self):
        return self.outputs, self.channels // self.groups, *self.kernel

    @property
    def geometry(self):
        names = ("stride", "padding", "dilation", "groups")
        return {name: getattr(self, name) for name in names}

    def output(self, batch):
        return F.conv2d(torch.zeros(batch, *self.input[1:]), torch.zeros(self.weight), **self.geometry).shape


CONVOLUTIONS = {
    "3 x 3": Convolution(2, 18, (3, 4), 20, rate=0.15),
    "1 x 1": Convolution(1, 16, (3, 3), 16, (1, 1), padding=(0, 0), time_steps=1, rate=0.5),
    "strided": Convolution(3, 20, (6, 5), 40, stride=(2, 2), rate=0.1),
    "dilated": Convolution(1, 17, (5, 5), 33, padding=(2, 2), dilation=(2, 2), time_steps=11, rate=0.1),
    "few channels": Convolution(2, 3, (6, 6), 10, (5, 5), padding=(2, 2), time_steps=20, rate=0.05),
    "in groups": Convolution(1, 24, (4, 4), 24, groups=3, time_steps=9, rate=0.2),
    "depthwise": Convolution(1, 6, (5, 4), 12, groups=6),
    "one pixel": Convolution(5, 100, (1, 1), 130, (1, 1), padding=(0, 0), time_steps=17, rate=0.1),
    "many pixels": Convolution(1, 48, (9, 9), 64, (1, 1), padding=(0, 0), rate=0.05),
    "wide, in groups": Convolution(1, 34, (3, 9), 18, groups=2, time_steps=16, rate=0.1),
    "nothing square": Convolution(2, 6, (9, 8), 9, (3, 2), (1, 2), (2, 0), (2, 1), groups=3),
    # The gradient of its weights picks rows of the arriving one.
    "many outputs": Convolution(2, 6, (9, 8), 129, stride=(2, 2), rate=0.02),
}


def weights(dtype, *shape, seed):
    """(weight, scale) whose sums are exact. Of integers the scale is such that neurons fire now and then."""
    if dtype in INTEGERS:
        scale = dyadic(shape[0], seed=seed + 1) / (64 if dtype == torch.int8 else 2**14)
        return integers(*shape, seed=seed, dtype=dtype), scale
    return dyadic(*shape, seed=seed, dtype=dtype), dyadic(shape[0], seed=seed + 1, dtype=current_dtype(dtype))


def current_dtype(dtype):
    """Of currents, bias, state and count, by that of the weights."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def operands(bits, dtype, shape, seed, optional, out_shape, time_steps, neuron):
    """The arguments of a product but its geometry; with a neuron those of one that fires."""
    weight, scale = weights(dtype, *shape, seed=seed + 1)
    arguments = {"bits": bits, "weight": weight}
    float_ = current_dtype(dtype)
    if optional or dtype in INTEGERS:
        arguments["scale"] = scale
    if optional:
        arguments["bias"] = dyadic(shape[0], seed=seed + 3, dtype=float_) / 8
        arguments["count"] = ref.spike_count(bits, float_)
    if neuron is not None:
        arguments |= {"time_steps": time_steps, "neuron": neuron.scaled(0.75) if optional else neuron}
        if optional:
            arguments["state"] = state_of(neuron, *out_shape, seed=seed + 4, span=2, dtype=float_)
    return arguments


def convolution(neuron, sizes):
    def draw(time_steps, neurons, dtype, seed, optional):
        bits = planes(time_steps, *neurons, seed=seed, rate=sizes.rate)
        out_shape = sizes.output(neurons[0])
        return operands(bits, dtype, sizes.weight, seed, optional, out_shape, time_steps, neuron) | sizes.geometry

    return draw


def linear(neuron, outputs, rate=0.3):
    def draw(time_steps, neurons, dtype, seed, optional):
        bits = planes(time_steps, *neurons, seed=seed, rate=rate)
        out_shape = (*neurons[:-1], outputs)
        shape = (outputs, neurons[-1])
        return operands(bits, dtype, shape, seed, optional, out_shape, time_steps, neuron)

    return draw


def products():
    named = {"dtypes": WEIGHTS, "differentiable": ("weight", "bias", "count"), "smooth": True, "takes_engine": True}
    for kind, models in (("spiking", EVERY_KIND), ("count", {"": None})):
        for model, neuron in models.items():
            for name, sizes in CONVOLUTIONS.items():
                operator = f"{kind}_conv2d"
                full = named_after(model, f"{operator}, {name}")
                yield Case(full, operator, convolution(neuron, sizes), sizes.input, **named)
            for name, neurons, outputs in (("", (3, 21), 10), (", rows", (2, 3, 130), 70)):
                operator = f"{kind}_linear"
                full = named_after(model, f"{operator}{name}")
                yield Case(full, operator, linear(neuron, outputs), neurons, **named, features=-1)


def of_values(draw):
    """The arguments of a count product as those of radix spikes, of which there are at most 8 steps."""

    def drawn(time_steps, *more):
        radix = min(time_steps, 8)
        arguments = draw(radix, *more) | {"radix": radix}
        if "count" in arguments:
            arguments["count"] = arguments["bits"][0].to(arguments["count"].dtype)
        return arguments

    return drawn


def value_products():
    named = {"dtypes": WEIGHTS, "differentiable": ("weight", "bias", "count"), "smooth": True, "takes_engine": True}
    for name in ("3 x 3", "strided", "in groups", "depthwise", "one pixel", "many pixels", "nothing square"):
        sizes = CONVOLUTIONS[name]
        draw = of_values(convolution(None, sizes))
        yield Case(f"count_conv2d, values, {name}", "count_conv2d", draw, sizes.input, **named)
    draw = of_values(linear(None, 70))
    yield Case("count_linear, values", "count_linear", draw, (2, 3, 130), **named, features=-1)


def radix_products():
    """Count products whose sums drive radix neurons."""

    def firing(draw, out=None, branch=None):
        def drawn(time_steps, neurons, dtype, seed, optional):
            arguments = draw(time_steps, neurons, dtype, seed, optional)
            arguments.pop("count", None)
            steps, neuron = 1 + time_steps % 8, EVERY_MODEL["RadixIF"]
            arguments |= {"neuron": neuron.scaled(0.75) if optional else neuron, "time_steps": steps}
            if branch is not None:
                shape, more = out(neurons), {"seed": seed + 7, "dtype": current_dtype(dtype)}
                arguments |= joining(branch, steps, *shape, axis=1 if len(shape) == 4 else -1, **more)
            if branch == "currents":
                arguments["added"] = arguments["added"].sum(0)
            return arguments

        return drawn

    named = {"dtypes": WEIGHTS, "takes_engine": True}
    for name in ("3 x 3", "in groups", "depthwise", "one pixel", "many pixels"):
        sizes = CONVOLUTIONS[name]
        draw = firing(of_values(convolution(None, sizes)))
        yield Case(f"count_conv2d, radix neurons, {name}", "count_conv2d", draw, sizes.input, **named)
    draw = firing(convolution(None, CONVOLUTIONS["strided"]))
    yield Case("count_conv2d, radix neurons of counts", "count_conv2d", draw, CONVOLUTIONS["strided"].input, **named)
    draw = firing(of_values(linear(None, 70)))
    yield Case("count_linear, radix neurons", "count_linear", draw, (2, 3, 130), **named, features=-1)
    for branch in ("spikes", "currents"):
        for name in ("3 x 3", "in groups", "depthwise", "many pixels"):
            sizes = CONVOLUTIONS[name]
            draw = firing(of_values(convolution(None, sizes)), lambda neurons, s=sizes: s.output(neurons[0]), branch)
            yield Case(
                f"count_conv2d, radix neurons, {name}, joined by {branch}", "count_conv2d", draw, sizes.input, **named
            )
        draw = firing(of_values(linear(None, 70)), lambda neurons: (*neurons[:-1], 70), branch)
        name = f"count_linear, radix neurons, joined by {branch}"
        yield Case(name, "count_linear", draw, (2, 3, 130), **named, features=-1)


def of_steps(draw):
    """The arguments of a count product as those of its currents."""

    def drawn(time_steps, *more):
        arguments = draw(time_steps, *more)
        arguments.pop("count", None)
        return arguments | {"time_steps": time_steps}

    return drawn


def step_products():
    operator, named = "step_product", {"dtypes": WEIGHTS}
    for name in ("3 x 3", "1 x 1", "strided", "depthwise", "many pixels", "wide, in groups", "nothing square"):
        sizes = CONVOLUTIONS[name]
        yield Case(f"{operator}, {name}", operator, of_steps(convolution(None, sizes)), sizes.input, **named)
    for name, neurons, outputs in (("linear", (3, 21), 10), ("rows", (2, 3, 130), 70)):
        draw = of_steps(linear(None, outputs))
        yield Case(f"{operator}, {name}", operator, draw, neurons, **named, features=-1)


def named_after(model, name):
    """A case's name; of IF neurons, and of none, it does not speak."""
    return name if model in ("", "IF") else f"{name}, {model}"


def ordered(sizes):
    def draw(time_steps, neurons, dtype, seed, optional):
        linear = sizes is None
        shape = (11, neurons[-1]) if linear else sizes.weight
        weight = integers(*shape, seed=seed, dtype=dtype)
        arguments = {"x": normal(*neurons, seed=seed + 1), "weight": weight, **({} if linear else sizes.geometry)}
        if optional:
            arguments["master"] = normal(*shape, seed=seed + 2)
            arguments["unit"] = normal(shape[0], seed=seed + 3).exp()
        return arguments

    return draw


def ordered_products():
    named = {"dtypes": INTEGERS, "differentiable": ("x", "master")}
    for name in ("3 x 3", "nothing square"):
        sizes = CONVOLUTIONS[name]
        yield Case(f"ordered_product, {name}", "ordered_product", ordered(sizes), sizes.input, **named)
    yield Case("ordered_product, rows", "ordered_product", ordered(None), (2, 3, 37), **named, features=-1)


def fired_in_order(sizes, mode, neuron):
    def draw(time_steps, neurons, dtype, seed, optional):
        time_steps = steps_of(neuron, time_steps)
        arguments = ordered(sizes)(time_steps, neurons, dtype, seed, optional=False)
        outputs = len(arguments["weight"])
        arguments |= {"time_steps": time_steps, "mode": mode, "neuron": neuron}
        # So that neurons fire now and then: integers are as large as their dtype allows.
        arguments["scale"] = normal(outputs, seed=seed + 2).abs() / (32 if dtype == torch.int8 else 2**13)
        if optional:
            arguments["bias"] = normal(outputs, seed=seed + 3) / 4
        return arguments

    return draw


def ordered_spikes():
    operator, named = "ordered_spikes", {"dtypes": INTEGERS}
    chosen = [("3 x 3", mode) for mode in ("constant", "impulse", "once")]
    chosen += [(name, "constant") for name in ("few channels", "nothing square", "many outputs")]
    for name, mode in chosen:
        sizes = CONVOLUTIONS[name]
        yield Case(f"{operator}, {name}, {mode}", operator, fired_in_order(sizes, mode, IF()), sizes.input, **named)
    for model, neuron in EVERY_MODEL.items():
        draw = fired_in_order(None, "constant", neuron)
        yield Case(named_after(model, f"{operator}, rows"), operator, draw, (2, 3, 37), **named, features=-1)


# ---- The others


def unpacked(time_steps, neurons, dtype, seed, optional):
    return {"bits": planes(time_steps, *neurons, seed=seed), "time_steps": time_steps, "dtype": dtype}


def counted(time_steps, neurons, dtype, seed, optional):
    return {"bits": planes(time_steps, *neurons, seed=seed), "dtype": dtype}


def pooled(kernel_size, *geometry):
    names = ("stride", "padding", "dilation", "ceil_mode")

    def draw(time_steps, neurons, dtype, seed, optional):
        bits = planes(time_steps, *neurons, seed=seed, rate=0.6)
        count = torch.randint(0, 40, neurons, generator=generator(seed + 1), dtype=torch.int32)
        chosen = {"kernel_size": kernel_size, **dict(zip(names, geometry, strict=False)), "time_steps": time_steps}
        return {"bits": bits, **chosen} | ({"count": count, "want_count": True} if optional else {})

    return draw


def largest(time_steps, *others):
    """The arguments of pooling as those of radix spikes."""
    arguments = pooled((2, 3), 2, 1)(min(time_steps, 8), *others)
    return {name: x for name, x in arguments.items() if name not in ("count", "want_count")} | {"radix": True}


def fired(mode, neuron):
    def draw(time_steps, neurons, dtype, seed, optional):
        time_steps = steps_of(neuron, time_steps)
        shape = (time_steps, *neurons) if mode == "series" else neurons
        spread = 3 if mode in ("impulse", "once") else 1  # impulses must be large for neurons to go on firing
        arguments = {"current": spread * normal(*shape, seed=seed, dtype=dtype), "time_steps": time_steps, "mode": mode}
        arguments["neuron"] = neuron.scaled(0.7)
        if optional:
            arguments["scale"], arguments["bias"] = (normal(neurons[1], seed=seed + i, dtype=dtype) for i in (1, 2))
            if not neuron.two_phase:
                arguments["state"] = state_of(neuron, *neurons, draw=normal, seed=seed + 3, dtype=dtype)
        return arguments

    return draw


def digits(time_steps, neurons, dtype, seed, optional):
    neuron = EVERY_MODEL["RadixIF"]
    v = 3 * normal(*neurons, seed=seed, dtype=dtype)
    arguments = {"v": v, "time_steps": steps_of(neuron, time_steps), "neuron": neuron}
    if optional:
        arguments["scale"], arguments["bias"] = (normal(neurons[1], seed=seed + i, dtype=dtype) for i in (1, 2))
    return arguments


def gates(*shape, dtype, seed):
    """Pre-activations among them 0, the bound 1.5, and what is not finite."""
    special = torch.tensor([0.0, -0.0, 1.5, math.inf, -math.inf, math.nan], dtype=dtype)
    which = torch.randint(0, 12, shape, generator=generator(seed + 1))
    v = normal(*shape, seed=seed, dtype=dtype)
    return torch.where(which < len(special), special[which.clamp(max=len(special) - 1)], v)


def coupled(neuron):
    def draw(time_steps, neurons, dtype, seed, optional):
        time_steps = steps_of(neuron, time_steps)
        arguments = {"bits": planes(time_steps, *neurons, seed=seed), "time_steps": time_steps}
        arguments["neuron"] = neuron.scaled(0.5)
        v = dyadic(*neurons, seed=seed + 1, span=2, dtype=dtype)
        return {**arguments, "pre_activation": v} | ({"upper": 1.5} if optional else {})

    return draw


def gated(time_steps, neurons, dtype, seed, optional):
    v = gates(*neurons, dtype=dtype, seed=seed + 1)
    upper = 1.5 if optional else math.inf
    return {"grad": normal(*neurons, seed=seed, dtype=dtype), "pre_activation": v, "threshold": 0.7, "upper": upper}


def gated_reference(grad, pre_activation, threshold, upper):
    return torch.where((pre_activation > 0) & (pre_activation <= upper), grad / threshold, 0.0)


def statistics(product):
    """Biased variance and mean over all dimensions but the second."""
    if product.numel() == 0:
        return product.new_ones(product.shape[1]), product.new_zeros(product.shape[1])
    return torch.var_mean(product, [d for d in range(product.dim()) if d != 1], correction=0)


def normalised_values(time_steps, *others):
    return normalised(steps_of(EVERY_MODEL["RadixIF"], time_steps), *others) | {"radix": True}


def normalised(time_steps, neurons, dtype, seed, optional):
    product = 3 * normal(*neurons, seed=seed + 1, dtype=dtype) + 0.5
    var, mean = statistics(product)
    gamma, beta = (normal(neurons[1], seed=seed + i, dtype=dtype) for i in (2, 3))
    arguments = {"bits": planes(time_steps, *neurons, seed=seed), "product": product, "mean": mean, "var": var}
    arguments |= {"gamma": gamma, "beta": beta, "time_steps": time_steps, "threshold": 0.7}
    unit = normal(neurons[1], seed=seed + 4, dtype=dtype).abs() + 0.01
    return arguments | ({"upper": 1.5, "unit": unit} if optional else {})


def running(neurons, dtype, seed):
    """Running statistics. In float64 the roots of var + 0.25 are exact: torch's may be off by an ulp."""
    root = dyadic(neurons[1], seed=seed, span=3, dtype=dtype).abs() + 0.5
    var = root.square() - 0.25 if dtype == torch.float64 else normal(neurons[1], seed=seed, dtype=dtype).square()
    return {"running_mean": normal(neurons[1], seed=seed + 1, dtype=dtype), "running_var": var}


def updated(time_steps, neurons, dtype, seed, optional):
    product = normal(1 + neurons[0], *neurons[1:], seed=seed + 2, dtype=dtype)  # never without values
    var, mean = statistics(product)
    arguments = {**running(neurons, dtype, seed), "batches": time_steps, "mean": mean, "var": var, "product": product}
    if optional:
        arguments |= {"missing": normal(neurons[1], seed=seed + 3, dtype=dtype), "momentum": 0.3, "repeats": 1 / 7}
        arguments["unit"] = normal(neurons[1], seed=seed + 4, dtype=dtype).abs()
    return arguments


def updating(f):
    """The function of copies of the running statistics, which it returns."""

    def run(running_mean, running_var, batches, **others):
        copies = running_mean.clone(), running_var.clone(), torch.full((), batches, device=running_mean.device)
        f(*copies, **others)
        return copies

    return run


def folded(time_steps, neurons, dtype, seed, optional):
    arguments = {**running(neurons, dtype, seed), "eps": 0.25}
    if optional:
        names = ("gamma", "beta", "bias", "unit")
        arguments |= {name: normal(neurons[1], seed=seed + i, dtype=dtype) for i, name in enumerate(names, 2)}
        arguments |= {"amplitude": 1 / 3, "time_steps": time_steps}
    return arguments


def packable(groups, *kernel):
    def draw(time_steps, neurons, dtype, seed, optional):
        weight, _ = weights(dtype, 3 * groups, neurons[1], *kernel, seed=seed)
        return {"weight": weight, "groups": groups}

    return draw


def weight_gradient(outputs):
    def draw(time_steps, neurons, dtype, seed, optional):
        n, c, h, w = neurons
        count = ref.spike_count(planes(time_steps, *neurons, seed=seed, rate=0.05), dtype)
        weight = torch.full((1,), math.nan, dtype=dtype).expand(outputs, c, 2, 3)  # only its shape matters
        geometry = {"stride": [1, 1], "padding": [0, 1], "dilation": [1, 1], "groups": 1}
        return {
            "grad": dyadic(n, outputs, h - 1, w, seed=seed, dtype=dtype),
            "count": count,
            "weight": weight,
        } | geometry

    return draw


def weight_gradient_reference(grad, count, weight, stride, padding, dilation, groups):
    """torch's own, in float64, where all sums are exact."""
    doubles = (x.double() for x in (grad, count, weight))
    settings = (None, stride, padding, dilation, False, [0, 0], groups, [False, True, False])
    return torch.ops.aten.convolution_backward(*doubles, *settings)[1].to(weight.dtype)


def packed_spikes(time_steps, neurons, dtype, seed, optional):
    return {"spikes": train(time_steps, *neurons, seed=seed).to(dtype)}


DENSE = (*FLOATS, torch.bool, torch.uint8)
COUPLED = {"differentiable": ("pre_activation",)}


def element_wise():
    """Operators that see one neuron at a time, whatever shape they lie in."""
    yield Case("pack_spikes", "pack_spikes", packed_spikes, dtypes=(*DENSE, torch.float16, torch.bfloat16))
    yield Case("unpack_spikes", "unpack_spikes", unpacked, dtypes=DENSE)
    yield Case("spike_count", "spike_count", counted)
    for model, neuron in EVERY_MODEL.items():
        yield Case(named_after(model, "tandem_count"), "tandem_count", coupled(neuron), **COUPLED)
    yield Case(
        "tandem_count_backward", "tandem_count_backward", gated, kernel=RAW.tandem_count_backward,
        reference=gated_reference, differentiable=("grad",), features=None,
    )  # fmt: skip
    for mode in MODES:
        for model, neuron in EVERY_MODEL.items():
            yield Case(named_after(model, f"integrate_and_fire, {mode}"), "integrate_and_fire", fired(mode, neuron))
    yield Case("radix_spikes", "radix_spikes", digits)


def rounded(bits):
    def draw(time_steps, neurons, dtype, seed, optional):
        return {"weight": normal(*neurons, seed=seed), "bits": bits}

    return draw


def others():
    for bits in (8, 16):
        yield Case(
            f"quantise_weight, {bits} bits", "quantise_weight", rounded(bits), dtypes=(torch.float32,), features=None
        )
    leaves = ("product", "gamma", "beta")
    yield Case("tandem_norm_count", "tandem_norm_count", normalised, differentiable=leaves)
    yield Case("tandem_norm_count, radix", "tandem_norm_count", normalised_values, differentiable=leaves)
    yield Case(
        "update_statistics_", "update_statistics_", updated, kernel=updating(ops.update_statistics_),
        reference=updating(ref.update_statistics_), features=None,
    )  # fmt: skip
    # Without the gradients, which two outputs have: test_fold_norm.py asks for them.
    yield Case("fold_norm", "fold_norm", folded, kernel=torch.no_grad()(ops.fold_norm), features=None)
    yield Case("max_pool_spikes", "max_pool_spikes", pooled(2), dtypes=(torch.uint8,))
    yield Case("max_pool_spikes, ceil", "max_pool_spikes", pooled((2, 3), 2, 1, 1, True), dtypes=(torch.uint8,))
    yield Case("max_pool_spikes, radix", "max_pool_spikes", largest, dtypes=(torch.uint8,))
    # What is in it, test_pack_weight.py asks; here that paths and strides do not matter.
    packs = {
        "dtypes": WEIGHTS,
        "reference": lambda weight, groups: ops.pack_weight(weight.contiguous(), groups),
        "features": None,
    }
    yield Case("pack_weight, linear", "pack_weight", packable(1), **packs)
    yield Case("pack_weight, groups", "pack_weight", packable(3, 3, 2), **packs)
    for outputs in (127, 128):  # the fewest that rows of gradients are picked for, and one less
        yield Case(
            f"conv2d_weight_gradient, {outputs} outputs", "conv2d_weight_gradient", weight_gradient(outputs),
            kernel=RAW.conv2d_weight_gradient, reference=weight_gradient_reference, features=None,
        )  # fmt: skip


ELEMENT_WISE = tuple(element_wise())
PRODUCTS = (*products(), *value_products(), *radix_products())
CASES = (*ELEMENT_WISE, *others(), *ordered_products(), *ordered_spikes(), *step_products(), *PRODUCTS)
