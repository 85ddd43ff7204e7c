"""The seam between an operation's plain PyTorch body and its native implementation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from dalle.kernels.native import operations  # the only line that knows of it: `operations = {}` does without

P = ParamSpec("P")
R = TypeVar("R")


def accelerated(operation: Callable[P, R]) -> Callable[P, R]:
    """Let the native operation of the same name go first; where that gives None, the body of `operation` runs.

    The native one looks at its arguments and declines those that it has no faster code for.
    """
    native = operations.get(operation.__name__)
    if native is None:
        return operation

    @functools.wraps(operation)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        found: R | None = native(*args, **kwargs)
        return operation(*args, **kwargs) if found is None else found

    return run
