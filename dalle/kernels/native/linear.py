"""A linear layer for few rows, which reads the weights at close to memory bandwidth.

With the few rows of a decode step, PyTorch's own products reach a third to nine tenths of that (docs/log.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dalle.kernels.native.bindings import DTYPE_NAMES, MAX_ROWS, ROW_MULTIPLE, functions, threads
from dalle.kernels.switches import allows_native_inference


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None) -> Tensor | None:
    """`x @ (scale * weight).T + bias`, for inference with few rows.

    Args:
        x: [..., K] float32 or bfloat16.
        weight: [N, K] of x's dtype, or int8.
        bias: [N] of x's dtype.
        scale: [N] float32, for int8.

    Returns:
        [..., N], a new tensor without gradient; None if PyTorch must do it: no compiled code, gradients are needed, too
        many rows, or another shape, dtype or device (PyTorch then reports what is wrong).
    """
    count, width = weight.shape
    if not allows_native_inference(x) or weight.device != x.device or width % ROW_MULTIPLE or x.shape[-1:] != (width,):
        return None
    rows = x.numel() // width
    if not 0 < rows <= MAX_ROWS.get(weight.dtype, 0):
        return None
    function = functions().get(f"linear_{DTYPE_NAMES.get(x.dtype)}_{DTYPE_NAMES.get(weight.dtype)}")
    if function is None or not weight.is_contiguous() or not _fits(bias, count, x.dtype):
        return None
    if not _fits(scale, count, torch.float32):
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
        # An estimate of the work: more threads than it is worth would cost time
        width,
        threads(rows * count * width),
    )
    return y


def _fits(vector: Tensor | None, count: int, dtype: torch.dtype) -> bool:
    """Whether an optional vector, if given, is of this length and dtype on the CPU."""
    return vector is None or (vector.shape == (count,) and vector.dtype == dtype and vector.device.type == "cpu")
