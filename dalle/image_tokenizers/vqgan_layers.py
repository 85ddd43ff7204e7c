"""The convolutional layers of a VQGAN's encoder and decoder, as taming-transformers builds them.

Shapes: B images, C channels, h w cells of a level.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.kernels.conv import Conv3x3
from dalle.kernels.group_norm import GROUPS, Norm


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention if configured, then an optional resampling."""

    def __init__(self, blocks: list[ResidualBlock], attends: bool, resample: nn.Module | None):
        super().__init__()
        self.block = nn.ModuleList(blocks)
        # Names of these modules are taming's, as they are part of published weights
        self.attn = nn.ModuleList([AttentionBlock(block.width) for block in blocks] if attends else [])
        self.resample = nn.Identity() if resample is None else resample

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to [B, C', h', w']."""
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        return self.resample(x)


class Middle(nn.Sequential):
    """Residual block, attention, residual block, at the resolution of the codes."""

    def __init__(self, width: int, dropout: float, groups: int = GROUPS):
        super().__init__(
            ResidualBlock(width, width, dropout, groups),
            AttentionBlock(width, groups),
            ResidualBlock(width, width, dropout, groups),
        )


class ResidualBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))), with a 1x1 convolution on the shortcut if the width changes."""

    def __init__(self, inputs: int, width: int, dropout: float, groups: int = GROUPS):
        super().__init__()
        self.width = width
        self.norm1 = Norm(inputs, groups=groups)
        self.conv1 = Conv3x3(inputs, width)
        self.norm2 = Norm(width, groups=groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv3x3(width, width)
        self.nin_shortcut = nn.Identity() if inputs == width else nn.Conv2d(inputs, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] to [B, width, h, w]."""
        # Norm and swish are one kernel on a CPU
        hidden = self.conv1(self.norm1(x, swish=True))
        return self.nin_shortcut(x) + self.conv2(self.dropout(self.norm2(hidden, swish=True)))


class AttentionBlock(nn.Module):
    """Single-head self-attention over all cells, with a residual connection."""

    def __init__(self, width: int, groups: int = GROUPS):
        super().__init__()
        self.norm = Norm(width, groups=groups)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same shape."""
        normed = self.norm(x)
        q, k, v = (rearrange(conv(normed), "b c h w -> b 1 (h w) c") for conv in (self.q, self.k, self.v))
        # Cells are tokens, and the single head has all channels
        mixed = F.scaled_dot_product_attention(q, k, v)  # [B, 1, h*w, C]
        return x + self.proj_out(rearrange(mixed, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Halve the resolution. Pads the right and bottom only, as taming does."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to [B, C, h / 2, w / 2]."""
        # An even size with stride 2 needs one more row and column; on which side is part of the weights' meaning
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the resolution: nearest-neighbor interpolation, then a convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = Conv3x3(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to [B, C, 2 h, 2 w]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
