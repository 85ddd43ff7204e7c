"""The losses against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from dalle.apps.vqgan_clip.losses import colorfulness, l2_to_init, spherical_distance, total_variation


def test_spherical_distance_is_half_the_squared_angle() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (F.normalize(torch.randn(50, 16, generator=generator), dim=1) for _ in range(2))
    angle = (a * b).sum(1).double().acos()
    assert torch.allclose(spherical_distance(a, b).double(), angle.square() / 2, atol=1e-5)
    chord = (a - b).norm(dim=1)
    assert torch.allclose(spherical_distance(a, b), 2 * (chord / 2).arcsin().square(), atol=1e-5)


@pytest.mark.parametrize(("sign", "expected"), [(1, 0.0), (-1, math.pi**2 / 2)])
def test_spherical_distance_has_finite_gradients_at_equal_and_opposite_vectors(sign: int, expected: float) -> None:
    a = F.normalize(torch.arange(1.0, 5.0), dim=0)[None].requires_grad_()
    distance = spherical_distance(a, sign * a.detach())
    assert float(distance.detach()) == pytest.approx(expected, abs=0.02)
    distance.sum().backward()
    assert a.grad is not None and torch.isfinite(a.grad).all()


def test_total_variation_equals_a_slow_loop() -> None:
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(1)).double()
    across = [
        (images[b, c, y, x + 1] - images[b, c, y, x]) ** 2
        for b in range(2)
        for c in range(3)
        for y in range(4)
        for x in range(4)
    ]
    down = [
        (images[b, c, y + 1, x] - images[b, c, y, x]) ** 2
        for b in range(2)
        for c in range(3)
        for y in range(3)
        for x in range(5)
    ]
    assert float(total_variation(images)) == pytest.approx(float(sum(across) / len(across) + sum(down) / len(down)))
    assert float(total_variation(torch.ones(1, 3, 1, 1))) == 0


def test_colorfulness_of_gray_is_0_and_of_red_is_1() -> None:
    gray, red = torch.full((1, 3, 2, 2), 0.3), torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 2, 2)
    assert float(colorfulness(gray)) == 0
    assert float(colorfulness(red)) == 1


def test_init_weight_halves_every_decay_period() -> None:
    a, b = torch.ones(4), torch.zeros(4)
    assert [float(l2_to_init(a, b, step, 10)) for step in (0, 10, 20)] == pytest.approx([1, 0.5, 0.25])
    assert float(l2_to_init(a, b, 1000, 0)) == 1
