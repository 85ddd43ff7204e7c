"""Random changes of CLIP's images: each as its seed says, in range, none at strength 0, about as strong as told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dalle.images.augment import augment
from dalle.training.recipe import load_recipe

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "emoji" / "clip.yaml"


def random_images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_augmentation_depends_on_the_seed_and_not_on_the_batch() -> None:
    images, seeds = random_images(4), [5, 6, 7, 5]
    together = augment(images, seeds, 1.0)
    alone = torch.cat([augment(images[i : i + 1], seeds[i : i + 1], 1.0) for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-6)
    assert not torch.allclose(together, augment(images, [8, 9, 10, 11], 1.0), atol=0.1)


def test_strength_zero_is_the_identity() -> None:
    images = random_images(3)
    assert torch.allclose(augment(images, [1, 2, 3], 0.0), images, atol=1e-5)


def test_noise_strength_is_uniform_up_to_the_maximum() -> None:
    """A gray image changes in brightness only, so what varies within it is noise; its corner has few holes."""
    changed = augment(torch.full((300, 3, 16, 16), 0.5), range(300), 0.5)
    deviations = (changed - changed.median()).flatten(1).abs().median(1).values / 0.6745  # holes move no median
    assert float(deviations.max()) < 0.3
    assert 0.1 < float(deviations.median()) < 0.15  # uniform from 0 to 0.25, and a little of brightness


def test_a_third_of_images_have_an_erased_square() -> None:
    changed = augment(torch.zeros(300, 3, 16, 16), range(300), 1.0)
    holes = int((changed.mean((1, 2, 3)) > 0.03).sum())  # noise has a mean of 0, the least hole one of 0.04
    assert 80 < holes < 120


@pytest.mark.parametrize("strength", ["-0.1", "1.5", "nan"])
def test_strength_out_of_range_is_refused(strength: str) -> None:
    with pytest.raises(ValueError, match="augment"):
        load_recipe(RECIPE, [f"augment={strength}"])
