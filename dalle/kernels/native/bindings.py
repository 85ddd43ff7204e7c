"""The compiled functions of csrc/bindings.cpp, by ctypes, and what their arguments must be like."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import torch

from dalle.kernels.native.build import library

STEP = 32  # numbers of a row that are taken at a time, at most: a row must be a multiple
# Up to so many rows it is faster than torch; above, arithmetic counts more than reading (docs/log.md).
MOST_ROWS = {torch.float32: 16, torch.bfloat16: 16, torch.int8: 2**62}
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.int8: "int8"}

_POINTER, _NUMBER, _THREADS = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_ARGUMENTS = {
    "linear": [_POINTER] * 5 + [_NUMBER] * 3 + [_THREADS],
    "step": [_POINTER, _THREADS],
    "attend": [_POINTER, _THREADS],
    "normal_forward": [_POINTER] * 6 + [_NUMBER] * 4 + [ctypes.c_float, _THREADS, _THREADS],
    "normal_backward": [_POINTER] * 9 + [_NUMBER] * 4 + [_THREADS] * 2,
    "winograd_forward": [_POINTER] * 5 + [_NUMBER] * 5 + [_THREADS],
    "winograd_backward": [_POINTER] * 3 + [_NUMBER] * 5 + [_THREADS],
    "entropy": [_POINTER] * 5 + [_NUMBER] * 2 + [ctypes.c_float, _THREADS],
    "sequences": [_POINTER, _THREADS],
    "sample": [_POINTER] * 3 + [_NUMBER] * 2 + [ctypes.c_float, _NUMBER, ctypes.c_double, _THREADS],
}
_NAMES = (
    *("linear_float32_float32", "linear_bfloat16_bfloat16", "linear_float32_int8"),
    *("step_float32_float32", "step_bfloat16_bfloat16", "step_int8_float32"),
    *("attend_float32", "attend_bfloat16", "sample"),
    *("sequences_forward", "sequences_backward", "entropy_float32", "entropy_bfloat16"),
    *("normal_forward_float32", "normal_forward_bfloat16", "normal_backward_float32", "normal_backward_bfloat16"),
    *("winograd_forward_float32", "winograd_forward_bfloat16"),
    *("winograd_backward_float32", "winograd_backward_bfloat16"),
)
_ALONE = 2**16  # multiplications of one thread that take less time than waking a second one


def threads(multiplications: int) -> int:
    """How many threads so much work is for."""
    return torch.get_num_threads() if multiplications > _ALONE else 1


@functools.cache
def functions() -> dict[str, Callable[..., Any]]:
    """The compiled functions by name; none if there is no compiled code."""
    compiled = library()
    if compiled is None:
        return {}
    found = {}
    for name in _NAMES:
        function = getattr(compiled, name)
        kind = next(kind for kind in _ARGUMENTS if name == kind or name.startswith(kind + "_"))
        function.argtypes, function.restype = _ARGUMENTS[kind], _NUMBER if kind == "sample" else None
        found[name] = function
    return found
