"""The seam between the plain PyTorch body of an operation and its native implementation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from dalle.kernels.native import operations, prepare  # the only import of native code: without it, `operations = {}`

__all__ = ["accelerated", "prepare"]

P = ParamSpec("P")
R = TypeVar("R")


def accelerated(operation: Callable[P, R]) -> Callable[P, R]:
    """Try the native operation of the same name first; if it returns None, run the body of `operation`.

    The native one inspects its arguments and returns None for those it has no faster code for.
    """
    native = operations.get(operation.__name__)  # looked up once, when the operation is defined
    if native is None:
        return operation

    @functools.wraps(operation)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        # None means "declined": no operation with a native version has None as a result
        found: R | None = native(*args, **kwargs)
        return operation(*args, **kwargs) if found is None else found

    return run
