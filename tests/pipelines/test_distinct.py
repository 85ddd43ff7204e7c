"""Keeping the best of several candidates: near-duplicates of better ones come last."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dalle.pipelines.result import Result
from dalle.pipelines.thumbnails import distinct_first, thumbnails


def picture(seed: int, noise: float = 0.0) -> Image.Image:
    """A pattern by its seed, of 8 x 8 patches; `noise` changes single pixels, which an eye hardly sees."""
    patches = np.random.default_rng(seed).integers(0, 256, (8, 8, 3))
    pixels = patches.repeat(8, 0).repeat(8, 1) + np.random.default_rng(99).normal(0, 1, (64, 64, 3)) * noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


A, A2, A3, B, C = picture(0), picture(0, 9), picture(0, 20), picture(1), picture(2)


@pytest.mark.parametrize(
    "keep, expected", [(1, [0]), (2, [0, 2]), (3, [0, 2, 4]), (4, [0, 1, 2, 4]), (5, [0, 1, 2, 3, 4])]
)
def test_duplicates_come_last_in_stable_order(keep: int, expected: list[int]) -> None:
    whole = Result("a", [A, A2, B, A3, C], None, None, [0, 1, 2, 3, 4])
    assert whole.best(keep, distinct=True).seeds == expected
    assert distinct_first(thumbnails(whole.images), range(5), keep) == [0, 2, 4][:keep]


def test_distinct_keeps_different_images_of_similar_score() -> None:
    """But none whose score is far below the best: rather the same bicycle twice than a bicycle and a blot."""
    whole = Result("a", [A, B, A2, C], [0.88, 0.82, 0.9, 0.75], None, [1, 2, 3, 4])
    assert whole.best(2).seeds == [3, 1] and whole.best(2, distinct=True).seeds == [3, 2]
    assert whole.best(3, distinct=True).seeds == [3, 1, 2]
    parts = [Result("a", [A, B], [0.88, 0.82], None, [1, 2]), Result("a", [A2, C], [0.9, 0.75], None, [3, 4])]
    assert Result.merged(parts) == whole
