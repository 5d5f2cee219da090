"""Register gradients of the operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._functorch import autograd_function
from torch.autograd import forward_ad

_LIBRARY: Any = torch.library.Library("tandem_cuda", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch's
_forward_ad: Any = forward_ad
_functorch: Any = autograd_function


def refuse_tangents(name: str, *tensors: torch.Tensor) -> None:
    """Raise NotImplementedError if forward mode differentiates a tensor. Its tangent would silently become zero."""
    if _forward_ad._current_level >= 0 and any(_forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise NotImplementedError(
            f"{name}: forward-mode gradients (jvp, jacfwd, hessian) are not supported; use grad, vjp or jacrev"
        )


def register_gradient(name: str, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
    """Register a gradient that also works under ``torch.func``.

    Takes the arguments of ``torch.library.register_autograd``. The autograd function that torch registers there refuses
    functional transforms, because it is written for functions called from Python. The dispatcher instead runs a
    transform level by level, each with the autograd of its own level. An operator's autograd function must therefore
    handle a single level, which _SingleLevelFunction does. Forward mode raises an error: without a formula its tangents
    would silently become zero.
    """
    op = getattr(torch.ops.tandem_cuda, name).default

    def below(keyset: Any, arguments: Sequence[Any]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    class Gradient(torch.autograd.function._SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            *arguments, keyset = inputs  # keyset comes last, so that ctx.needs_input_grad starts with the arguments
            with torch.enable_grad():  # enclosing transforms run inside this call and need gradients
                output = below(keyset, arguments)
            setup_context(ctx, arguments, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return *backward(ctx, *grads), None

    def differentiable(keyset: Any, *arguments: Any) -> Any:
        tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
        refuse_tangents(name, *tensors)
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            with _functorch.enable_single_level_autograd_function():
                return Gradient.apply(*arguments, keyset)  # type: ignore[attr-defined]  # set by a metaclass
        return below(keyset, arguments)

    Gradient.__name__ = f"{name}Backward"
    _LIBRARY.impl(name, differentiable, "Autograd", with_keyset=True)


def implement_on_cuda(name: str, implementation: Callable[..., Any]) -> None:
    """Let Python compute an operator on CUDA, where it is a combination of others."""
    _LIBRARY.impl(name, implementation, "CUDA")


def register_in_place(name: str, written: int) -> None:
    """Let an operator that writes to its first ``written`` arguments count up their versions, as torch's own do.

    Autograd then notices that a tensor which it has saved has changed, and the layers' caches that a weight has.
    """
    op = getattr(torch.ops.tandem_cuda, name).default

    def counting(keyset: Any, *arguments: Any) -> Any:
        torch.autograd.graph.increment_version(arguments[:written])
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return op.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *arguments)

    _LIBRARY.impl(name, counting, "ADInplaceOrView", with_keyset=True)
