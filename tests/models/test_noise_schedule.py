"""Schedules against their formulas, the forward process, the steps that samplers visit."""

from __future__ import annotations

import math

import pytest
import torch

from dalle.generation.diffusion.spacing import spaced_steps
from dalle.models.noise_schedule import CosineConfig, LinearConfig, make_schedule


def test_cosine_schedule_equals_the_papers_formula() -> None:
    """Equation 17 of arXiv 2102.09672, before the cap of beta and at it."""
    schedule = make_schedule(CosineConfig())
    f = [math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1001)]
    for step in (0, 1, 10, 500, 998):
        assert schedule.alpha_bar(step) == pytest.approx(f[step + 1] / f[0], rel=1e-9)
    assert schedule.alpha_bar(999) == pytest.approx(schedule.alpha_bar(998) * 0.001, rel=1e-9)
    assert schedule.alpha_bar(999) == pytest.approx(2.4e-9, rel=0.02)
    assert schedule.alpha_bar(-1) == 1


def test_linear_schedule_equals_the_product_of_its_betas() -> None:
    schedule = make_schedule(LinearConfig(steps=50, first=0.01, last=0.2))
    product = 1.0
    for step in range(50):
        product *= 1 - (0.01 + (0.2 - 0.01) * step / 49)
        assert schedule.alpha_bar(step) == pytest.approx(product)
    assert make_schedule(LinearConfig()).alpha_bar(999) == pytest.approx(4.04e-5, rel=0.01)


def test_noised_unit_data_keeps_its_variance() -> None:
    random = torch.Generator().manual_seed(0)
    schedule = make_schedule(CosineConfig())
    x0, noise = torch.randn(2, 5, 40_000, generator=random)
    steps = torch.tensor([0, 100, 500, 900, 999])
    noised = schedule.add_noise(x0, noise, steps)
    torch.testing.assert_close(noised.var(1), torch.ones(5), atol=0.03, rtol=0)
    for row, step in enumerate(steps.tolist()):  # one number at a time
        a = schedule.alpha_bar(step)
        assert noised[row, 3].item() == pytest.approx(
            math.sqrt(a) * x0[row, 3].item() + math.sqrt(1 - a) * noise[row, 3].item(), abs=1e-6
        )
    ratio = schedule.signal_to_noise(steps)
    assert ratio[2].item() == pytest.approx(schedule.alpha_bar(500) / (1 - schedule.alpha_bar(500)), rel=1e-6)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_spaced_steps_descend_and_have_the_given_count(spacing: str) -> None:
    for total, count in ((1000, 25), (1000, 1), (1000, 1000), (10, 7), (2, 2)):
        steps = spaced_steps(total, count, spacing)
        assert len(steps) == len(set(steps)) == count
        assert steps == sorted(steps, reverse=True) and 0 <= steps[-1] <= steps[0] < total
    few = spaced_steps(1000, 5, spacing)
    assert (few[0] == 999) == (spacing != "leading")
    assert (few[-1] == 0) == (spacing != "trailing")


def test_options_out_of_range_are_refused() -> None:
    for count in (0, 11):
        with pytest.raises(ValueError, match=f"steps is {count}; this model was trained with 10"):
            spaced_steps(10, count)
    with pytest.raises(ValueError, match="betas go from 0.5 to 0.1"):
        LinearConfig(first=0.5, last=0.1)
    with pytest.raises(ValueError, match="steps is 1; it must be at least 2"):
        CosineConfig(steps=1)
