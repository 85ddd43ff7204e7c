"""3x3 convolutions of channels_last images, forward and backward, by Winograd's algorithm (csrc/winograd.h)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dalle.kernels.native import bindings
from dalle.kernels.switches import allows_native

LAST = torch.channels_last
_CHANNEL_MULTIPLE = 32  # output channels computed at once with the widest vectors
_POINTS = 36  # values that replace the 9 of a 3x3 kernel, and the 6x6 pixels of an input tile
# With fewer tiles (of 4x4 output pixels), transforming the kernel takes longer than it saves
_MIN_TILES = {torch.float32: 32, torch.bfloat16: 64}


def image_layout(x: Tensor) -> Tensor | None:
    """Images [B, C, H, W] in channels_last, which this code needs; None if there is no native code for them."""
    return x.contiguous(memory_format=LAST) if allows_native(x) and _known(x) else None


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """3x3 convolution with padding 1, if this is faster than PyTorch.

    Accumulates in float32, also under autocast. The error is about twice that of direct convolution: about 1e-6 for
    outputs of standard deviation 1.

    Args:
        x: [B, K, H, W] float32 or bfloat16, channels_last.
        weight: [N, K, 3, 3] of x's dtype; under autocast of any dtype.
        bias: [N] like weight, or None.

    Returns:
        [B, N, H, W], channels_last, in x's or autocast's dtype; None if PyTorch must do it: no compiled code, small
        images, or another layout, dtype, number of channels or device.
    """
    parameters = [weight] if bias is None else [weight, bias]
    # Checked before autocast's casts below, which would make new tensors of subclasses
    if not all(allows_native(t) for t in (x, *parameters)):
        return None
    if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype("cpu"))
    elif any(t.dtype != x.dtype for t in parameters):
        return None
    count, channels = weight.shape[:2]
    if not _known(x) or weight.shape != (count, x.shape[1], 3, 3) or (bias is not None and bias.shape != (count,)):
        return None
    if channels % _CHANNEL_MULTIPLE or count % _CHANNEL_MULTIPLE:
        return None
    if not x.is_contiguous(memory_format=LAST) or _tiles(x) < _MIN_TILES[x.dtype]:
        return None
    return _Convolution.apply(x, weight, bias)


def _known(x: Tensor) -> bool:
    """Whether x is a batch of images of a dtype that there is native code for."""
    return x.ndim == 4 and x.dtype in _MIN_TILES and bool(bindings.functions())


def _tiles(x: Tensor) -> int:
    return x.shape[0] * -(-x.shape[2] // 4) * -(-x.shape[3] // 4)


def _convolve(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """x [B, K, H, W] channels_last, kernel [3, 3, K, N] and bias [N], both float32, to [B, N, H, W]."""
    images, channels, height, width = x.shape
    count = kernel.shape[3]
    transformed = torch.empty(_POINTS * channels * count, dtype=torch.float32, device="cpu")
    y = torch.empty((images, count, height, width), dtype=x.dtype, device="cpu", memory_format=LAST)
    tensors = (x, kernel, bias, transformed, y)
    bindings.functions()[f"winograd_forward_{bindings.DTYPE_NAMES[x.dtype]}"](
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
        # Shaped [N, K, 3, 3] to [3, 3, K, N]: output channels side by side, as vectors of them are computed at once
        return _convolve(
            x, weight.permute(2, 3, 1, 0).float().contiguous(), None if bias is None else bias.float().contiguous()
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.to(x.dtype).contiguous(memory_format=LAST)
        x_grad = weight_grad = bias_grad = None
        if ctx.needs_input_grad[0]:
            # The input's gradient is the convolution of the output's with the flipped, transposed kernel
            x_grad = _convolve(gradient, weight.flip(2, 3).permute(2, 3, 0, 1).float().contiguous(), None)
        if ctx.needs_input_grad[1]:
            # As in the forward pass: [3, 3, K, N]
            kernel = torch.empty(3, 3, *weight.shape[1::-1], dtype=torch.float32, device="cpu")
            bindings.functions()[f"winograd_backward_{bindings.DTYPE_NAMES[x.dtype]}"](
                *(t.data_ptr() for t in (x, gradient, kernel)),
                *(x.shape[0], x.shape[2], x.shape[3], x.shape[1], weight.shape[0]),
                torch.get_num_threads(),
            )
            weight_grad = torch.empty_like(weight).copy_(kernel.permute(3, 2, 0, 1))
        if ctx.needs_input_grad[2]:
            bias_grad = gradient.float().sum((0, 2, 3)).to(ctx.bias)  # over images and pixels
        return x_grad, weight_grad, bias_grad
