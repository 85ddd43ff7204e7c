"""Decoding large images in overlapping tiles, one in memory at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dalle.image_tokenizers import ImageTokenizer


def decode_in_tiles(tokenizer: ImageTokenizer, vectors: Tensor, tile: int) -> Tensor:
    """`tokenizer.decode_latents` of [1, C, h, w], in tiles where the image is larger than `tile` pixels a side.

    Neighbours share a quarter of a tile, over which one fades into the other. What a tile needs for its gradient is
    computed again in the backward pass, so memory grows with the tile, not with the image.
    """
    height, width = vectors.shape[2:]
    factor = tokenizer.factor
    side = max(tile // factor, 4)  # cells
    if max(height, width) <= side:
        return tokenizer.decode_latents(vectors)
    total: Tensor | float = 0.0
    weight: Tensor | float = 0.0
    overlap = side // 4
    for top in starts(height, side, overlap):
        for left in starts(width, side, overlap):
            part = vectors[:, :, top : top + side, left : left + side]
            made = checkpoint(tokenizer.decode_latents, part, use_reentrant=False)
            fade = _ramp(made.shape[2], overlap * factor)[:, None] * _ramp(made.shape[3], overlap * factor)
            across = (left * factor, (width - left) * factor - made.shape[3])
            edges = (*across, top * factor, (height - top) * factor - made.shape[2])
            fade = fade.to(made)
            total = total + torch.nn.functional.pad(made * fade, edges)
            weight = weight + torch.nn.functional.pad(fade, edges)
    assert isinstance(total, Tensor)
    return total / weight


def starts(length: int, side: int, overlap: int) -> list[int]:
    """Where tiles of `side` cells begin that cover `length` cells and share at least `overlap` with the next."""
    if length <= side:
        return [0]
    count = -(-(length - overlap) // (side - overlap))
    return [round(index * (length - side) / (count - 1)) for index in range(count)]


def _ramp(length: int, overlap: int) -> Tensor:
    """Rises from near 0 to 1 over `overlap` pixels, and falls likewise at the end."""
    places = torch.arange(length) + 0.5
    return (torch.minimum(places, length - places) / overlap).clamp(max=1)
