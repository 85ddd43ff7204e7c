"""GroupNorm over channels_last images, optionally followed by SiLU, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dalle.kernels.native import bindings
from dalle.kernels.switches import allows_native

_CHANNEL_MULTIPLE = 16  # the widest vectors


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float, swish: bool) -> Tensor | None:
    """GroupNorm, followed by SiLU if `swish`.

    Args:
        x: [B, C, H, W] float32 or bfloat16, channels_last.
        weight: [C].
        bias: [C].
        groups: must divide C.
        epsilon: added to the variance.
        swish: whether to apply SiLU afterward.

    Returns:
        Shaped like x; None if PyTorch must do it: no compiled code, or another layout, dtype or device.
    """
    if (
        not allows_native(x)
        or x.dtype not in (torch.float32, torch.bfloat16)
        or not x.is_contiguous(memory_format=torch.channels_last)
        or x.shape[1] % _CHANNEL_MULTIPLE
        or groups < 1
        or x.shape[1] % groups
        or not all(t.shape == x.shape[1:2] and allows_native(t) for t in (weight, bias))
        or f"group_norm_forward_{bindings.DTYPE_NAMES[x.dtype]}" not in bindings.functions()
    ):
        return None
    return _GroupNorm.apply(x, weight, bias, groups, epsilon, swish)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float, swish: bool) -> Tensor:
        images, channels, height, width = x.shape
        # Even in bfloat16 models, whose affine parameters are tiny
        scale, shift = (t.detach().float().contiguous() for t in (weight, bias))
        mean, inverse_std = torch.empty(2, images, groups, dtype=torch.float32, device="cpu").unbind()
        y = torch.empty_like(x, memory_format=torch.channels_last)
        function = bindings.functions()[f"group_norm_forward_{bindings.DTYPE_NAMES[x.dtype]}"]
        tensors = (x, scale, shift, mean, inverse_std, y)
        shape = (images, height * width, channels, groups)  # B, P, C, G of group_norm.h
        function(*(t.data_ptr() for t in tensors), *shape, epsilon, swish, bindings.threads(8 * x.numel()))
        ctx.save_for_backward(x, scale, shift, mean, inverse_std)
        ctx.shape, ctx.swish, ctx.dtype = shape, swish, weight.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, mean, inverse_std = ctx.saved_tensors
        gradient = gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)
        x_grad = torch.empty_like(x, memory_format=torch.channels_last)
        # Summed in float64, over all images and pixels
        weight_grad, bias_grad = torch.zeros(2, len(scale), dtype=torch.float64, device="cpu").unbind()
        function = bindings.functions()[f"group_norm_backward_{bindings.DTYPE_NAMES[x.dtype]}"]
        tensors = (x, scale, shift, mean, inverse_std, gradient, x_grad, weight_grad, bias_grad)
        function(*(t.data_ptr() for t in tensors), *ctx.shape, ctx.swish, bindings.threads(8 * x.numel()))
        return x_grad, weight_grad.to(ctx.dtype), bias_grad.to(ctx.dtype), None, None, None
