"""Operators in two forms: checked, for everybody, and trusted, for the layers of this library."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from typing import Any, ParamSpec, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
_MISSING = Parameter.empty
_PLAIN = (Tensor, nn.Parameter)
"""Tensors of other classes, such as fake ones, need not reach C++."""


class Operator(Protocol[P, R_co]):
    """A function that checks its arguments."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    @property
    def trusted(self) -> Callable[P, R_co]:
        """The function without these checks, unless the call fails: the kernels check what memory depends on."""


def checked_by(check: Callable[[str, Any], object]) -> Callable[[Callable[P, R]], Operator[P, R]]:
    """Decorate a function that calls an operator, so that ``check(name, arguments)`` runs first.

    ``arguments`` is a named tuple of the function's parameters. Layers call the function's ``trusted`` form: C++ checks
    shapes, dtypes and devices again, and where it refuses them, ``check`` says in Python's words what is wrong. Nothing
    reaches C++ in compiled code or with fake and meta tensors, so there the check comes first.
    """

    def decorate(call: Callable[P, R]) -> Operator[P, R]:
        name, parameters = call.__name__, signature(call).parameters
        defaults = [x.default for x in parameters.values()]
        required = [i for i, default in enumerate(defaults) if default is _MISSING]
        arguments: Any = namedtuple("arguments", parameters, defaults=defaults)  # type: ignore[misc]  # not literal

        def check_all(args: Any, kwargs: Any) -> None:
            if len(args) > len(parameters) or any(key not in arguments._fields for key in kwargs):
                return  # the call itself says what is wrong
            given = arguments(*args, **kwargs)
            if not any(given[i] is _MISSING for i in required):
                check(name, given)

        @wraps(call)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            check_all(args, kwargs)
            return call(*args, **kwargs)

        @wraps(call)
        def trusted(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_dynamo_compiling() or type(args[0]) is not Tensor:
                return checked(*args, **kwargs)
            for x in (*args, *kwargs.values()):
                if isinstance(x, Tensor) and (x.is_meta or type(x) not in _PLAIN):
                    return checked(*args, **kwargs)
            try:
                return call(*args, **kwargs)
            except Exception as error:
                failure = error
            try:
                check_all(args, kwargs)
                raise failure
            finally:
                del failure  # whose frames hold the arguments

        function: Any = checked
        function.trusted = trusted
        return cast("Operator[P, R]", function)

    return decorate
