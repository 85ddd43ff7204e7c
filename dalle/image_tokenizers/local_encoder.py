"""An encoder whose codes say what is in their cell, and nothing else: no attention, no statistics over the image.

A convolutional encoder with attention and group normalization writes the whole image into every code, blank cells
too; a transformer that is trained on such codes looks images up by these traces instead of learning to draw. Here the
receptive field of a code is its cell and a margin around it, of which it is a function wherever the cell lies.

Letters: B images, C channels, h x w cells.
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from dalle.config import check_total, config
from dalle.ranges import Range, Size


@config
class LocalEncoderConfig:
    """An encoder that sees a cell at a time."""

    width: Size = 256
    """Channels of a cell."""
    blocks: Size = 3
    """Residual blocks, each a multilayer perceptron over a cell's channels."""
    expansion: Size = 2
    """Hidden channels of a block over `width`."""
    margin: Annotated[int, Range(0, 64, hint="pixels")] = 0
    """Pixels around its cell that a code looks at too; beyond the image's edge the edge is repeated."""

    def __post_init__(self) -> None:
        check_total(
            self.blocks * (2 * self.expansion * self.width**2 + 2**14),
            f"width {self.width}, blocks {self.blocks}, expansion {self.expansion}",
        )


class LocalEncoder(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] to latents [B, latent_channels, H / factor, W / factor].

    Args:
        config: sizes.
        factor: pixels a side of a cell.
        latent_channels: channels that are given.
    """

    def __init__(self, config: LocalEncoderConfig, factor: int, latent_channels: int):
        super().__init__()
        self.margin = config.margin
        self.cell = nn.Conv2d(3, config.width, factor + 2 * config.margin, stride=factor)
        self.blocks = nn.ModuleList(CellBlock(config.width, config.expansion) for _ in range(config.blocks))
        self.norm_out = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, latent_channels)

    def forward(self, images: Tensor) -> Tensor:
        if self.margin:
            # Zeros would tell a code that it lies at the edge, and blank cells there would have codes of their own.
            images = F.pad(images, 4 * [self.margin], mode="replicate")
        x = self.cell(images).permute(0, 2, 3, 1)  # [B, h, w, C]
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm_out(x)).permute(0, 3, 1, 2)


class CellBlock(nn.Module):
    """x + MLP(LayerNorm(x)), each cell for itself."""

    def __init__(self, width: int, expansion: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))
