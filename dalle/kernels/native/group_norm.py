"""GroupNorm of channels_last images, with swish if wanted, by compiled code: forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dalle.kernels.native import bindings
from dalle.kernels.switches import differentiable

_LANES = 16  # channels that are taken at a time, at most


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float, swish: bool) -> Tensor | None:
    """`group_norm(x)`, or `silu(group_norm(x))`, if this code is the fast way to it.

    Args:
        x: [B, C, H, W] float32 or bfloat16, channels_last.
        weight: [C].
        bias: [C].
        groups: must divide C.
        epsilon: added to the variance.
        swish: whether silu follows.

    Returns:
        As x; None if torch is to do it: there is no compiled code, or layout, dtype or device are others.
    """
    if (
        not differentiable(x)
        or x.dtype not in (torch.float32, torch.bfloat16)
        or not x.is_contiguous(memory_format=torch.channels_last)
        or x.shape[1] % _LANES
        or groups < 1
        or x.shape[1] % groups
        or not all(t.shape == x.shape[1:2] and differentiable(t) for t in (weight, bias))
        or f"normal_forward_{bindings.TYPES[x.dtype]}" not in bindings.functions()
    ):
        return None
    return _Normal.apply(x, weight, bias, groups, epsilon, swish)


class _Normal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float, swish: bool) -> Tensor:
        images, channels, height, width = x.shape
        scale, shift = (t.detach().float().contiguous() for t in (weight, bias))
        mean, inverse = torch.empty(2, images, groups, dtype=torch.float32, device="cpu").unbind()
        y = torch.empty_like(x, memory_format=torch.channels_last)
        function = bindings.functions()[f"normal_forward_{bindings.TYPES[x.dtype]}"]
        tensors = (x, scale, shift, mean, inverse, y)
        shape = (images, height * width, channels, groups)
        function(*(t.data_ptr() for t in tensors), *shape, epsilon, swish, bindings.threads(8 * x.numel()))
        ctx.save_for_backward(x, scale, shift, mean, inverse)
        ctx.shape, ctx.swish, ctx.dtype = shape, swish, weight.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, mean, inverse = ctx.saved_tensors
        gradient = gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)
        to = torch.empty_like(x, memory_format=torch.channels_last)
        of_weight, of_bias = torch.zeros(2, len(scale), dtype=torch.float64, device="cpu").unbind()
        function = bindings.functions()[f"normal_backward_{bindings.TYPES[x.dtype]}"]
        tensors = (x, scale, shift, mean, inverse, gradient, to, of_weight, of_bias)
        function(*(t.data_ptr() for t in tensors), *ctx.shape, ctx.swish, bindings.threads(8 * x.numel()))
        return to, of_weight.to(ctx.dtype), of_bias.to(ctx.dtype), None, None, None
