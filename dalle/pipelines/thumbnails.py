"""Compares the images of one prompt with each other by thumbnails: near-duplicates, and what most of them agree on.

A thumbnail has 16x16 pixels, so that an outline that has moved by a pixel does not count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Thumbnails = NDArray[np.float64]
"""[n, D], n images, D = 16 * 16 * 3 numbers in [0, 1]."""

_SIDE = 16
_NEAR = 12 / 255  # RMSE of near-duplicates, at most (docs/log.md)
_ROWS = 1_000  # of the matrix of distances at a time: of 100,000 candidates all of it would have 80 GB


def thumbnails(images: Sequence[Image.Image]) -> Thumbnails:
    """Thumbnails [n, D] of images of one size."""
    size = (_SIDE, _SIDE)
    shrunk = [np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX), np.float64) for image in images]
    return np.stack(shrunk).reshape(len(images), -1) / 255


def agreement(small: Thumbnails) -> list[float]:
    """How well each image agrees with the others: 0 if all are alike, -1 if it is the negative of all others.

    It is minus the mean distance of an image to the others, so that the largest is that of the medoid: the choice of
    the least expected error if the candidates are what the model holds for possible (minimum Bayes risk; Kumar and
    Byrne 2004). A mistake of sampling is rarely made twice, what the model knows is drawn again and again.

    Args:
        small: thumbnails [n, D].

    Returns:
        n numbers in [-1, 0], minus the mean RMSE to the other n - 1; 0 of a single image.
    """
    count, values = small.shape
    if count == 1:
        return [0.0]
    squares = (small**2).sum(axis=1)  # [n]
    found: list[float] = []
    for first in range(0, count, _ROWS):
        part = slice(first, first + _ROWS)
        distances = squares[part, None] + squares - 2 * small[part] @ small.T  # [rows, n], squared
        # Rounding makes some that are 0 negative, also that of an image to itself
        found += (-np.sqrt(distances.clip(min=0) / values).sum(axis=1) / (count - 1)).tolist()
    # Equal images differ by rounding errors, which must not decide their order
    return [round(value, 6) + 0.0 for value in found]


def distinct_first(small: Thumbnails, order: Sequence[int], keep: int) -> list[int]:
    """Choose the first images that are no near-duplicates of those chosen before.

    Args:
        small: thumbnails [n, D].
        order: indices of those to choose from, best first.
        keep: number of indices wanted.

    Returns:
        At most `keep` indices, in the order given.
    """
    chosen: list[int] = []
    for index in order:
        if len(chosen) == keep:
            break
        if all(np.sqrt(np.mean((small[index] - small[other]) ** 2)) > _NEAR for other in chosen):
            chosen.append(index)
    return chosen
