"""An encoder whose codes describe their own cell only: no attention, no statistics over the whole image.

A convolutional encoder with attention and group normalization leaks the whole image into every code, even of blank
cells; a transformer trained on such codes memorizes images by these traces instead of learning to compose them. Here
the receptive field of a code is its cell plus a fixed margin, and equal surroundings give equal codes anywhere.

Shapes: B images, C channels, h x w cells.
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from dalle.config import check_total, config
from dalle.config.ranges import Range, Size


@config
class LocalEncoderConfig:
    """Architecture of a local encoder."""

    width: Size = 256
    """Channels per cell."""
    blocks: Size = 3
    """Residual blocks, each an MLP over the channels of one cell."""
    expansion: Size = 2
    """Hidden channels of a block, as a multiple of `width`."""
    margin: Annotated[int, Range(0, 64, hint="pixels")] = 0
    """Pixels, after `pool`, around its cell that a code depends on too; the image is padded by repeating its edge."""
    pool: Annotated[int, Range(1, 16, hint="1 reads every pixel")] = 1
    """Side of the squares of pixels that are averaged before the encoder: the codes are those of an image smaller by
    this factor, which the decoder draws at full size."""

    def __post_init__(self) -> None:
        check_total(
            self.blocks * (2 * self.expansion * self.width**2 + 2**14),
            f"width {self.width}, blocks {self.blocks}, expansion {self.expansion}",
        )


class LocalEncoder(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] to latents [B, latent_channels, H / factor, W / factor].

    Args:
        config: sizes.
        factor: height and width of a cell, in pixels; a multiple of `config.pool`.
        latent_channels: output channels.
    """

    def __init__(self, config: LocalEncoderConfig, factor: int, latent_channels: int):
        super().__init__()
        self.margin, self.pool = config.margin, config.pool
        # The stride is the cell and the window is the cell plus its margin: nothing beyond it is seen
        cell = factor // config.pool
        self.cell = nn.Conv2d(3, config.width, cell + 2 * config.margin, stride=cell)
        self.blocks = nn.ModuleList(CellBlock(config.width, config.expansion) for _ in range(config.blocks))
        self.norm_out = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, latent_channels)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        if self.pool > 1:
            images = F.avg_pool2d(images, self.pool)
        if self.margin:
            # Zeros would mark the edge of the image, and blank cells there would get codes of their own.
            images = F.pad(images, 4 * [self.margin], mode="replicate")
        x = self.cell(images).permute(0, 2, 3, 1)  # [B, h, w, C]
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm_out(x)).permute(0, 3, 1, 2)  # [B, latent_channels, h, w]


class CellBlock(nn.Module):
    """x + MLP(LayerNorm(x)), applied to each cell separately."""

    def __init__(self, width: int, expansion: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, h, w, C] to the same shape."""
        return x + self.down(F.gelu(self.up(self.norm(x))))
