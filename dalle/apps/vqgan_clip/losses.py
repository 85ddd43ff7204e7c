"""What a painting is pulled by: pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

_NEARLY_ONE = 1 - 1e-6  # the arc sine's slope is infinite at 1


def spherical_distance(a: Tensor, b: Tensor) -> Tensor:
    """Half the squared angle: with |a - b| = 2 sin(angle / 2), it is 2 * arcsin(|a - b| / 2)^2.

    Args:
        a: unit vectors [..., D].
        b: unit vectors [..., D].

    Returns:
        Float [...], from 0 to pi^2 / 2, in radians squared.
    """
    half = ((a - b).square().sum(-1) + 1e-12).sqrt() / 2  # the root's slope is infinite at 0
    return 2 * half.clamp(max=_NEARLY_ONE).arcsin().square()


def total_variation(images: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels of [B, 3, H, W], across and down; a scalar."""
    zero = images.new_zeros(())
    across = images.diff(dim=3).square().mean() if images.shape[3] > 1 else zero
    down = images.diff(dim=2).square().mean() if images.shape[2] > 1 else zero
    return across + down


def colourfulness(images: Tensor) -> Tensor:
    """Mean difference of each pixel's strongest and weakest channel, from 0 (grey) to 1; a scalar."""
    return (images.amax(1) - images.amin(1)).mean()


def pull(values: Tensor, start: Tensor, step: int, halving: int) -> Tensor:
    """Mean squared distance from the start, halved every `halving` steps (0: never); a scalar."""
    strength = 0.5 ** (step / halving) if halving else 1.0
    return strength * torch.nn.functional.mse_loss(values, start)
