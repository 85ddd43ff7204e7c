"""Random changes of the images that CLIP learns from: place, size, turn, colours, a hole, noise. Only torch.

They are those that cutouts of a painting go through, so that a CLIP which is painted with has seen such images. Noise
matters most: the gradients of networks that bear it look like things (Kaur et al. 2019, arXiv 1910.08640).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.device import to_device

_NUMBERS = 16  # uniform numbers that the changes of an image are made of


def augmented(images: Tensor, seeds: Sequence[int], strength: float) -> Tensor:
    """Each image changed at random, as its seed says: alone, in a batch, or on another process it comes out the same.

    Args:
        images: float [B, 3, S, S] in [0, 1].
        seeds: B of them.
        strength: of all changes, at least 0 and at most 1. At 1 an image shows 70 to 120 % of its sides, is moved by
            up to 10 %, turned by up to 15 degrees, slanted; one in five stays where it is; brightness, contrast and
            saturation change by up to 20 %; one in three has a hole; the noise's deviation is up to 0.5.

    Returns:
        Float [B, 3, S, S]; noise may leave [0, 1].
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    numbers = to_device(images.device, torch.stack([torch.rand(_NUMBERS, generator=g) for g in generators]))  # [B, 16]
    noise = to_device(images.device, torch.stack([torch.randn(images.shape[1:], generator=g) for g in generators]))
    place, tone, hole, loud = numbers[:, :6], numbers[:, 6:9], numbers[:, 9:15], numbers[:, 15]
    changed = _holed(_toned(_placed(images, place, strength), tone, strength), hole, strength)
    return changed + 0.5 * strength * loud[:, None, None, None] * noise


def _placed(images: Tensor, numbers: Tensor, strength: float) -> Tensor:
    """Moved, scaled, turned and slanted; beyond the border the border goes on. Numbers [B, 6] in [0, 1)."""
    signed = strength * (2 * numbers - 1)
    scale = 1 - strength * (0.3 - 0.5 * numbers[:, 0])  # share of the sides that is seen
    angle, slant = math.radians(15) * signed[:, 1], math.radians(5) * signed[:, 2]
    down, right = 0.2 * signed[:, 3], 0.2 * signed[:, 4]  # of half a side
    rows = [
        [scale * angle.cos(), scale * (slant - angle.sin()), right],
        [scale * angle.sin(), scale * angle.cos(), down],
    ]
    matrix = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)  # [B, 2, 3]
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return torch.where((numbers[:, 5] < 0.8)[:, None, None, None], moved, images)


def _toned(images: Tensor, numbers: Tensor, strength: float) -> Tensor:
    """Brightness, contrast and saturation changed. Numbers [B, 3] in [0, 1)."""
    factors = 1 + 0.2 * strength * (2 * numbers - 1)
    bright, contrast, colour = factors[:, :, None, None, None].unbind(1)
    grey = images.mean(1, keepdim=True)
    coloured = grey + colour * (images - grey)
    middle = coloured.mean((1, 2, 3), keepdim=True)
    return (bright * (middle + contrast * (coloured - middle))).clamp(0, 1)


def _holed(images: Tensor, numbers: Tensor, strength: float) -> Tensor:
    """One image in three (at strength 1) with a white rectangle of up to half the sides. Numbers [B, 6] in [0, 1)."""
    side = images.shape[-1]
    at = (torch.arange(side, device=images.device) + 0.5) / side
    high, wide = 0.2 + 0.3 * numbers[:, 0:1], 0.2 + 0.3 * numbers[:, 1:2]
    top, left = numbers[:, 2:3] * (1 - high), numbers[:, 3:4] * (1 - wide)
    rows, columns = (at >= top) & (at < top + high), (at >= left) & (at < left + wide)  # each [B, S]
    hole = (numbers[:, 4] < strength / 3)[:, None, None] & rows[:, :, None] & columns[:, None, :]
    return images.masked_fill(hole[:, None], 1.0)
