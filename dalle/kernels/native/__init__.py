"""Code that is compiled for this machine's CPU (bindings.cpp), as functions of tensors.

At the few rows of a step torch's own products read a matrix with a third to nine tenths of what memory gives, and its
attention reads the cache with less (docs/log.md). Where there is no C++ compiler, or `DALLE_CPU=off` is set, the
functions here say so and callers go torch's way.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

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
_enabled = os.environ.get("DALLE_CPU", "on") != "off"


@contextmanager
def plain() -> Iterator[None]:
    """Torch's own functions only, in this block."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def enabled() -> bool:
    """Whether fast ways are wanted: not within `plain`, nor where `DALLE_CPU=off`."""
    return _enabled


def trainable(x: Tensor) -> bool:
    """Whether functions that make their own gradients may be called: on a CPU, with a tensor as it is."""
    return (
        _enabled
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and x.numel() > 0
        and type(x) in (Tensor, nn.Parameter)  # fake ones and others may have no memory of their own
        and torch._C._functorch.peek_interpreter_stack() is None  # nor have those within vmap and jvp
    )


def usable(x: Tensor) -> bool:
    """Whether the functions without gradients may be called: nothing wants to know how a number came about."""
    return trainable(x) and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


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


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None) -> Tensor | None:
    """`x @ (scale * weight).T + bias`, if this code is the fast way to it.

    Args:
        x: [..., K] float32 or bfloat16.
        weight: [N, K] of x's dtype, or int8.
        bias: [N] of x's dtype.
        scale: [N] float32, for int8.

    Returns:
        [..., N], a new tensor that knows no gradient; None if torch is to do it: there is no compiled code, gradients
        are wanted, rows are many, or shape, dtype or device are others (torch then says what is wrong with them).
    """
    count, width = weight.shape
    if not usable(x) or weight.device != x.device or width % STEP or x.shape[-1:] != (width,):
        return None
    rows = x.numel() // width
    if not 0 < rows <= MOST_ROWS.get(weight.dtype, 0):
        return None
    function = functions().get(f"linear_{TYPES.get(x.dtype)}_{TYPES.get(weight.dtype)}")
    if function is None or not weight.is_contiguous() or not _a_number_each(bias, count, x.dtype):
        return None
    if not _a_number_each(scale, count, torch.float32):
        return None
    x, bias, scale = (
        x.contiguous(),
        None if bias is None else bias.contiguous(),
        None if scale is None else scale.contiguous(),
    )
    y = x.new_empty((*x.shape[:-1], count))
    function(
        x.data_ptr(),
        weight.data_ptr(),
        None if scale is None else scale.data_ptr(),
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
        rows,
        count,
        width,
        threads(rows * count * width),
    )
    return y


def _a_number_each(vector: Tensor | None, count: int, dtype: torch.dtype) -> bool:
    """Whether a vector is there with `count` numbers of a type, or is not there at all."""
    return vector is None or (vector.shape == (count,) and vector.dtype == dtype and vector.device.type == "cpu")


def sample(
    logits: Tensor,
    uniform: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    failed: Tensor | None = None,
) -> Tensor | None:
    """What `dalle.generation.sampling.sample` gives for a temperature above 0; None if torch is to do it."""
    function = functions().get("sample") if usable(logits) else None
    if function is None or logits.dtype != torch.float32 or logits.ndim != 2:
        return None
    rows, vocabulary = logits.shape
    if uniform.shape != (rows,) or uniform.device != logits.device or (top_k is not None and top_k < 1):
        return None
    logits, uniform = logits.contiguous(), uniform.double().contiguous()
    drawn = torch.empty(rows, dtype=torch.int64, device="cpu")
    without = function(
        logits.data_ptr(),
        uniform.data_ptr(),
        drawn.data_ptr(),
        rows,
        vocabulary,
        temperature,
        vocabulary if top_k is None else min(top_k, vocabulary),
        1.0 if top_p is None else top_p,
        threads(4 * logits.numel()) if rows > 1 else 1,
    )
    if without and failed is not None:
        failed.fill_(True)
    return drawn
