"""Every operator: the cases of tests/cases.py, on every engine, and calls with one argument spoilt."""

import torch

from cases import CASES, tensors_of

from .digest import attempt, digest

STEPS = (1, 9)


def names():
    return [case.name for case in CASES]


def run(name):
    case = next(case for case in CASES if case.name == name)
    found = {}
    for dtype in case.dtypes:
        for engine in case.engines(dtype):
            for steps in STEPS:
                key = f"{dtype} {engine} T={steps}".replace("torch.", "")
                arguments = case.arguments(dtype, seed=steps, time_steps=steps)
                found[key] = attempt(case.run, **arguments, **engine)
                found.update({f"{key}, {what}": text for what, text in gradients(case, arguments, engine)})
    found.update(spoilt(case))
    return found


def gradients(case, arguments, engine):
    learning = [name for name in case.differentiable if isinstance(arguments.get(name), torch.Tensor)]
    leaves = {name: arguments[name].detach().clone() for name in learning if arguments[name].is_floating_point()}
    if not leaves:
        return
    for leaf in leaves.values():
        leaf.requires_grad_()
    out = case.with_gradient(case.run(**arguments | leaves, **engine))
    out.sum().backward() if out.requires_grad else None
    yield "gradients", digest({name: leaf.grad for name, leaf in leaves.items()})


def spoilt(case):
    """What calls raise, or return, if one argument is wrong."""
    arguments = case.arguments(case.dtypes[0], time_steps=9)
    wrong = {}
    for name, value in arguments.items():
        wrong[name] = [None, "text", -1, 0, 2.5, True]
        if isinstance(value, torch.Tensor):
            other = torch.float64 if value.dtype != torch.float64 else torch.float32
            wrong[name] = [None, "text", 1.0, value[..., :-1], value[None], value.to(other), value.to(torch.int32)]
    for name, values in wrong.items():
        for i, value in enumerate(values):
            yield f"{name} spoilt, {i}", attempt(case.run, **arguments | {name: value})
    for name in tensors_of(arguments):
        yield f"without {name}", attempt(case.run, **{key: x for key, x in arguments.items() if key != name})
