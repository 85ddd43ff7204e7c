"""Matrix products with many rows, for training on a CPU: by oneDNN's 1x1 convolutions, which are faster than its GEMM.

Convolutions keep the weight in a blocked layout of their own. With the time to pack it included, they are 2 to 17 %
faster than oneDNN's matrix products from about 500 rows on (docs/log.md).
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.kernels.switches import allows_native

MIN_ROWS = 512


def usable(rows: int, width: int, dtype: torch.dtype) -> bool:
    """Whether a product with this many rows is faster as a convolution, on a CPU."""
    return (
        rows >= MIN_ROWS
        and width > 1
        and dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and (dtype == torch.float32 or _bfloat16())
    )


@functools.cache
def _bfloat16() -> bool:
    """Whether oneDNN computes in bfloat16 without AMX; with AMX this was never measured."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and not torch.cpu._is_amx_tile_supported()


def forward(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear(x, weight, bias)` for x [M, K], weight [N, K] and bias [N] of one dtype; not differentiable."""
    count, width = weight.shape
    # In bfloat16, packing a matrix with more inputs than outputs takes more time than it saves
    too_wide = x.dtype == torch.bfloat16 and width > count
    if too_wide or not (allows_native(x) and usable(len(x), width, x.dtype)):
        return F.linear(x, weight, bias)
    # Shaped [1, K, 1, M] convolved with [N, K, 1, 1] is [1, N, 1, M]
    y = F.conv2d(_as_image(x), weight.view(count, width, 1, 1), bias)
    return y.permute(0, 2, 3, 1).reshape(-1, count)  # [M, N]


def backward(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`gradient @ weight`: the gradient of x [M, K] from that of y [M, N] and weight [N, K]; not differentiable."""
    count, width = weight.shape
    if not (allows_native(gradient) and usable(len(gradient), width, gradient.dtype)):
        return gradient @ weight
    # oneDNN's backward-data convolution is called directly: autograd would compute the weight's gradient as well
    images = _as_image(gradient), _as_image(x), weight.view(count, width, 1, 1)
    # No bias; stride 1, no padding, dilation 1; not transposed, one group; only the input's gradient
    options = (None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, False, False])
    grad: Tensor = torch.ops.aten.convolution_backward(*images, *options)[0]
    return grad.permute(0, 2, 3, 1).reshape(-1, width)


def _as_image(rows: Tensor) -> Tensor:
    """View rows [M, K] as a channels_last image [1, K, 1, M], without a copy."""
    return rows.contiguous().view(1, 1, *rows.shape).permute(0, 3, 1, 2)
