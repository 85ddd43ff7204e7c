"""Between vectors on spheres: how unCLIP mixes images and texts. Pure functions.

Ramesh et al. 2022 (arXiv 2204.06125), section 3. Shapes: B batch, ... any shape, taken as one vector each.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_ROUNDS = 30  # of the mean, each of which brings it several times nearer
_NEARLY = 1e-6  # of the angle's sine: below it a straight line is as good, or there is no way between opposites


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """From `start` (share 0) to `end` (share 1), [B, ...] each, on the great circle; their lengths go on a line.

    Both ends come out exactly, and equal vectors stay what they are. Between opposite ones there is no way to be
    preferred: it goes on the straight line.
    """
    if share in (0, 1):
        return end if share else start
    a, b = start.double().flatten(1), end.double().flatten(1)
    lengths = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    unit_a, unit_b = (vector / length.clamp(min=1e-12) for vector, length in zip((a, b), lengths, strict=True))
    angle = (unit_a * unit_b).sum(1, keepdim=True).clamp(-1, 1).acos()  # rounding may leave a cosine just above 1
    sine = angle.sin()
    curved = (((1 - share) * angle).sin() * unit_a + (share * angle).sin() * unit_b) / sine.clamp(min=_NEARLY)
    length = (1 - share) * lengths[0] + share * lengths[1]
    mixed = torch.where(sine > _NEARLY, curved * length, (1 - share) * a + share * b)
    return mixed.to(start.dtype).view_as(start)


def blend(vectors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Several vectors [B, ...] by weights: their mean on the sphere, of two `slerp`; their lengths are averaged.

    Buss & Fillmore 2001, "Spherical Averages and Applications to Spherical Splines and Interpolation", algorithm A1:
    whatever the order, unlike one slerp after the other.

    Raises:
        ValueError: weights that are negative, or whose sum is 0 or infinite.
    """
    check_weights(weights)
    known = [(vector, weight / sum(weights)) for vector, weight in zip(vectors, weights, strict=True) if weight]
    if len(known) == 1:
        return known[0][0]
    if len(known) == 2:
        return slerp(known[0][0], known[1][0], known[1][1])
    shares = torch.tensor([weight for _, weight in known], dtype=torch.float64, device=vectors[0].device)[:, None, None]
    every = torch.stack([vector.double().flatten(1) for vector, _ in known])  # [N, B, D]
    lengths = every.norm(dim=-1, keepdim=True)
    units = every / lengths.clamp(min=1e-12)
    mean = F.normalize((shares * units).sum(0), dim=-1)
    for _ in range(_ROUNDS):
        cosines = (units * mean).sum(-1, keepdim=True).clamp(-1, 1)
        # The logarithm map: tangents at the mean toward each vector, as long as their angle; then their mean is walked
        # along
        across = units - cosines * mean
        tangents = across * cosines.acos() / across.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        step = (shares * tangents).sum(0)
        angle = step.norm(dim=-1, keepdim=True)
        mean = F.normalize(angle.cos() * mean + angle.sin() * step / angle.clamp(min=1e-12), dim=-1)
    return (mean * (shares * lengths).sum(0)).to(vectors[0].dtype).view_as(vectors[0])


def check_weights(weights: Sequence[float]) -> None:
    """Refuse weights that are negative, or whose sum is 0 or infinite."""
    for weight in weights:
        if not 0 <= weight < float("inf"):
            raise ValueError(f"a weight is {weight}; each must be a finite number, 0 or more")
    if not sum(weights):
        raise ValueError("the weights sum to 0: give one above 0")
    if sum(weights) == float("inf"):
        raise ValueError(f"the weights sum to more than {sys.float_info.max:.0e}: give less, only ratios count")


def check_theta(theta: float) -> None:
    """Refuse a strength of `text_difference` that is out of range."""
    if not 0 <= theta <= 1:
        raise ValueError(f"theta is {theta}; it must be from 0 (the image) to 1 (the difference alone)")


def text_difference(embeds: Tensor, before: Tensor, after: Tensor, theta: float) -> Tensor:
    """Image embeddings turned the way from one text to another (section 3.3).

    Args:
        embeds: of images [B, D].
        before: of the text that describes them, [D].
        after: of the text that is to, [D].
        theta: how far, from 0 to 1; the paper goes to 0.25 to 0.5.

    Returns:
        [B, D], as long as the images' own.

    Raises:
        ValueError: the texts have the same embedding, or theta is out of range.
    """
    check_theta(theta)
    difference = F.normalize(after.double(), dim=-1) - F.normalize(before.double(), dim=-1)
    if difference.norm() < 1e-4:
        raise ValueError("both texts have the same embedding, a difference of length 0: give others")
    # As long as the image's own
    target = F.normalize(difference, dim=-1).to(embeds.dtype) * embeds.norm(dim=-1, keepdim=True)
    return slerp(embeds, target, theta)
