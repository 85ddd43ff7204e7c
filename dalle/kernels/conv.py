"""The 3x3 convolution of image networks, and the memory layout it is fastest in."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dalle.kernels.dispatch import accelerated


@accelerated
def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """3x3 convolution that keeps the image size (padding 1).

    Args:
        x: [B, K, H, W].
        weight: [N, K, 3, 3].
        bias: [N], or None.

    Returns:
        [B, N, H, W].
    """
    return F.conv2d(x, weight, bias, padding=1)


@accelerated
def image_layout(x: Tensor) -> Tensor:
    """Put images [B, C, H, W] in the layout that is fastest for convolutions and norms; the plain version keeps it."""
    return x


class Conv3x3(nn.Conv2d):
    """`conv3x3` with the parameters of `nn.Conv2d(channels, width, 3, padding=1)`."""

    def __init__(self, channels: int, width: int):
        super().__init__(channels, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, channels, H, W] to [B, width, H, W]."""
        return conv3x3(x, self.weight, self.bias)
