"""Colors of backgrounds and icons are named rightly on images whose colors are known."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from dalle.apps.judging.colors import COLORS, border_color, foreground_color, named_color, srgb_to_lab
from dalle.data.drawings import DrawingsConfig, DrawingsDataset


@pytest.fixture(scope="module")
def composed() -> DrawingsDataset:
    """Each on a background that is named."""
    config = DrawingsConfig(sets=("emoji",), styles=("twemoji",), backgrounds=1, scenes=0, languages=("en",))
    return DrawingsDataset(config, "train", 64)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.tensor(image / 255, dtype=torch.float32).permute(2, 0, 1)


def test_border_color_names_the_background_of_every_composed_image(composed: DrawingsDataset) -> None:
    rng = random.Random(0)
    seen = set()
    for _ in range(200):
        index, seed = rng.randrange(len(composed)), rng.randrange(2**31)
        made = composed.compose(index, seed)
        named = made.background
        ring = np.ones((64, 64), dtype=bool)
        ring[2:-2, 2:-2] = False
        if (made.layer[ring, 3] > 0).mean() > 0.3:  # a square sign hides its background
            continue
        assert named_color(border_color(tensor(composed.pair(index, seed).image))) == named
        seen.add(named)
    assert seen == set(COLORS)


@pytest.mark.parametrize("name", [name for name in COLORS if name != "white"])
def test_drawn_color_is_the_color_of_the_pixels_that_are_not_background(name: str) -> None:
    image = torch.ones(3, 64, 64)
    assert foreground_color(image) is None  # nothing is drawn
    image[:, 20:40, 15:50] = torch.tensor(COLORS[name])[:, None, None] / 255
    color = foreground_color(image)
    assert color is not None and named_color(color) == name
    assert named_color(border_color(image)) == "white"


def test_border_color_ignores_a_drawing_that_touches_the_border() -> None:
    image = torch.full((3, 64, 64), 0.5)
    image[:, :, 30:60] = 0
    assert border_color(image).tolist() == [0.5] * 3


def test_lab_equals_published_values_of_primaries() -> None:
    """Values of sRGB's primaries in CIELAB under D65, as published (Lindbloom), to their rounding."""
    known = {
        (1, 1, 1): (100, 0, 0),
        (0, 0, 0): (0, 0, 0),
        (1, 0, 0): (53.24, 80.09, 67.20),
        (0, 0, 1): (32.3, 79.2, -107.86),
    }
    for color, expected in known.items():
        assert srgb_to_lab(torch.tensor(color, dtype=torch.float64)).tolist() == pytest.approx(expected, abs=0.1)
