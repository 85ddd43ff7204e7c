"""Nearest training images, near-copies and diversity equal slow loops."""

from __future__ import annotations

import math

import pytest
import torch

from dalle.apps.judging.memorization import NEAR_COPY, diversity, downsample, nearest_neighbors


def test_neighbor_is_the_nearest_by_pixels_among_the_nearest_by_features() -> None:
    generator = torch.Generator().manual_seed(0)
    known, images = torch.rand(40, 3, 64, 64, generator=generator), torch.rand(6, 3, 64, 64, generator=generator)
    images[2] = known[17]
    images[3] = (known[5] + 0.02).clamp(0, 1)
    of_known, of_images = torch.rand(40, 8, generator=generator), torch.rand(6, 8, generator=generator)
    of_images[2], of_images[3] = of_known[17], 3 * of_known[5]  # only the direction of features counts
    images[4] = torch.roll(padded(known[30]), (4, -2), (1, 2))[:, 8:-8, 8:-8]  # by 2 and -1 pixels of 32
    of_images[4] = of_known[30]
    found = nearest_neighbors(images, of_images, downsample(known), of_known)
    for row in range(6):
        cosines = [float(of_images[row] @ one / (of_images[row].norm() * one.norm())) for one in of_known]
        pixels = [float((downsample(images[row][None])[0] - one).square().sum()) for one in downsample(known)]
        likely = {*sorted(range(40), key=lambda index: -cosines[index])[:10]}
        likely |= {*sorted(range(40), key=lambda index: pixels[index])[:10]}
        errors = {}
        for index in likely:
            wide = padded(downsample(known)[index], 2)
            tries = []
            for down in range(5):
                for right in range(5):
                    moved = wide[:, down : down + 32, right : right + 32]
                    tries.append(float((downsample(images[row][None])[0] - moved).square().mean()))
            errors[index] = 255 * math.sqrt(min(tries))
        best = min(errors, key=lambda index: errors[index])
        assert found.indices[row] == best
        assert found.errors[row].item() == pytest.approx(errors[best], abs=1e-2)
    assert found.indices[2] == 17 and found.errors[2] == 0 and found.indices[3] == 5
    assert found.indices[4] == 30 and found.errors[4] < 1e-3
    assert found.near_copies == pytest.approx(3 / 6) and NEAR_COPY > found.errors[3] > 0


def padded(image: torch.Tensor, width: int = 8) -> torch.Tensor:
    """An image [3, H, W] on white."""
    return torch.nn.functional.pad(image, (width,) * 4, value=1.0)


def test_diversity_is_the_mean_pairwise_distance_of_a_prompts_images() -> None:
    features = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0))
    distances = []
    for drawn in features:
        for i in range(4):
            for j in range(i):
                distances.append(1 - float(drawn[i] @ drawn[j] / (drawn[i].norm() * drawn[j].norm())))
    assert diversity(features) == pytest.approx(sum(distances) / len(distances), abs=1e-6)
    assert diversity(features[:, :1].expand(-1, 4, -1)) == pytest.approx(0, abs=1e-6)
