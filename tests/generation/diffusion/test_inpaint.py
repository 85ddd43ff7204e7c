"""Inpainting by diffusion: RePaint's loop, and what is known stays."""

from __future__ import annotations

import math

import torch

from dalle.generation.diffusion.inpaint import Known, inpaint
from dalle.generation.diffusion.prediction import make_denoiser
from dalle.generation.diffusion.sample import SamplerConfig, candidate_noise
from dalle.generation.diffusion.spacing import spaced_steps
from dalle.models.noise_schedule import CosineConfig, make_schedule


def test_inpainting_equals_repaints_algorithm_1() -> None:
    """Algorithm 1 of Lugmayr et al. 2022, number by number, with DDPM."""
    schedule = make_schedule(CosineConfig(steps=50))
    denoise = make_denoiser(lambda x, steps: torch.tanh(x) * 0.5, schedule, "sample")
    data, unknown = torch.rand(1, 2, 4, dtype=torch.float64), torch.tensor([[[True, False, True, False]]])
    options = SamplerConfig(sampler="ddpm", steps=5)
    random = torch.Generator().manual_seed(0)
    found = inpaint(
        denoise,
        schedule,
        options,
        Known(data, unknown),
        lambda: torch.randn(1, 2, 4, generator=random, dtype=torch.float64),
        resample=2,
    )
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 4, generator=random, dtype=torch.float64)
    steps = spaced_steps(50, 5, "trailing")
    for now, then in zip(steps, [*steps[1:], -1]):
        a, b = schedule.alpha_bar(now), schedule.alpha_bar(then)
        beta = 1 - a / b
        for repeat in range(2 if then >= 0 else 1):
            x0 = torch.tanh(x) * 0.5
            mean = (math.sqrt(b) * beta * x0 + math.sqrt(a / b) * (1 - b) * x) / (1 - a)
            if then < 0:
                x = torch.where(unknown, mean, data)
                continue
            drawn = torch.randn(1, 2, 4, generator=random, dtype=torch.float64)
            noise = torch.randn(1, 2, 4, generator=random, dtype=torch.float64)
            sampled = mean + math.sqrt(beta * (1 - b) / (1 - a)) * drawn
            x = torch.where(unknown, sampled, math.sqrt(b) * data + math.sqrt(1 - b) * noise)
            if not repeat:
                again = torch.randn(1, 2, 4, generator=random, dtype=torch.float64)
                x = math.sqrt(a / b) * x + math.sqrt(beta) * again
    torch.testing.assert_close(found, x)
    torch.testing.assert_close(found[..., 1], data[..., 1])


def test_every_sampler_keeps_known_values() -> None:
    schedule = make_schedule(CosineConfig(steps=50))
    denoise = make_denoiser(lambda x, steps: x * 0.1, schedule, "sample")
    data = torch.rand(1, 3)
    unknown = torch.tensor([[True, False, False]])
    for sampler in ("ddpm", "ddim", "dpm++"):
        options = SamplerConfig(sampler=sampler, steps=6)
        found = inpaint(denoise, schedule, options, Known(data, unknown), candidate_noise([0], (3,)))
        assert torch.equal(found[:, 1:], data[:, 1:]) and found.isfinite().all()
