"""Slerp, blends of several, text differences: on the sphere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dalle.generation.slerp import blend, slerp, text_difference


def test_slerp_stays_on_the_sphere() -> None:
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    assert torch.equal(slerp(a, b, 0), a) and torch.equal(slerp(a, b, 1), b)
    third = slerp(a, b, 1 / 3)[0].tolist()
    assert third == pytest.approx([8 / 3 * math.cos(math.pi / 6), 8 / 3 * math.sin(math.pi / 6)], rel=1e-6)
    torch.testing.assert_close(slerp(a, a, 0.4), a)
    torch.testing.assert_close(slerp(a, -a, 0.5), torch.zeros(1, 2))  # there is no way to be preferred
    random = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    norms = slerp(random[0], random[1], 0.3).flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, 0.7 * random[0].flatten(1).norm(dim=1) + 0.3 * random[1].flatten(1).norm(dim=1))


def test_blend_of_many_minimizes_weighted_squared_angles() -> None:
    axes = list(torch.eye(3)[:, None])
    torch.testing.assert_close(blend(axes[:2], [3, 1]), slerp(axes[0], axes[1], 0.25))
    torch.testing.assert_close(blend(axes, [1, 1, 1]), torch.full((1, 3), 3**-0.5))
    weights, many = [0.5, 0.2, 0.3], list(torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0)))
    found = blend(many, weights)
    torch.testing.assert_close(blend(many[::-1], weights[::-1]), found)  # whatever the order

    # Of all points of the sphere it has the least squared angles: any near it has more
    def spread(point: Tensor) -> float:
        cosines = [torch.cosine_similarity(point, one, dim=-1).acos().square() for one in many]
        return sum(w * c for w, c in zip(weights, cosines)).sum().item()

    for seed in range(5):
        near = found + 0.05 * torch.randn(found.shape, generator=torch.Generator().manual_seed(seed))
        assert spread(near) > spread(found)
    torch.testing.assert_close(blend(axes, [0, 0, 5]), axes[2])
    with pytest.raises(ValueError, match="the weights sum to 0"):
        blend(axes, [0, 0, 0])
    with pytest.raises(ValueError, match="a weight is -1"):
        blend(axes, [1, -1, 1])


def test_text_difference_rotates_toward_the_difference() -> None:
    random = torch.Generator().manual_seed(0)
    z, before, after = torch.randn(2, 6, generator=random), *torch.randn(2, 6, generator=random)
    unit = after / after.norm() - before / before.norm()
    unit /= unit.norm()
    cosines = []
    for theta in (0.0, 0.3, 0.6, 1.0):
        found = text_difference(z, before, after, theta)
        torch.testing.assert_close(found.norm(dim=1), z.norm(dim=1))
        cosines.append((found @ unit / found.norm(dim=1)).tolist())
    for row in range(2):
        angles = [math.acos(min(1, one[row])) for one in cosines]
        assert angles == pytest.approx([angles[0] * (1 - theta) for theta in (0.0, 0.3, 0.6, 1.0)], abs=2e-3)
    with pytest.raises(ValueError, match="theta is -1"):
        text_difference(z, before, after, -1)
