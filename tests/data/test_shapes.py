"""Synthetic shapes: exact captions, coverage by brute force, splits apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dalle.data.shapes import COLORS, PLACES, RADIUS, SHAPES, ShapesConfig, ShapesDataset, coverage

INSIDE = {  # of the shape with radius 1 around 0, y pointing down
    "circle": lambda x, y: x**2 + y**2 <= 1,
    "square": lambda x, y: max(abs(x), abs(y)) <= 0.85,
    "triangle": lambda x, y: -1 <= y <= 1 and -(y + 1) / 2 <= x <= (y + 1) / 2,
    "cross": lambda x, y: (abs(x) <= 0.3 and abs(y) <= 1) or (abs(y) <= 0.3 and abs(x) <= 1),
    "diamond": lambda x, y: abs(x) + abs(y) <= 1,
    "ring": lambda x, y: 0.5 <= np.hypot(x, y) <= 1,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_equals_supersampling(shape: str) -> None:
    side, right, down = 12, 0.4, 0.55
    got = coverage(shape, side, right, down)
    for row, column in np.ndindex(side, side):
        inside = 0
        for i, j in itertools.product(range(4), range(4)):
            x = (column + (j + 0.5) / 4) / side
            y = (row + (i + 0.5) / 4) / side
            inside += bool(INSIDE[shape]((x - right) / RADIUS, (y - down) / RADIUS))
        assert got[row, column] == pytest.approx(inside / 16, abs=1 / 16 + 1e-9)
    assert got.max() == 1


def test_images_have_the_color_and_place_of_their_caption() -> None:
    pairs = ShapesDataset(ShapesConfig(), "train", 32)
    for index in range(0, len(pairs), 7):
        pair = pairs.pair(index, seed=index)
        shape, color, place = pairs.combinations[index % len(pairs.combinations)]
        assert pair.caption in (f"a {color} {shape}{place}", f"an {color} {shape}{place}")
        assert (pair.image[0, 0] == 255).all()
        dark = np.abs(pair.image.astype(int) - COLORS[color]).sum(-1) == 0
        assert dark.any()
        drawn = np.argwhere((pair.image < 255).any(-1))
        y, x = (drawn.min(0) + drawn.max(0)) / 2 / 31
        nearest = min(PLACES, key=lambda name: np.hypot(x - PLACES[name][0], y - PLACES[name][1]))
        assert nearest == place


def test_a_pair_is_a_function_of_index_and_seed() -> None:
    a, b = ShapesDataset(ShapesConfig(), "train", 16), ShapesDataset(ShapesConfig(), "train", 16)
    assert np.array_equal(a.pair(3, 5).image, b.pair(3, 5).image)
    assert not np.array_equal(a.pair(3, 5).image, b.pair(3, 6).image)
    held_out = ShapesDataset(ShapesConfig(), "validation", 16)
    assert np.array_equal(held_out.pair(3, 5).image, held_out.pair(3, 6).image)


def test_splits_partition_all_combinations() -> None:
    train, held_out = (set(ShapesDataset(ShapesConfig(), split, 8).combinations) for split in ("train", "validation"))
    assert not train & held_out
    assert train | held_out == set(itertools.product(SHAPES, COLORS, PLACES))


def test_captions_come_from_the_split() -> None:
    pairs = ShapesDataset(ShapesConfig(size=1000), "train", 8)
    assert set(pairs.captions()) == {pairs.pair(index, 0).caption for index in range(len(pairs))}


@pytest.mark.parametrize("split, size", [("train", 40), ("validation", 5)])
def test_size_scales_the_splits(split: str, size: int) -> None:
    assert len(ShapesDataset(ShapesConfig(size=40), split, 8)) == size


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown data split 'test'"):
        ShapesDataset(ShapesConfig(), "test", 16)
    with pytest.raises(ValueError, match="image_size must be 8 or more"):
        ShapesDataset(ShapesConfig(), "train", 4)
    with pytest.raises(ValueError, match="size is 0; it must be at least 1"):
        ShapesConfig(size=0)
    with pytest.raises(ValueError, match=r"from 0 to 0\.06"):
        ShapesConfig(shift=0.5)
