"""Nearest training images, near-copies and diversity equal slow loops."""

from __future__ import annotations

import math

import pytest
import torch

from dalle.apps.judging.copies import NEAR_COPY, diversity, nearest, small


def test_the_neighbor_is_the_nearest_by_pixels_of_the_nearest_by_features() -> None:
    generator = torch.Generator().manual_seed(0)
    known, images = torch.rand(40, 3, 64, 64, generator=generator), torch.rand(6, 3, 64, 64, generator=generator)
    images[2] = known[17]
    images[3] = (known[5] + 0.02).clamp(0, 1)
    of_known, of_images = torch.rand(40, 8, generator=generator), torch.rand(6, 8, generator=generator)
    of_images[2], of_images[3] = of_known[17], 3 * of_known[5]  # only the direction of features counts
    found = nearest(images, of_images, small(known), of_known)
    for row in range(6):
        cosines = [float(of_images[row] @ one / (of_images[row].norm() * one.norm())) for one in of_known]
        likely = sorted(range(40), key=lambda index: -cosines[index])[:10]
        errors = {}
        for index in likely:
            squares = 0.0
            for y in range(32):
                for x in range(32):
                    a = images[row, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((1, 2))
                    b = known[index, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((1, 2))
                    squares += float((a - b).square().sum())
            errors[index] = 255 * math.sqrt(squares / (3 * 32 * 32))
        best = min(errors, key=lambda index: errors[index])
        assert found.indices[row] == best and found.errors[row].item() == pytest.approx(errors[best], abs=1e-2)
    assert found.indices[2] == 17 and found.errors[2] == 0 and found.indices[3] == 5
    assert found.near_copies == pytest.approx(2 / 6) and NEAR_COPY > found.errors[3] > 0


def test_diversity_is_the_mean_distance_of_the_pairs_of_a_prompt() -> None:
    features = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0))
    distances = []
    for drawn in features:
        for i in range(4):
            for j in range(i):
                distances.append(1 - float(drawn[i] @ drawn[j] / (drawn[i].norm() * drawn[j].norm())))
    assert diversity(features) == pytest.approx(sum(distances) / len(distances), abs=1e-6)
    assert diversity(features[:, :1].expand(-1, 4, -1)) == pytest.approx(0, abs=1e-6)
