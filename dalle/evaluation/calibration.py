"""Temperature scaling (Guo et al. 2017, arXiv 1706.04599), a measure of overconfidence. Needs logits only."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOWEST, _HIGHEST, _POINTS = 0.1, 10.0, 25  # range of temperatures; neighboring points differ by a factor of 1.21


class TemperatureScaling:
    """Finds the temperature T that minimizes the cross-entropy of logits / T, over any number of batches.

    The cross-entropy is convex in b = 1 / T. Its value and its derivative are summed at fixed values of b, so that no
    logits have to be stored; between two of these it is interpolated by the cubic with the same values and derivatives.
    """

    def __init__(self) -> None:
        # Evenly spaced in log(1 / T): a factor is what counts in a temperature
        log_inverses = torch.linspace(math.log(1 / _HIGHEST), math.log(1 / _LOWEST), _POINTS, dtype=torch.float64)
        self.inverses = log_inverses.exp().tolist()
        self.sums = torch.zeros(_POINTS, 2, dtype=torch.float64)  # cross-entropy, its derivative
        self.count = 0

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add logits [M, V] and the correct ids [M]."""
        logits = logits.float()
        target_logits = logits.gather(1, targets[:, None])[:, 0]  # [M]
        for point, inverse in enumerate(self.inverses):
            scaled = logits * inverse  # [M, V]
            lse = scaled.logsumexp(1, keepdim=True)
            nats = lse[:, 0] - inverse * target_logits
            # d lse / d b is the mean logit under the softmax
            mean_logits = ((scaled - lse).exp_() * logits).sum(1)
            derivative = mean_logits - target_logits
            self.sums[point] += torch.stack((nats.double().sum(), derivative.double().sum())).cpu()
        self.count += len(targets)

    def best(self) -> tuple[float, float]:
        """The temperature from 0.1 to 10 with the lowest cross-entropy, and that cross-entropy in nats per token."""
        values, slopes = (self.sums / self.count).T.tolist()
        # Convex: the minimum is where the derivative changes sign
        right = next((point for point, slope in enumerate(slopes) if slope >= 0), None)
        if right is None or right == 0:  # the minimum is outside the range, or at its first value
            point = _POINTS - 1 if right is None else 0
            return 1 / self.inverses[point], values[point]
        left = right - 1
        first, width = self.inverses[left], self.inverses[right] - self.inverses[left]
        cubic = values[left], values[right], slopes[left] * width, slopes[right] * width
        minimum = _minimize(*cubic)
        return 1 / (first + minimum * width), _hermite(minimum, *cubic)


def _hermite(t: float, a: float, b: float, slope_a: float, slope_b: float) -> float:
    """The cubic Hermite polynomial on [0, 1], from its values and derivatives at both ends."""
    return (
        (2 * t**3 - 3 * t**2 + 1) * a
        + (t**3 - 2 * t**2 + t) * slope_a
        + (3 * t**2 - 2 * t**3) * b
        + (t**3 - t**2) * slope_b
    )


def _minimize(a: float, b: float, slope_a: float, slope_b: float) -> float:
    """Where a Hermite cubic that falls at 0 and rises at 1 is lowest, by golden-section search."""
    low, high, ratio = 0.0, 1.0, (math.sqrt(5) - 1) / 2
    for _ in range(60):  # 3e-13 of the interval
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if _hermite(left, a, b, slope_a, slope_b) < _hermite(right, a, b, slope_a, slope_b):
            high = right
        else:
            low = left
    return (low + high) / 2
