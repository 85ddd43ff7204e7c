"""Products of many rows with a matrix, in training: by oneDNN's 1x1 convolutions, which are nearer to a CPU's rate.

They keep the matrix in a layout of their own, and packing it is counted: 2 to 17 % faster than oneDNN's products of
matrices from some 500 rows on (docs/log.md).
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.kernels.switches import differentiable

FROM = 512  # rows


def usable(rows: int, width: int, dtype: torch.dtype) -> bool:
    """Whether products of so many rows are faster this way, on a CPU."""
    return (
        rows >= FROM
        and width > 1
        and dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and (dtype == torch.float32 or _bfloat16())
    )


@functools.cache
def _bfloat16() -> bool:
    """Whether oneDNN computes in bfloat16, without AMX: with it nothing was measured."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and not torch.cpu._is_amx_tile_supported()


def forward(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear(x, weight, bias)` of x [M, K], weight [N, K] and bias [N], of one dtype; knows no gradient."""
    count, width = weight.shape
    # In bfloat16 packing takes more than it gains where a matrix has more inputs than outputs
    few = x.dtype == torch.bfloat16 and width > count
    if few or not (differentiable(x) and usable(len(x), width, x.dtype)):
        return F.linear(x, weight, bias)
    y = F.conv2d(_image(x), weight.view(count, width, 1, 1), bias)
    return y.permute(0, 2, 3, 1).reshape(-1, count)


def backward(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`gradient @ weight`, the gradient of x [M, K], of gradient [M, N] and weight [N, K]; knows no gradient itself."""
    count, width = weight.shape
    if not (differentiable(gradient) and usable(len(gradient), width, gradient.dtype)):
        return gradient @ weight
    images = _image(gradient), _image(x), weight.view(count, width, 1, 1)
    options = (None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, False, False])
    to: Tensor = torch.ops.aten.convolution_backward(*images, *options)[0]
    return to.permute(0, 2, 3, 1).reshape(-1, width)


def _image(rows: Tensor) -> Tensor:
    """Rows [M, K] as an image [1, K, 1, M], channels_last: the same memory."""
    return rows.contiguous().view(1, 1, *rows.shape).permute(0, 3, 1, 2)
