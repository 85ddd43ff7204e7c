"""Synthetic images of one coloured shape with exact captions: for tests and for trying things out, not for models."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product
from typing import Annotated, Literal

import numpy as np

from dalle.config import config
from dalle.data.base import Pair
from dalle.ranges import NonNegativeInt, PositiveInt, Range

SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring")
COLOURS = {
    "red": (220, 40, 40),
    "orange": (245, 150, 40),
    "yellow": (235, 205, 40),
    "green": (50, 160, 70),
    "blue": (50, 90, 220),
    "purple": (150, 60, 190),
    "brown": (130, 85, 50),
    "black": (20, 20, 20),
}
# Where the middle lies, right and down in shares of the image's side, and what the caption calls it.
PLACES = {
    "": (0.50, 0.50),
    " on the left": (0.28, 0.50),
    " on the right": (0.72, 0.50),
    " at the top": (0.50, 0.28),
    " at the bottom": (0.50, 0.72),
}
RADIUS = 0.26  # of the image's side
SPLITS = ("train", "validation")
COMBINATIONS = tuple(product(SHAPES, COLOURS, PLACES))
_FINE = 4  # a pixel's coverage is the mean of so many samples each way
_MIN_SIDE = 8


@config
class ShapesData:
    """Shapes in eight colours and five places on white, "a red circle on the left"."""

    kind: Literal["shapes"] = "shapes"
    """Synthetic shapes."""
    size: PositiveInt = 512
    """Pairs in the training split; the validation split has an eighth as many, but no combination twice."""
    shift: Annotated[float, Range(0, 0.06, hint="places would mix")] = 0.04
    """Part of the image's side by which a shape may lie off its place, at most."""
    max_bad: NonNegativeInt = 0
    """Broken records that are skipped before it is an error; shapes have none."""


class ShapesPairs:
    """Pairs of one split; the combination (shape, colour, place) of each is in that split only.

    Pair `index` shows combination `index` modulo their number, so a split no larger than that shows each at most once.

    Attributes:
        combinations: (shape, colour, place) of this split, shuffled the same way each time.

    Raises:
        ValueError: the split is unknown, or images are smaller than 8 x 8.
    """

    def __init__(self, config: ShapesData, split: str, image_size: int):
        if split not in SPLITS:
            raise ValueError(f"data split {split!r} is unknown: choose from {', '.join(SPLITS)}")
        if image_size < _MIN_SIDE:
            raise ValueError(
                f"shapes of {image_size} pixels cannot be told apart: image_size must be {_MIN_SIDE} or more"
            )
        self.config, self.split, self.image_size = config, split, image_size
        shuffled = list(COMBINATIONS)
        random.Random(0).shuffle(shuffled)
        held_out = len(shuffled) // 8
        self.combinations = shuffled[:held_out] if split == "validation" else shuffled[held_out:]
        self.length = config.size
        if split == "validation":  # where every caption stands for one image only, as retrieval needs it
            self.length = min(max(1, config.size // 8), len(self.combinations))

    def __len__(self) -> int:
        return self.length

    def pair(self, index: int, seed: int) -> Pair:
        """Pair `index`, image uint8 [image_size, image_size, 3]; the seed moves the shape, in training only."""
        shape, colour, place = self.combinations[index % len(self.combinations)]
        right, down = PLACES[place]
        if self.split == "train":
            rng = random.Random(f"{seed}/{index}")
            right += rng.uniform(-self.config.shift, self.config.shift)
            down += rng.uniform(-self.config.shift, self.config.shift)
        covered = coverage(shape, self.image_size, right, down)[..., None]
        image = 255 + covered * (np.asarray(COLOURS[colour]) - 255)
        return Pair(image.round().astype(np.uint8), caption(shape, colour, place))

    def captions(self) -> Iterator[str]:
        """Every caption of the split, once: what a BPE is learnt from."""
        for combination in self.combinations:
            yield caption(*combination)


def caption(shape: str, colour: str, place: str) -> str:
    """ "a red circle on the left"."""
    return f"{'an' if colour == 'orange' else 'a'} {colour} {shape}{place}"


def coverage(shape: str, side: int, right: float, down: float) -> np.ndarray:
    """How much of each pixel a shape covers, float [side, side] in [0, 1]; its middle in shares of the side."""
    at = (np.arange(side * _FINE) + 0.5) / (side * _FINE)
    x, y = (at[None] - right) / RADIUS, (at[:, None] - down) / RADIUS  # the shape reaches from -1 to 1
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
    covered: np.ndarray = inside.reshape(side, _FINE, side, _FINE).mean((1, 3))
    return covered
