"""The wavelets of Cosmos' tokenizer as linear maps of the pixels of a patch, for one image: all frames are equal."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.image_tokenizers.cosmos import PATCH


def wavelets_of_pixels() -> Tensor:
    """The wavelets [3 PATCH^3, 3 PATCH^2] of the pixels of a patch, of a video whose frames are equal.

    Each step has 8 bands: low and high in time, within these in height, within these in width. Pixels are in the order
    of `F.pixel_unshuffle`.
    """
    x = F.pixel_shuffle(eye(3 * PATCH**2), PATCH)
    while x.shape[-1] > 1:
        (a, b), (c, d) = ([x[:, :, i::2, j::2] for j in (0, 1)] for i in (0, 1))
        bands = torch.cat((a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d), dim=1) / 4
        x = torch.cat((bands, torch.zeros_like(bands)), dim=1)
    return x[:, :, 0, 0].T


def pixels_of_wavelets() -> Tensor:
    """The pixels [3 PATCH^2, 3 PATCH^3] of the last frame of a patch, which is the only one of an image."""
    x = eye(3 * PATCH**3)
    while x.shape[-1] < PATCH:
        low, high = x.chunk(2, dim=1)  # in time: of two frames the second is their difference
        mean, across, down, both = (low - high).chunk(4, dim=1)
        rows = [
            torch.stack((mean + i * down + across + i * both, mean + i * down - across - i * both), dim=-1)
            for i in (1, -1)
        ]
        x = torch.stack(rows, dim=3).flatten(2, 3).flatten(3, 4)
    return F.pixel_unshuffle(x, PATCH)[:, :, 0, 0].T


def eye(width: int) -> Tensor:
    """The identity as the kernel of a 1x1 convolution, float64 [width, width, 1, 1]."""
    return torch.eye(width, dtype=torch.float64)[:, :, None, None]
