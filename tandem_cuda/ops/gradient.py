"""Register gradients of the operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

_LIBRARY: Any = torch.library.Library("tandem_cuda", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch's
_forward_ad: Any = forward_ad

ON_CUDA: dict[str, Callable[..., Any]] = {}
"""The operators that Python computes on CUDA, by name. The tests run these functions on the CPU, too."""


def refuse_tangent(name: str, x: torch.Tensor) -> None:
    """Raise NotImplementedError if forward mode differentiates a tensor. Its tangent would silently become zero."""
    if _forward_ad._current_level >= 0 and _forward_ad.unpack_dual(x).tangent is not None:
        raise NotImplementedError(
            f"{name}: forward-mode gradients (jvp, jacfwd, hessian) are not supported; use grad, vjp or jacrev"
        )


def refuse_tangents(name: str, operands: Sequence[torch.Tensor | None]) -> None:
    """Do so for an operator without a gradient, of whose operands forward mode may differentiate any."""
    if not torch.compiler.is_compiling() and _forward_ad._current_level >= 0:
        for x in operands:
            if x is not None:
                refuse_tangent(name, x)


def register_gradient(name: str, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
    """Register a gradient that also works under ``torch.func``.

    Takes the arguments of ``torch.library.register_autograd``. The autograd function that torch registers there refuses
    functional transforms, because it is written for functions called from Python. The dispatcher instead runs a
    transform level by level, each with the autograd of its own level. An operator's autograd function must therefore
    handle a single level, which _SingleLevelFunction does. Forward mode raises an error: without a formula its tangents
    would silently become zero.
    """
    op = getattr(torch.ops.tandem_cuda, name).default
    defaults = [argument.default_value for argument in op._schema.arguments]

    def below(keyset: Any, arguments: Sequence[Any]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op._handle.redispatch_boxed(keyset & torch._C._after_autograd_keyset, *arguments)

    class Gradient(torch.autograd.function._SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            *arguments, keyset = inputs  # keyset comes last, so that ctx.needs_input_grad starts with the arguments
            before = torch.is_grad_enabled()
            torch._C._set_grad_enabled(True)  # enclosing transforms run inside this call and need gradients
            try:
                output = below(keyset, arguments)
            finally:
                torch._C._set_grad_enabled(before)
            setup_context(ctx, arguments, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return *backward(ctx, *grads), None

    def differentiable(keyset: Any, *given: Any) -> Any:
        arguments = *given, *defaults[len(given) :]  # torch leaves out those that end the list and have their defaults
        learns = False
        for x in arguments:
            if isinstance(x, torch.Tensor):
                if _forward_ad._current_level >= 0:
                    refuse_tangent(name, x)
                learns = learns or x.requires_grad
        if not (learns and torch.is_grad_enabled()):
            return below(keyset, arguments)
        before = torch._C._functorch.get_single_level_autograd_function_allowed()
        torch._C._functorch.set_single_level_autograd_function_allowed(True)
        try:
            return Gradient.apply(*arguments, keyset)  # type: ignore[attr-defined]  # set by a metaclass
        finally:
            torch._C._functorch.set_single_level_autograd_function_allowed(before)

    Gradient.__name__ = f"{name}Backward"
    _LIBRARY.impl(name, differentiable, "Autograd", with_keyset=True)


def implement_autocast(name: str, device: str, implementation: Callable[..., Any]) -> None:
    """Let Python decide what an operator does under autocast on a type of device."""
    _LIBRARY.impl(name, implementation, f"Autocast{device.upper()}")


def implement_on_cuda(name: str, implementation: Callable[..., Any]) -> None:
    """Let Python compute an operator on CUDA, where it is a combination of other operators."""
    _LIBRARY.impl(name, implementation, "CUDA")
    ON_CUDA[name] = implementation


def register_in_place(name: str, written: int) -> None:
    """Let an operator that writes to its first ``written`` arguments count up their versions, as torch's operators do.

    Autograd then notices a change of a tensor that it has saved, and the layers' caches notice a change of a weight.
    """
    op = getattr(torch.ops.tandem_cuda, name).default

    def counting(keyset: Any, *arguments: Any) -> Any:
        torch.autograd.graph.increment_version(arguments[:written])
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return op._handle.redispatch_boxed(keyset & torch._C._after_ADInplaceOrView_keyset, *arguments)

    _LIBRARY.impl(name, counting, "ADInplaceOrView", with_keyset=True)
