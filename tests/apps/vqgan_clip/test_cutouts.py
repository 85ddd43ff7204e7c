"""Cutouts: shapes, gradients, what random ones show, the augmentations by name."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch

from dalle.apps.vqgan_clip.cutouts import Cutouts, resize_square
from dalle.apps.vqgan_clip.options import AUGMENTS


@pytest.mark.parametrize("kinds", [("random",), ("pool",), ("whole",), ("random", "pool", "whole")])
@pytest.mark.parametrize("extent", [(16, 16), (24, 40), (8, 6)])
def test_cutouts_have_their_shape_range_and_gradients(kinds: tuple[str, ...], extent: tuple[int, int]) -> None:
    image = torch.rand(1, 3, *extent, requires_grad=True)
    cut = Cutouts(12, 5, kinds, min_size=0.5)(image)
    assert cut.shape == (5, 3, 12, 12)
    assert cut.min() >= 0 and cut.max() <= 1
    cut.sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0


def test_random_cutouts_are_squares_of_the_image() -> None:
    """Of an image whose channels are the coordinates, a cutout shows where it lies."""
    height, width = 40, 60
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    image = torch.stack([y, x, torch.zeros_like(x)])[None]
    torch.manual_seed(0)
    sides = []
    for cut in Cutouts(10, 60, min_size=0.25)(image):
        across = (cut[1, 0, -1] - cut[1, 0, 0]) / 9 * 10
        down = (cut[0, -1, 0] - cut[0, 0, 0]) / 9 * 10
        assert float(across) == pytest.approx(float(down), rel=0.1)
        sides.append(float(across))
    assert min(sides) >= 9 and max(sides) <= 42
    assert max(sides) - min(sides) > 15


def test_whole_and_pool_cutouts_cover_the_image() -> None:
    image = torch.rand(1, 3, 20, 40)
    whole = Cutouts(10, 1, ("whole",))(image)
    assert torch.allclose(whole.mean((2, 3)), image.mean((2, 3)), atol=0.02)
    blocks = image.reshape(1, 3, 10, 2, 10, 4)
    expected = (blocks.mean((3, 5)) + blocks.amax((3, 5))) / 2
    assert torch.allclose(Cutouts(10, 1, ("pool",))(image), expected, atol=1e-6)
    assert torch.equal(resize_square(image[..., :20], 20), image[..., :20])


@pytest.mark.parametrize("name", AUGMENTS)
def test_augmentations_differ_from_cutout_to_cutout_and_pass_gradients(name: str) -> None:
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    torch.manual_seed(1)
    cut = Cutouts(16, 12, ("whole",), augments=(name,))(image)
    changed = (cut - image).abs().amax((1, 2, 3)) > 1e-4
    assert changed.any(), name
    assert len({tuple(c.flatten().tolist()) for c in cut[changed]}) > 1
    cut.sum().backward()
    assert image.grad is not None and torch.isfinite(image.grad).all() and image.grad.abs().sum() > 0


def test_cutouts_are_reproducible_by_seed() -> None:
    image = torch.rand(1, 3, 16, 16)
    cutouts = Cutouts(16, 4, augments=AUGMENTS)
    made = []
    for _ in range(2):
        torch.manual_seed(7)
        made.append(cutouts(image))
    assert torch.equal(*made)


def test_without_kornia_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    there = builtins.__import__

    def absent(name: str, *args: Any) -> Any:
        if name.startswith("kornia"):
            raise ImportError(name)
        return there(name, *args)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ValueError, match=r"pip install .*\[paint\]"):
        Cutouts(16, 4, augments=("affine",))
    Cutouts(16, 4, augments=("training",))
