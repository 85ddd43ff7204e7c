"""Augmentation of CLIP's training images in PyTorch: affine transforms, color jitter, erasing, noise.

VQGAN+CLIP applies similar changes to its cutouts, so a CLIP that guides it must have seen them in training. Noise
matters most: noise-robust networks have perceptually aligned gradients (Kaur et al. 2019, arXiv 1910.08640).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.device import to_device

_NUMBERS = 16  # uniform random numbers per image, from which all changes are derived


def augment(images: Tensor, seeds: Sequence[int], strength: float) -> Tensor:
    """Augment each image at random, determined by its own seed, so that the batch and process do not matter.

    Args:
        images: float [B, 3, S, S] in [0, 1].
        seeds: B random seeds.
        strength: strength of all changes, from 0 to 1. At 1, four of five images are zoomed to 70 to 120 % of their
            sides, shifted by up to 10 %, rotated by up to 15 degrees and sheared; brightness, contrast and saturation
            change by up to 20 %; one in three has a rectangle erased; the noise has a standard deviation up to 0.5.

    Returns:
        Float [B, 3, S, S]; noise may leave [0, 1].
    """
    # Drawn on the CPU, so that every device gets the same
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    numbers = to_device(images.device, torch.stack([torch.rand(_NUMBERS, generator=g) for g in generators]))  # [B, 16]
    noise = to_device(images.device, torch.stack([torch.randn(images.shape[1:], generator=g) for g in generators]))
    place, tone, hole, loud = numbers[:, :6], numbers[:, 6:9], numbers[:, 9:15], numbers[:, 15]
    changed = _erase(_jitter_color(_warp(images, place, strength), tone, strength), hole, strength)
    return changed + 0.5 * strength * loud[:, None, None, None] * noise


def _warp(images: Tensor, numbers: Tensor, strength: float) -> Tensor:
    """Random affine transform with border padding, from uniform numbers [B, 6] in [0, 1)."""
    signed = strength * (2 * numbers - 1)  # [B, 6] in [-strength, strength)
    scale = 1 - strength * (0.3 - 0.5 * numbers[:, 0])  # visible fraction of the sides
    angle, slant = math.radians(15) * signed[:, 1], math.radians(5) * signed[:, 2]
    down, right = 0.2 * signed[:, 3], 0.2 * signed[:, 4]  # in units of half a side, as affine_grid has them
    rows = [
        [scale * angle.cos(), scale * (slant - angle.sin()), right],
        [scale * angle.sin(), scale * angle.cos(), down],
    ]
    matrix = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)  # [B, 2, 3]
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return torch.where((numbers[:, 5] < 0.8)[:, None, None, None], moved, images)


def _jitter_color(images: Tensor, numbers: Tensor, strength: float) -> Tensor:
    """Change brightness, contrast and saturation, from uniform numbers [B, 3] in [0, 1)."""
    factors = 1 + 0.2 * strength * (2 * numbers - 1)
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)  # each [B, 1, 1, 1]
    gray = images.mean(1, keepdim=True)  # [B, 1, S, S]
    colored = gray + saturation * (images - gray)
    mean = colored.mean((1, 2, 3), keepdim=True)  # [B, 1, 1, 1]
    return (brightness * (mean + contrast * (colored - mean))).clamp(0, 1)


def _erase(images: Tensor, numbers: Tensor, strength: float) -> Tensor:
    """Erase a white rectangle of up to half the sides in a third of the images; from uniform numbers [B, 6]."""
    side = images.shape[-1]
    at = (torch.arange(side, device=images.device) + 0.5) / side  # centers of pixels, in sides of the image
    high, wide = 0.2 + 0.3 * numbers[:, 0:1], 0.2 + 0.3 * numbers[:, 1:2]
    top, left = numbers[:, 2:3] * (1 - high), numbers[:, 3:4] * (1 - wide)
    rows, columns = (at >= top) & (at < top + high), (at >= left) & (at < left + wide)  # each [B, S]
    hole = (numbers[:, 4] < strength / 3)[:, None, None] & rows[:, :, None] & columns[:, None, :]  # [B, S, S]
    return images.masked_fill(hole[:, None], 1.0)
