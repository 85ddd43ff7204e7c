"""Decoding large images in overlapping tiles, one in memory at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dalle.image_tokenizers import ImageTokenizer


def decode_in_tiles(tokenizer: ImageTokenizer, latents: Tensor, tile: int) -> Tensor:
    """Decode latents [1, C, h, w], in tiles where the image is larger than `tile` pixels a side.

    Neighboring tiles overlap by a quarter of a side, over which they are blended linearly. Each tile is checkpointed
    (its activations are computed again in the backward pass), so memory grows with the tile, not with the image.

    Returns:
        [1, 3, h * factor, w * factor]
    """
    height, width = latents.shape[2:]
    factor = tokenizer.factor
    side = max(tile // factor, 4)  # cells
    if max(height, width) <= side:
        return tokenizer.decode_latents(latents)
    weighted_sum: Tensor | float = 0.0
    total_weight: Tensor | float = 0.0
    overlap = side // 4
    for top in tile_starts(height, side, overlap):
        for left in tile_starts(width, side, overlap):
            part = latents[:, :, top : top + side, left : left + side]
            decoded = checkpoint(tokenizer.decode_latents, part, use_reentrant=False)
            rows, columns = decoded.shape[2:]
            # Blending weights [rows, columns], small at the borders
            weight = (_ramp(rows, overlap * factor)[:, None] * _ramp(columns, overlap * factor)).to(decoded)
            right, bottom = (width - left) * factor - columns, (height - top) * factor - rows
            padding = (left * factor, right, top * factor, bottom)
            weighted_sum = weighted_sum + F.pad(decoded * weight, padding)
            total_weight = total_weight + F.pad(weight, padding)
    assert isinstance(weighted_sum, Tensor)
    return weighted_sum / total_weight


def tile_starts(length: int, side: int, overlap: int) -> list[int]:
    """First cells of tiles of `side` cells that cover `length` cells, each with `overlap` or more of the next."""
    if length <= side:
        return [0]
    count = -(-(length - overlap) // (side - overlap))
    # Evenly spaced, the last at the end
    return [round(index * (length - side) / (count - 1)) for index in range(count)]


def _ramp(length: int, overlap: int) -> Tensor:
    """Blending weights [length] that rise from near 0 to 1 over `overlap` pixels, and fall likewise at the end."""
    centers = torch.arange(length) + 0.5  # of pixels, so that no weight is 0
    return (torch.minimum(centers, length - centers) / overlap).clamp(max=1)
