"""A linear map for few rows, which reads the weights near the bandwidth of memory.

At the few rows of a decode step PyTorch's own products reach a third to nine tenths of that (docs/log.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dalle.kernels.native.bindings import MOST_ROWS, STEP, TYPES, functions, threads
from dalle.kernels.switches import inference


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
    if not inference(x) or weight.device != x.device or width % STEP or x.shape[-1:] != (width,):
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
