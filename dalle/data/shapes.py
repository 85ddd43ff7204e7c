"""Synthetic images of one colored shape with exact captions, for tests and experiments."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product
from typing import Annotated, Literal

import numpy as np

from dalle.config import config
from dalle.config.ranges import NonNegativeInt, PositiveInt, Range
from dalle.data.base import Pair

SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring")
COLORS = {
    "red": (220, 40, 40),
    "orange": (245, 150, 40),
    "yellow": (235, 205, 40),
    "green": (50, 160, 70),
    "blue": (50, 90, 220),
    "purple": (150, 60, 190),
    "brown": (130, 85, 50),
    "black": (20, 20, 20),
}
# Phrase in the caption -> center of the shape (right, down), as fractions of the image's side.
PLACES = {
    "": (0.50, 0.50),
    " on the left": (0.28, 0.50),
    " on the right": (0.72, 0.50),
    " at the top": (0.50, 0.28),
    " at the bottom": (0.50, 0.72),
}
RADIUS = 0.26  # of the image's side
SPLITS = ("train", "validation")
COMBINATIONS = tuple(product(SHAPES, COLORS, PLACES))
_FINE = 4  # antialiasing: samples per pixel in each direction
_MIN_SIDE = 8


@config
class ShapesConfig:
    """Six shapes in eight colors at five positions on white, "a red circle on the left"."""

    kind: Literal["shapes"] = "shapes"
    """Synthetic shapes."""
    size: PositiveInt = 512
    """Pairs in the training split; the validation split has an eighth as many, each combination at most once."""
    shift: Annotated[float, Range(0, 0.06, hint="places would mix")] = 0.04
    """Largest random offset of a shape, as a fraction of the image's side."""
    max_bad: NonNegativeInt = 0
    """Number of broken records to skip before raising an error; shapes have none."""


class ShapesDataset:
    """One split of the shapes; no combination (shape, color, position) is in both splits.

    Pair `index` shows combination `index` modulo their number.

    Args:
        config: how many pairs, and how much they vary.
        split: "train" or "validation".
        image_size: height and width of the images, in pixels, at least 8.

    Attributes:
        combinations: (shape, color, position) of this split, in a fixed random order.

    Raises:
        ValueError: the split is unknown, or images are smaller than 8 x 8.
    """

    def __init__(self, config: ShapesConfig, split: str, image_size: int):
        if split not in SPLITS:
            raise ValueError(f"unknown data split {split!r}: choose from {', '.join(SPLITS)}")
        if image_size < _MIN_SIDE:
            raise ValueError(
                f"shapes of {image_size} pixels cannot be told apart: image_size must be {_MIN_SIDE} or more"
            )
        self.config, self.split, self.image_size = config, split, image_size
        # A fixed seed, not the run's: the validation split must be the same in all runs
        shuffled = list(COMBINATIONS)
        random.Random(0).shuffle(shuffled)
        # In the order of the fixed shuffle, so that the splits share no combination
        held_out = len(shuffled) // 8
        self.combinations = shuffled[:held_out] if split == "validation" else shuffled[held_out:]
        self.length = config.size
        if split == "validation":  # retrieval metrics need each caption to match one image only
            self.length = min(max(1, config.size // 8), len(self.combinations))

    def __len__(self) -> int:
        return self.length

    def pair(self, index: int, seed: int) -> Pair:
        """Pair `index`, its image uint8 [image_size, image_size, 3]; in training, the seed shifts the shape."""
        shape, color, place = self.combinations[index % len(self.combinations)]
        right, down = PLACES[place]
        if self.split == "train":
            rng = random.Random(f"{seed}/{index}")
            right += rng.uniform(-self.config.shift, self.config.shift)
            down += rng.uniform(-self.config.shift, self.config.shift)
        covered = coverage(shape, self.image_size, right, down)[..., None]
        image = 255 + covered * (np.asarray(COLORS[color]) - 255)  # from white to the color
        return Pair(image.round().astype(np.uint8), caption(shape, color, place))

    def captions(self) -> Iterator[str]:
        """Every caption of the split, once: the corpus for BPE training."""
        for combination in self.combinations:
            yield caption(*combination)


def caption(shape: str, color: str, place: str) -> str:
    """The caption of a combination: "a red circle on the left"."""
    return f"{'an' if color == 'orange' else 'a'} {color} {shape}{place}"


def coverage(shape: str, side: int, right: float, down: float) -> np.ndarray:
    """The fraction of each pixel that a shape covers, float [side, side] in [0, 1].

    Args:
        shape: one of `SHAPES`.
        side: side of the image in pixels.
        right: horizontal center of the shape, as a fraction of the side.
        down: vertical center of the shape, as a fraction of the side.
    """
    # Centers of the samples, in [0, 1]
    at = (np.arange(side * _FINE) + 0.5) / (side * _FINE)
    x, y = (at[None] - right) / RADIUS, (at[:, None] - down) / RADIUS  # the shape spans [-1, 1]
    far = np.maximum(abs(x), abs(y))
    square_radius = x * x + y * y
    inside = {
        "circle": square_radius <= 1,
        "square": far <= 0.85,
        "triangle": (abs(x) <= (y + 1) / 2) & (y <= 1),
        "cross": (np.minimum(abs(x), abs(y)) <= 0.3) & (far <= 1),
        "diamond": abs(x) + abs(y) <= 1,
        "ring": (square_radius <= 1) & (square_radius >= 0.25),
    }[shape]
    covered: np.ndarray = inside.reshape(side, _FINE, side, _FINE).mean((1, 3))  # mean of the samples of each pixel
    return covered
