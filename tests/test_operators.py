"""What holds for every operator: all of cases.py, against the reference, on every path of the CPU."""

import re

import pytest
import torch

from cases import CASES, ELEMENT_WISE, RAW, outputs_of, raw_call, tensors_of
from exact import TOLERANCES, every_path, everywhere, features_last, firing_rate, same, slow
from neurons import EVERY_KIND
from tandem_cuda import ops
from tensors import META, generator, views

TIME_STEPS = (1, 9, 20)


def parametrize(chosen):
    return pytest.mark.parametrize("case", chosen, ids=str)


def of_dtypes(chosen, dtypes_of=lambda case: case.dtypes):
    rows = [(case, dtype) for case in chosen for dtype in dtypes_of(case)]
    return pytest.mark.parametrize(("case", "dtype"), rows, ids=[f"{c}-{str(d)[6:]}" for c, d in rows])


def in_turn(chosen):
    """Every dtype of every case, both with all arguments and with those that it needs.

    Of a product, which has many shapes and dtypes, either with all arguments or with those that it needs, in turn.
    """
    rows = [
        (case, dtype, optional)
        for i, case in enumerate(chosen)
        for j, dtype in enumerate(case.dtypes)
        for optional in ([(i + j) % 2 == 0] if case.takes_engine else [True, False])
    ]
    ids = [f"{case}-{str(dtype)[6:]}-{'all' if optional else 'needed'}" for case, dtype, optional in rows]
    return pytest.mark.parametrize(("case", "dtype", "optional"), rows, ids=ids)


DIFFERENTIABLE = [case for case in CASES if case.differentiable]
every_case = parametrize(CASES)
either_way = pytest.mark.parametrize("optional", [True, False])


@in_turn(CASES)
def test_is_the_reference_on_every_path(case, dtype, optional):
    """With every engine, instruction set and number of threads, to the bit."""
    for time_steps in TIME_STEPS:
        arguments = case.arguments(dtype, time_steps, time_steps, optional=optional)
        want = case.expected(**arguments)
        packed = case.packed(arguments) if time_steps == 9 else {}
        for engine in case.engines(dtype):
            everywhere(want, case.run, **arguments, **engine, **packed)


@of_dtypes(CASES, lambda case: sorted({case.dtypes[0], case.dtypes[-1]}, key=str))
def test_any_strides(case, dtype):
    for neurons in [case.neurons, *(((2, 5), (2, 5, 3, 2, 2)) if case in ELEMENT_WISE else ())]:
        check_strides(case, dtype, case.arguments(dtype, time_steps=16, neurons=neurons))


def check_strides(case, dtype, arguments):
    want = case.expected(**arguments)
    engines = case.engines(dtype)
    for name, x in tensors_of(arguments).items():
        for i, view in enumerate(() if dtype == torch.bool else views(x)):
            same(case.run(**arguments | {name: view} | engines[i % len(engines)]), want, name)
        for dim in range(x.dim()):
            changed = arguments | {name: x.narrow(dim, 0, 1).expand_as(x)}
            same(case.run(**changed, **engines[-1]), case.expected(**changed), f"{name}, one along {dim}")


@every_case
@either_way
def test_outputs_are_new_tensors(case, optional):
    """Arguments stay as they are; nothing shares memory; features lie last."""
    for dtype in case.dtypes[:2]:
        arguments = case.arguments(dtype, optional=optional)
        given = tensors_of(arguments)
        copies = [x.clone() for x in given.values()]
        out = outputs_of(case.run(**arguments))
        same(list(given.values()), copies)
        storages = {x.untyped_storage()._cdata for x in (*given.values(), *out)}
        assert len(storages) == len(given) + len(out)
        for x in out:
            if case.features is not None and x.numel():
                over_time = case.features > 0 and x.dim() > len(case.neurons)
                assert features_last(x, case.features + over_time)


@in_turn(DIFFERENTIABLE)
def test_gradients(case, dtype, optional):
    """Of all arguments at once, and of each alone."""
    check_gradients(case, dtype, case.arguments(dtype, optional=optional))


@parametrize(DIFFERENTIABLE)
@either_way
def test_gradients_of_an_empty_batch(case, optional):
    dtype = case.dtypes[0]
    check_gradients(case, dtype, case.arguments(dtype, neurons=(0, *case.neurons[1:]), optional=optional))


def check_gradients(case, dtype, arguments):
    names = [n for n in case.differentiable if n in arguments and arguments[n].is_floating_point()]
    for chosen in [names, *([name] for name in names if len(names) > 1)]:
        got, want = (gradients(f, case, arguments, chosen) for f in (case.run, case.expected))
        for name, g, w in zip(chosen, got, want, strict=True):
            assert g.dtype == arguments[name].dtype
            tolerance = TOLERANCES[g.dtype] * (max(1.0, w.abs().max().item()) if w.numel() else 1)
            torch.testing.assert_close(g, w, rtol=TOLERANCES[g.dtype], atol=tolerance)


def gradients(f, case, arguments, names):
    leaves = {name: arguments[name].detach().clone().requires_grad_() for name in names}
    out = f(**arguments | leaves)
    with_gradient = case.with_gradient(out)
    assert [x is with_gradient and bool(names) for x in outputs_of(out)] == [x.requires_grad for x in outputs_of(out)]
    if not names:
        return ()
    arriving = torch.randn(with_gradient.shape, generator=generator(3), dtype=with_gradient.dtype)
    return torch.autograd.grad(with_gradient, list(leaves.values()), arriving)


@parametrize([case for case in DIFFERENTIABLE if case.smooth])
@either_way
def test_gradcheck(case, optional):
    arguments = case.arguments(torch.float64, optional=optional)
    names = [name for name in ("weight", "bias") if name in arguments]
    leaves = [arguments[name].requires_grad_() for name in names]

    def f(*leaves):
        return case.with_gradient(case.run(**arguments | dict(zip(names, leaves, strict=True))))

    assert torch.autograd.gradcheck(f, leaves, fast_mode=True)


@parametrize([case for case in CASES if not case.differentiable and case.dtypes[0].is_floating_point])
def test_the_others_have_no_gradient(case):
    arguments = case.arguments()
    for name, x in tensors_of(arguments).items():
        x.requires_grad_(x.is_floating_point() and not (case.takes_engine and name == "scale"))  # which products refuse
    if case.kernel is None:
        assert not any(x.requires_grad for x in outputs_of(case.run(**arguments)))


# ---- What torch asks of operators

# What a fake kernel and a gradient know of: the operator, and how many states its neurons have.
FIRST = {case.operator: case for case in reversed(CASES)}
QUICK = [
    *FIRST.values(),
    *(case for case in CASES if case.name in {f"spiking_linear, {model}" for model in EVERY_KIND}),
]
OTHERS = [case for case in CASES if case not in QUICK]


@pytest.mark.parametrize(
    ("case", "dtype", "optional"),
    [
        *((case, case.dtypes[0], optional) for case in QUICK for optional in (True, False)),
        *(slow(case, case.dtypes[i % len(case.dtypes)], i // 2 % 2 == 0) for i, case in enumerate(OTHERS)),
    ],
    ids=lambda x: str(x).removeprefix("torch."),
)
def test_opcheck(case, dtype, optional):
    """Schema, fake kernel and gradient; of tensors with gradients and without, contiguous and not."""
    arguments = case.arguments(dtype, optional=optional)
    check(case, arguments, ())
    if not optional:
        arguments |= {n: x.mT.contiguous().mT for n, x in tensors_of(arguments).items() if x.dim() > 1}
    if case.differentiable:
        check(case, arguments, case.differentiable)


def check(case, arguments, differentiable):
    leaves = [arguments[n] for n in differentiable if n in arguments and arguments[n].is_floating_point()]
    for x in leaves:
        x.requires_grad_()
    op, passed_on = raw_call(case, **arguments)
    passed_on = tuple(passed_on.values())
    if not leaves or isinstance(case.run(**arguments), torch.Tensor):
        torch.library.opcheck(op, passed_on)
        return
    # The last of opcheck's tests adds up all outputs in the dtype of the first, the bits, which torch refuses; what
    # stands below does the same with the one that has a gradient.
    torch.library.opcheck(op, passed_on, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))
    torch.compiler.reset()
    compiled = torch.compile(op, backend="aot_eager", fullgraph=True, dynamic=True)
    outputs = op(*passed_on), compiled(*passed_on)
    same(outputs[1], outputs[0])
    same(*(torch.autograd.grad(case.with_gradient(out).square().sum(), leaves) for out in outputs))


# ---- Arguments that are wrong whatever the operator is


def wrong(x):
    """(what is wrong, the argument, errors of the function that users call)."""
    yield "no tensor", [1.0], TypeError
    yield "dtype", torch.zeros(x.shape, dtype=torch.complex64), TypeError
    yield "device", x.to(META), ValueError
    yield "dimensions", x.new_zeros(()), ValueError
    yield "size", x[..., :0], ValueError


@every_case
def test_wrong_arguments(case):
    """Errors that name the operator and the argument, of the function that users call and of the operator itself."""
    arguments = case.arguments(case.dtypes[0])
    op, passed_on = raw_call(case, **arguments)
    tensors = tensors_of(arguments)
    alone = len(tensors) == 1  # an only tensor may have any device, and often any size
    for name, x in tensors.items():
        driven = name in ("v", "current") and "state" not in arguments  # neurons, of which there may be any number
        for kind, value, error in wrong(x):
            if (alone and kind in ("device", "size")) or (driven and kind == "size"):
                continue
            # Others are compared with the first one.
            named = name if kind in ("no tensor", "dtype") else ".*"
            if case.kernel is None:
                with pytest.raises(error, match=f"^{case.operator}: {named}"):
                    case.run(**arguments | {name: value})
            if name in passed_on and kind not in ("no tensor", "device"):
                # A weight's dimensions say whether a product is linear.
                either = case.takes_engine and (name, kind) == ("weight", "dimensions")
                operator = case.operator.split("_")[0] + "_(linear|conv2d)" if either else case.operator
                if op == RAW.radix_spikes.default:  # which integrate_and_fire calls for its neurons
                    operator = "radix_spikes"
                with pytest.raises(RuntimeError, match=f"{operator}: {named}"):
                    op(**passed_on | {name: value})


EMPTY = {  # weights without outputs, inputs or taps, and their inputs without the batch
    "no features": ((3, 0), (0,)),
    "no outputs": ((0, 4), (4,)),
    "no channels": ((3, 0, 2, 2), (0, 4, 4)),
    "no output channels": ((0, 2, 3, 3), (2, 4, 4)),
    "no taps": ((3, 2, 3, 0), (2, 4, 4)),
}


@pytest.mark.parametrize("name", EMPTY)
def test_empty_weights_are_refused_alike(name):
    """Batches may be empty; weights may not, and every product says so."""
    shape, inputs = EMPTY[name]
    weight, bits, x = torch.zeros(shape), torch.zeros(1, 2, *inputs, dtype=torch.uint8), torch.zeros(2, *inputs)
    kind = "linear" if len(shape) == 2 else "conv2d"
    calls = {
        f"spiking_{kind}": lambda op: op(bits, weight, time_steps=4),
        f"count_{kind}": lambda op: op(bits, weight),
        "step_product": lambda op: op(bits, weight, 4),
        "ordered_product": lambda op: op(x, weight.to(torch.int8)),
        "ordered_spikes": lambda op: op(x, weight.to(torch.int8), 4),
        "pack_weight": lambda op: op(weight),
    }
    for operator, call in calls.items():
        with pytest.raises(
            ValueError, match=rf"^{operator}: weight must .*no empty dimension, got {re.escape(str([*shape]))}"
        ):
            call(getattr(ops, operator))


@pytest.mark.parametrize("case", [c for c in CASES if c.operator.startswith(("spiking", "integrate"))], ids=str)
def test_neurons_fire(case):
    """And not always: silence would prove little."""
    for dtype in case.dtypes:
        for optional in (True, False):
            arguments = case.arguments(dtype, optional=optional)
            assert 0.02 < firing_rate(case.run(**arguments)[0], arguments["time_steps"]) < 0.9


def test_paths():
    """Of the tests' own: a path that differs is found."""
    paths = [path for path, _ in every_path(lambda: None)]
    assert len(set(paths)) == len(paths) > 1
