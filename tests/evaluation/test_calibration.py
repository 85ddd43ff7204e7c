"""The best temperature is that of a fine grid, and is known where logits are those of the data's own distribution."""

from __future__ import annotations

import math

import pytest
import torch

from dalle.evaluation.calibration import TemperatureScaling


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.7, 6.0])
def test_best_temperature_equals_a_fine_grid_search(scale: float) -> None:
    """Targets are drawn from softmax(logits); logits that are `scale` times too large want that temperature."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 50, generator=generator, dtype=torch.float64)
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    summed = TemperatureScaling()
    for part, ids in zip((scale * logits).float().split(700), targets.split(700), strict=True):
        summed.update(part, ids)
    temperature, nats = summed.best()
    grid = [math.exp(math.log(scale) + step / 1000) for step in range(-50, 51)]
    curve = [float(torch.nn.functional.cross_entropy(scale * logits / one, targets)) for one in grid]
    assert nats == pytest.approx(min(curve), rel=2e-5)
    assert temperature == pytest.approx(scale, rel=0.05)


def test_optimum_outside_the_range_is_its_end() -> None:
    sure = TemperatureScaling()
    sure.update(torch.tensor([[0.9, 0.0], [0.8, 0.0]]), torch.tensor([0, 0]))  # always right: the surer, the better
    assert sure.best()[0] == pytest.approx(0.1)
    lost = TemperatureScaling()
    lost.update(torch.tensor([[0.9, 0.0], [0.8, 0.0]]), torch.tensor([1, 1]))  # always wrong: the less sure, the better
    temperature, nats = lost.best()
    assert temperature == pytest.approx(10) and nats == pytest.approx(
        sum(math.log(1 + math.exp(value / 10)) for value in (0.9, 0.8)) / 2, rel=1e-5
    )
