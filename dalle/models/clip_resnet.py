"""CLIP's convolutional image tower: a ResNet with a stem of three convolutions and attention pooling.

Radford et al. 2021, arXiv 2103.00020, section 2.4. Strides are average pools before the last convolution of a block and
on its shortcut. Batch norms are part of the convolutions: in published weights their statistics are fixed, and a norm
over the batch would make an embedding depend on the other images, which a contrastive batch in pieces does not allow.

Shapes: B batch, H W pixels, h w cells of 32 x 32 pixels, C channels of the last block, D embedding.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.models.clip_config import CLIPConfig
from dalle.models.clip_tower import ImageTower, normalizer

CELL = 32  # pixels a side of a cell of the last block: the stem has two strides of 2, and three stages one each
_EXPANSION = 4
_HEAD = 64  # channels per head of the pooling


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut around them."""

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.first = nn.Conv2d(channels, planes, 1)
        self.middle = nn.Conv2d(planes, planes, 3, padding=1)
        self.last = nn.Conv2d(planes, planes * _EXPANSION, 1)
        # A stride or another width: the input cannot be added as it is
        changes = stride > 1 or channels != planes * _EXPANSION
        self.shortcut = nn.Conv2d(channels, planes * _EXPANSION, 1) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, h, w] to [B, 4 * planes, h / stride, w / stride]."""
        inner = F.relu(self.middle(F.relu(self.first(x))))
        if self.stride > 1:
            # Anti-aliased: no strided convolutions
            inner, x = F.avg_pool2d(inner, self.stride), F.avg_pool2d(x, self.stride)
        return F.relu(self.last(inner) + (x if self.shortcut is None else self.shortcut(x)))


class QueryPooling(nn.Module):
    """Attention of the mean over all cells to the cells and itself."""

    def __init__(self, channels: int, cells: int) -> None:
        super().__init__()
        self.heads = channels // _HEAD
        self.positions = nn.Parameter(torch.randn(cells + 1, channels) * channels**-0.5)  # the mean's position is first
        self.q, self.k, self.v = (nn.Linear(channels, channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to [B, C]."""
        cells = rearrange(x, "B C h w -> B (h w) C")
        tokens = torch.cat([cells.mean(1, keepdim=True), cells], dim=1) + self.positions.to(x.dtype)
        q, k, v = (
            rearrange(layer(tokens[:, :length]), "B T (H D) -> B H T D", H=self.heads)  # the query is the mean alone
            for layer, length in ((self.q, 1), (self.k, None), (self.v, None))
        )
        return F.scaled_dot_product_attention(q, k, v).flatten(1)


class ResNet(ImageTower):
    """Image tower of OpenAI's RN50 to RN50x64."""

    mean: Tensor
    std: Tensor
    top = ("pooling.", "projection.")
    _block = re.compile(r"blocks\.(\d+)\.")

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        assert config.resnet is not None
        width, self.stages = config.resnet.width, config.resnet.layers
        self.stem = nn.ModuleList(
            nn.Conv2d(channels, made, 3, stride, padding=1)
            for channels, made, stride in ((3, width // 2, 2), (width // 2, width // 2, 1), (width // 2, width, 1))
        )
        blocks, channels = [], width
        for stage, count in enumerate(self.stages):
            planes = width * 2**stage
            for number in range(count):
                # Stage 0 follows the stem's pool, and has no stride
                blocks.append(Bottleneck(channels, planes, 2 if stage and not number else 1))
                channels = planes * _EXPANSION
        self.blocks = nn.ModuleList(blocks)
        self.pooling = QueryPooling(channels, (config.image_size // CELL) ** 2)
        self.projection = nn.Linear(channels, config.embed_dim)
        self.register_buffer("mean", normalizer(config.mean), persistent=False)
        self.register_buffer("std", normalizer(config.std), persistent=False)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] in [0, 1] to the maps [B, C, h, w] after each of the four stages."""
        x = ((images - self.mean) / self.std).to(self.projection.weight.dtype)
        for layer in self.stem:
            x = F.relu(layer(x))
        x, found, block = F.avg_pool2d(x, 2), [], iter(self.blocks)  # the stem's second stride of 2
        for count in self.stages:
            for _ in range(count):
                x = next(block)(x)
            found.append(x)
        return found

    def pooled(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to pooled vectors [B, C]."""
        pooled: Tensor = self.pooling(self.maps(images)[-1])
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to embeddings [B, D], not normalized."""
        projected: Tensor = self.projection(self.pooled(images))
        return projected
