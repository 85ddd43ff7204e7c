"""Memorization and diversity: the training image nearest to a sample, and how much candidates differ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 32
"""Pixels a side at which two images are compared, so that the blur of a tokenizer does not count."""
MAX_SHIFT = 2
"""Pixels of these by which a copy may be shifted in each direction."""
NEAR_COPY = 20.0
"""RMSE in units of 1/255 below which a sample counts as a near-copy (docs/evaluation.md has the controls)."""
_SHORTLIST = 10  # nearest images by features, and as many by pixels, that are compared at all shifts


@dataclass(frozen=True)
class Neighbors:
    """The nearest training image of each of N images."""

    indices: Tensor
    """int64 [N], of the training images."""
    errors: Tensor
    """float32 [N], RMSE of the pixels at 32x32, in units of 1/255."""

    @property
    def near_copies(self) -> float:
        """Fraction of images that are near-copies."""
        return (self.errors < NEAR_COPY).double().mean().item()


def nearest_neighbors(images: Tensor, features: Tensor, training_small: Tensor, training_features: Tensor) -> Neighbors:
    """Nearest training images, by pixels at the best shift.

    Comparing all pairs at all shifts would be slow, so only a shortlist is: the 10 training images with the highest
    cosine similarity of the features, and the 10 with the least error of the pixels without a shift.

    Args:
        images: float [N, 3, H, W] in [0, 1].
        features: [N, D], of the images.
        training_small: [M, 3, 32, 32], the training images after `downsample`.
        training_features: [M, D].
    """
    count = min(_SHORTLIST, len(training_small))
    cosines = F.normalize(features.float(), dim=1) @ F.normalize(training_features.float(), dim=1).T  # [N, M]
    small = downsample(images)
    distances = torch.cdist(small.flatten(1), training_small.flatten(1))  # [N, M]
    shortlists = torch.cat((cosines.topk(count).indices, distances.topk(count, largest=False).indices), 1)  # [N, K]
    pairs = zip(small, shortlists, strict=True)
    errors = torch.stack([shifted_rmse(image, training_small[shortlist]) for image, shortlist in pairs])  # [N, K]
    best = errors.min(1)
    return Neighbors(shortlists.gather(1, best.indices[:, None])[:, 0], best.values)


def shifted_rmse(image: Tensor, others: Tensor) -> Tensor:
    """RMSE of an image [3, S, S] to each of [K, 3, S, S] at its best shift, in units of 1/255: [K].

    Backgrounds are white, and so is what a shift brings in.
    """
    side = image.shape[-1]
    padded = F.pad(others, (MAX_SHIFT,) * 4, value=1.0)
    offsets = range(2 * MAX_SHIFT + 1)
    shifted = [padded[..., y : y + side, x : x + side] for y in offsets for x in offsets]
    squared_errors = torch.stack([(other - image).square().mean((1, 2, 3)) for other in shifted])  # [25, K]
    return squared_errors.amin(0).sqrt() * 255


def downsample(images: Tensor) -> Tensor:
    """Images [N, 3, H, W] at 32x32, by area averaging."""
    return images if images.shape[-2:] == (SIDE, SIDE) else F.interpolate(images, (SIDE, SIDE), mode="area")


def diversity(features: Tensor) -> float:
    """Mean cosine distance between the K candidates of a prompt, over prompts: features [P, K, D], K at least 2."""
    unit = F.normalize(features.float(), dim=-1)
    cosines = unit @ unit.transpose(1, 2)  # [P, K, K]
    count = features.shape[1]
    # The diagonal compares candidates with themselves
    pairs = (cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)) / (count * (count - 1))
    return (1 - pairs).mean().item()
