"""Whether a drawing is a copy: the nearest training image by frozen features, and how far its pixels are from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

SIDE = 32
"""Pixels a side at which two images are compared: what a tokenizer blurs does not count."""
NEAR_COPY = 20.0
"""Root mean square error, of 255, below which a drawing counts as a near-copy (docs/evaluation.md has the controls)."""
_CANDIDATES = 10  # nearest images by features, of which the one with the nearest pixels is the neighbor


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

    Args:
        images: float [N, 3, H, W] in [0, 1].
        features: theirs, [N, D].
        known_small: the training images by `small`, [M, 3, 32, 32].
        known_features: theirs, [M, D].
    """
    cosines = F.normalize(features.float(), dim=1) @ F.normalize(known_features.float(), dim=1).T  # [N, M]
    likely = cosines.topk(min(_CANDIDATES, len(known_small)), dim=1).indices  # [N, K]
    errors = (small(images)[:, None] - known_small[likely]).square().flatten(2).mean(2).sqrt() * 255  # [N, K]
    least = errors.min(1)
    return Neighbors(likely.gather(1, least.indices[:, None])[:, 0], least.values)


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
