"""Temperature scaling (Guo et al. 2017, arXiv 1706.04599): how overconfident a model is. Reads logits only."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOWEST, _HIGHEST, _STEPS = 0.1, 10.0, 25  # range of temperatures; neighbors differ by a factor of 1.21


class Temperatures:
    """Cross-entropy of logits / T as a function of T, over any number of batches.

    It is convex in b = 1 / T. Its value and slope are summed at fixed values of b, so that no logits are stored;
    between two of these it is interpolated by the cubic with both values and both slopes.
    """

    def __init__(self) -> None:
        logs = torch.linspace(math.log(1 / _HIGHEST), math.log(1 / _LOWEST), _STEPS, dtype=torch.float64)
        self.inverse = logs.exp().tolist()
        self.sums = torch.zeros(_STEPS, 2, dtype=torch.float64)  # cross-entropy, its slope
        self.count = 0

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add logits [M, V] and the correct ids [M]."""
        logits = logits.float()
        right = logits.gather(1, targets[:, None])[:, 0]
        for step, inverse in enumerate(self.inverse):
            scaled = logits * inverse
            lse = scaled.logsumexp(1, keepdim=True)
            expected = ((scaled - lse).exp_() * logits).sum(1)
            nats = lse[:, 0] - inverse * right
            self.sums[step] += torch.stack((nats.double().sum(), (expected - right).double().sum())).cpu()
        self.count += len(targets)

    def best(self) -> tuple[float, float]:
        """The temperature with the least cross-entropy, from 0.1 to 10, and that cross-entropy in nats a token."""
        values, slopes = (self.sums / self.count).T.tolist()
        right = next((step for step, slope in enumerate(slopes) if slope >= 0), None)
        if right is None or right == 0:  # the minimum is outside the range, or at its first value
            step = _STEPS - 1 if right is None else 0
            return 1 / self.inverse[step], values[step]
        left = right - 1
        first, width = self.inverse[left], self.inverse[right] - self.inverse[left]
        place = _lowest(values[left], values[right], slopes[left] * width, slopes[right] * width)
        inverse = first + place * width
        return 1 / inverse, _cubic(place, values[left], values[right], slopes[left] * width, slopes[right] * width)


def _cubic(t: float, a: float, b: float, slope_a: float, slope_b: float) -> float:
    """The cubic Hermite polynomial on [0, 1], from its values and slopes at both ends."""
    return (
        (2 * t**3 - 3 * t**2 + 1) * a
        + (t**3 - 2 * t**2 + t) * slope_a
        + (3 * t**2 - 2 * t**3) * b
        + (t**3 - t**2) * slope_b
    )


def _lowest(a: float, b: float, slope_a: float, slope_b: float) -> float:
    """The minimum of a Hermite cubic that falls at 0 and rises at 1, by golden-section search."""
    low, high, ratio = 0.0, 1.0, (math.sqrt(5) - 1) / 2
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if _cubic(left, a, b, slope_a, slope_b) < _cubic(right, a, b, slope_a, slope_b):
            high = right
        else:
            low = left
    return (low + high) / 2
