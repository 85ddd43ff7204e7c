"""The loss terms of a painting: pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

_MAX_SINE = 1 - 1e-6  # the derivative of the arc sine is infinite at 1


def spherical_distance(a: Tensor, b: Tensor) -> Tensor:
    """Half the squared angle: as |a - b| = 2 sin(angle / 2), it is 2 * arcsin(|a - b| / 2)^2.

    Args:
        a: unit vectors [..., D].
        b: unit vectors [..., D].

    Returns:
        Float [...], from 0 to pi^2 / 2, in radians squared.
    """
    sine = ((a - b).square().sum(-1) + 1e-12).sqrt() / 2  # the derivative of the root is infinite at 0
    return 2 * sine.clamp(max=_MAX_SINE).arcsin().square()


def total_variation(images: Tensor) -> Tensor:
    """Mean squared difference of neighboring pixels of [B, 3, H, W], horizontally plus vertically; a scalar."""
    zero = images.new_zeros(())
    horizontal = images.diff(dim=3).square().mean() if images.shape[3] > 1 else zero
    vertical = images.diff(dim=2).square().mean() if images.shape[2] > 1 else zero
    return horizontal + vertical


def colorfulness(images: Tensor) -> Tensor:
    """Mean difference of each pixel's strongest and weakest channel, from 0 (gray) to 1; a scalar."""
    return (images.amax(1) - images.amin(1)).mean()


def l2_to_init(values: Tensor, initial: Tensor, step: int, half_life: int) -> Tensor:
    """Mean squared distance of the values from the initial ones, halved every `half_life` steps (0: never)."""
    decay = 0.5 ** (step / half_life) if half_life else 1.0
    return decay * torch.nn.functional.mse_loss(values, initial)
