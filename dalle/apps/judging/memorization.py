"""Whether a drawing is a copy: the nearest training image, and how far its pixels are from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 32
"""Pixels a side at which two images are compared: what a tokenizer blurs does not count."""
SHIFT = 2
"""Pixels of these by which a copy may be moved, each way."""
NEAR_COPY = 20.0
"""Root mean square error, of 255, below which a drawing counts as a near-copy (docs/evaluation.md has the controls)."""
_CANDIDATES = 10  # nearest images by features, and as many by pixels, among which the neighbor is


@dataclass(frozen=True)
class Neighbors:
    """Of each of N images the nearest training image."""

    indices: Tensor
    """int64 [N], among the training images."""
    errors: Tensor
    """float32 [N], root mean square error of the pixels at 32x32, of 255."""

    @property
    def near_copies(self) -> float:
        """Share of images that are near-copies."""
        return (self.errors < NEAR_COPY).double().mean().item()


def nearest(images: Tensor, features: Tensor, known_small: Tensor, known_features: Tensor) -> Neighbors:
    """The nearest training images.

    Of the 10 with the highest cosine of the features and the 10 with the least error of the pixels it is the one with
    the least error, wherever it is moved by up to 2 pixels of 32.

    Args:
        images: float [N, 3, H, W] in [0, 1].
        features: theirs, [N, D].
        known_small: the training images by `small`, [M, 3, 32, 32].
        known_features: theirs, [M, D].
    """
    count = min(_CANDIDATES, len(known_small))
    cosines = F.normalize(features.float(), dim=1) @ F.normalize(known_features.float(), dim=1).T  # [N, M]
    shown = small(images)
    distances = torch.cdist(shown.flatten(1), known_small.flatten(1))  # [N, M]
    likely = torch.cat((cosines.topk(count).indices, distances.topk(count, largest=False).indices), 1)  # [N, K]
    errors = torch.stack([moved_errors(one, known_small[row]) for one, row in zip(shown, likely, strict=True)])
    least = errors.min(1)
    return Neighbors(likely.gather(1, least.indices[:, None])[:, 0], least.values)


def moved_errors(image: Tensor, others: Tensor) -> Tensor:
    """Least root mean square errors, of 255, of an image [3, S, S] and others [K, 3, S, S] moved on white: [K]."""
    side = image.shape[-1]
    wide = F.pad(others, (SHIFT,) * 4, value=1.0)
    places = range(2 * SHIFT + 1)
    moved = [wide[..., down : down + side, right : right + side] for down in places for right in places]
    squares = torch.stack([(one - image).square().mean((1, 2, 3)) for one in moved])  # [25, K]
    return squares.amin(0).sqrt() * 255


def small(images: Tensor) -> Tensor:
    """Images [N, 3, H, W] at 32x32, each pixel a mean."""
    return images if images.shape[-2:] == (SIDE, SIDE) else F.interpolate(images, (SIDE, SIDE), mode="area")


def diversity(features: Tensor) -> float:
    """Mean cosine distance of all pairs of the K drawings of one prompt, mean over prompts: [P, K, D], K at least 2."""
    units = F.normalize(features.float(), dim=-1)
    cosines = units @ units.transpose(1, 2)  # [P, K, K]
    count = features.shape[1]
    pairs = (cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)) / (count * (count - 1))
    return (1 - pairs).mean().item()
