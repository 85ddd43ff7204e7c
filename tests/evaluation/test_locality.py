"""Measures of locality equal slow loops, and say of made-up encoders what they are."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import pytest
import torch
from torch import Tensor

from dalle.evaluation.locality import blank_cells, entropy_given_position, shift, unchanged_codes


def test_blank_cells_have_white_pixels_only() -> None:
    images = torch.ones(2, 3, 12, 8)
    images[0, 1, 5, 2] = 254 / 255
    images[1, :, 8:, 4:] = 0
    found = blank_cells(images, 4)
    for image, cells in zip(images, found, strict=True):
        for row in range(3):
            for column in range(2):
                cell = image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                assert bool(cells[row, column]) == (cell.min().item() == 1)
    assert found.sum() == 10


def test_shifting_repeats_the_border() -> None:
    image = torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    moved = shift(image, 2, 1)
    for row in range(5):
        for column in range(6):
            assert torch.equal(moved[..., row, column], image[..., max(row - 2, 0), max(column - 1, 0)])
    assert torch.equal(shift(image, 0, 0), image)


def local_encoder(images: Tensor) -> Tensor:
    """The mean of a cell of 4x4 pixels, in 16 steps."""
    return torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 4)[:, 0].mul(16).long()


def global_encoder(images: Tensor) -> Tensor:
    """The same, turned by the mean of the whole image."""
    return (local_encoder(images) + images.mean((1, 2, 3)).mul(1000).long()[:, None, None]) % 16


def test_unchanged_compares_cells_that_lie_in_both_grids() -> None:
    codes = torch.randint(0, 5, (2, 4, 5), generator=torch.Generator().manual_seed(0))
    others = torch.randint(0, 5, (2, 4, 5), generator=torch.Generator().manual_seed(1))
    found = unchanged_codes(codes, others, down=1, right=2)
    assert found.shape == (2, 3, 3)
    for image in range(2):
        for row in range(3):
            for column in range(3):
                same = codes[image, row, column] == others[image, row + 1, column + 2]
                assert found[image, row, column] == same


def test_local_encoder_codes_move_with_the_image_and_global_ones_do_not() -> None:
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for down, right in ((1, 0), (0, 1), (2, 1)):
        moved = shift(images, 4 * down, 4 * right)
        assert unchanged_codes(local_encoder(images), local_encoder(moved), down, right).all()
        assert unchanged_codes(global_encoder(images), global_encoder(moved), down, right).float().mean() < 0.5


def test_position_conditional_entropy_equals_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 4, (50, 3), generator=generator)  # 50 images of 3 places
    codes[:, 2] = 1
    counted = torch.rand(50, 3, generator=generator) < 0.7
    counts = torch.zeros(3, 4, dtype=torch.int64)
    seen: dict[int, list[int]] = defaultdict(list)
    for row, which in zip(codes.tolist(), counted.tolist(), strict=True):
        for place, (code, there) in enumerate(zip(row, which, strict=True)):
            if there:
                counts[place, code] += 1
                seen[place].append(code)
    total = sum(len(these) for these in seen.values())
    expected = 0.0
    for these in seen.values():
        for number in Counter(these).values():
            expected -= number / total * math.log(number / len(these))
    assert entropy_given_position(counts) == pytest.approx(expected)
    assert entropy_given_position(counts[2:]) == 0  # one code always
    assert math.isnan(entropy_given_position(torch.zeros(3, 4, dtype=torch.int64)))
    even = torch.full((2, 8), 3)
    assert entropy_given_position(even) == pytest.approx(math.log(8))
