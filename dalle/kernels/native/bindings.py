"""ctypes bindings of the compiled functions in csrc/bindings.cpp, and limits that their callers must respect."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import torch

from dalle.kernels.native.build import library

ROW_MULTIPLE = 32  # the widest vectors: row lengths must be a multiple
# Up to this many rows the native product is faster; with more, arithmetic outweighs reading weights (docs/log.md).
MAX_ROWS = {torch.float32: 16, torch.bfloat16: 16, torch.int8: 2**62}
DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.int8: "int8"}

_POINTER, _NUMBER, _THREADS = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
# By the start of a function's name; the rest is its types
_ARGUMENTS = {
    "linear": [_POINTER] * 5 + [_NUMBER] * 3 + [_THREADS],
    "decode_step": [_POINTER, _THREADS],
    "decode_attention": [_POINTER, _THREADS],
    "group_norm_forward": [_POINTER] * 6 + [_NUMBER] * 4 + [ctypes.c_float, _THREADS, _THREADS],
    "group_norm_backward": [_POINTER] * 9 + [_NUMBER] * 4 + [_THREADS] * 2,
    "winograd_forward": [_POINTER] * 5 + [_NUMBER] * 5 + [_THREADS],
    "winograd_backward": [_POINTER] * 3 + [_NUMBER] * 5 + [_THREADS],
    "cross_entropy": [_POINTER] * 5 + [_NUMBER] * 2 + [ctypes.c_float, _THREADS],
    "attention": [_POINTER, _THREADS],
    "sample": [_POINTER] * 3 + [_NUMBER] * 2 + [ctypes.c_float, _NUMBER, ctypes.c_double, _THREADS],
}
_NAMES = (
    *("linear_float32_float32", "linear_bfloat16_bfloat16", "linear_float32_int8"),
    *("decode_step_float32_float32", "decode_step_bfloat16_bfloat16", "decode_step_int8_float32"),
    *("decode_attention_float32", "decode_attention_bfloat16", "sample"),
    *("attention_forward", "attention_backward", "cross_entropy_float32", "cross_entropy_bfloat16"),
    *("group_norm_forward_float32", "group_norm_forward_bfloat16"),
    *("group_norm_backward_float32", "group_norm_backward_bfloat16"),
    *("winograd_forward_float32", "winograd_forward_bfloat16"),
    *("winograd_backward_float32", "winograd_backward_bfloat16"),
)
_MAX_SINGLE_THREAD = 2**16  # multiplications that one thread finishes before a second one would wake up


def threads(multiplications: int) -> int:
    """How many threads to use for this much work."""
    return torch.get_num_threads() if multiplications > _MAX_SINGLE_THREAD else 1


@functools.cache
def functions() -> dict[str, Callable[..., Any]]:
    """The compiled functions by name; empty without compiled code."""
    compiled = library()
    if compiled is None:
        return {}
    found = {}
    for name in _NAMES:
        function = getattr(compiled, name)
        kind = next(kind for kind in _ARGUMENTS if name == kind or name.startswith(kind + "_"))
        # Without argtypes ctypes would pass addresses as 32-bit integers
        function.argtypes, function.restype = _ARGUMENTS[kind], _NUMBER if kind == "sample" else None
        found[name] = function
    return found
