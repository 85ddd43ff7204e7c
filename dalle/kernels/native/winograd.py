"""3x3 convolutions of channels_last images by compiled code (csrc/winograd.h): forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dalle.kernels.native import bindings
from dalle.kernels.switches import differentiable

LAST = torch.channels_last
_PANEL = 32  # channels that are made at a time, at most
_NUMBERS = 36  # that stand for a kernel's 9, and for 16 cells
_FEW = {torch.float32: 32, torch.bfloat16: 64}  # with fewer squares of 4x4 cells a kernel's numbers are not worth it


def image_layout(x: Tensor) -> Tensor | None:
    """Images [B, C, H, W] in channels_last, which this code takes; None where there is none for them."""
    return x.contiguous(memory_format=LAST) if differentiable(x) and _known(x) else None


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """`conv2d(x, weight, bias, padding=1)` of 3x3 kernels, if this code is the fast way to it.

    Sums are in float32, also under autocast; the error is about twice that of adding up products one by one, so of a
    result of deviation 1 some 1e-6.

    Args:
        x: [B, K, H, W] float32 or bfloat16, channels_last.
        weight: [N, K, 3, 3] of x's dtype; under autocast of any.
        bias: [N] as weight, or None.

    Returns:
        [B, N, H, W], channels_last, of x's dtype or autocast's; None if torch is to do it: there is no compiled code,
        cells are few, or layout, dtype, channels or device are others.
    """
    parameters = [weight] if bias is None else [weight, bias]
    if not all(differentiable(t) for t in (x, *parameters)):
        return None
    if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype("cpu"))
    elif any(t.dtype != x.dtype for t in parameters):
        return None
    count, channels = weight.shape[:2]
    if not _known(x) or weight.shape != (count, x.shape[1], 3, 3) or (bias is not None and bias.shape != (count,)):
        return None
    if channels % _PANEL or count % _PANEL or not x.is_contiguous(memory_format=LAST) or _squares(x) < _FEW[x.dtype]:
        return None
    return _Convolution.apply(x, weight, bias)


def _known(x: Tensor) -> bool:
    """Whether x is a batch of images of a type that there is code for."""
    return x.ndim == 4 and x.dtype in _FEW and bool(bindings.functions())


def _squares(x: Tensor) -> int:
    return x.shape[0] * -(-x.shape[2] // 4) * -(-x.shape[3] // 4)


def _convolved(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """x [B, K, H, W] channels_last, kernel [3, 3, K, N], bias [N], both float32 -> [B, N, H, W]."""
    images, channels, height, width = x.shape
    count = kernel.shape[3]
    weights = torch.empty(_NUMBERS * channels * count, dtype=torch.float32, device="cpu")
    y = torch.empty((images, count, height, width), dtype=x.dtype, device="cpu", memory_format=LAST)
    tensors = (x, kernel, bias, weights, y)
    bindings.functions()[f"winograd_forward_{bindings.TYPES[x.dtype]}"](
        *(None if t is None else t.data_ptr() for t in tensors),
        *(images, height, width, channels, count),
        torch.get_num_threads(),
    )
    return y


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias = None if bias is None else bias.dtype
        return _convolved(
            x, weight.permute(2, 3, 1, 0).float().contiguous(), None if bias is None else bias.float().contiguous()
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.to(x.dtype).contiguous(memory_format=LAST)
        to = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            # What a cell adds to its neighbours comes back the other way
            to = _convolved(gradient, weight.flip(2, 3).permute(2, 3, 0, 1).float().contiguous(), None)
        if ctx.needs_input_grad[1]:
            kernel = torch.empty(3, 3, *weight.shape[1::-1], dtype=torch.float32, device="cpu")
            bindings.functions()[f"winograd_backward_{bindings.TYPES[x.dtype]}"](
                *(t.data_ptr() for t in (x, gradient, kernel)),
                *(x.shape[0], x.shape[2], x.shape[3], x.shape[1], weight.shape[0]),
                torch.get_num_threads(),
            )
            of_weight = torch.empty_like(weight).copy_(kernel.permute(3, 2, 0, 1))
        if ctx.needs_input_grad[2]:
            of_bias = gradient.float().sum((0, 2, 3)).to(ctx.bias)
        return to, of_weight, of_bias
