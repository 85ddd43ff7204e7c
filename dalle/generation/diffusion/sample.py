"""Sampling loops, from noise to data, for all samplers; and DDIM inversion, from data to noise, over the same steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from dalle.config import config
from dalle.config.ranges import Range
from dalle.generation.diffusion.prediction import Denoised, Denoiser
from dalle.generation.diffusion.spacing import Spacing, spaced_steps
from dalle.generation.diffusion.steps import Variance, ddim_step, ddpm_step, dpm_solver_step
from dalle.generation.progress import Progress
from dalle.models.noise_schedule import Schedule

Noise = Callable[[], Tensor]
"""Returns unit Gaussian noise [B, ...] at each call: first the sampler's start, then that of each step."""


@config
class SamplerConfig:
    """How a diffusion is sampled."""

    sampler: Literal["ddpm", "ddim", "dpm++"] = "ddim"
    """ddpm is stochastic, ddim deterministic if eta is 0, dpm++ is DPM-Solver++ (2M): as good in fewer steps."""
    steps: Annotated[int, Range(1, ceiling=10**6)] = 25
    """Network evaluations (twice as many with guidance); at most as many as the diffusion has time steps."""
    spacing: Spacing = "trailing"
    """Which time steps are visited: both ends (linspace, unCLIP's), from step 0 (leading), or to the last (trailing).
    The log signal-to-noise ratio jumps just before step 0; without that step dpm++ needs far fewer steps."""
    eta: Annotated[float, Range(0, 1, hint="0 adds no noise, 1 as much as DDPM")] = 0.0
    """ddim: 0 adds no noise after the start, 1 has the variance of ddpm."""
    variance: Variance = "small"
    """ddpm: that of the posterior (small), beta (large), or the network's own (learned)."""

    def __post_init__(self) -> None:
        if self.eta and self.sampler != "ddim":
            raise ValueError(
                f"eta is {self.eta}, but only sampler=ddim uses it and sampler is {self.sampler}: set it to 0"
            )

    @property
    def draws(self) -> bool:
        """Whether it draws noise in each step."""
        return self.sampler == "ddpm" or self.eta > 0

    def updated(self, **given: Any) -> SamplerConfig:
        """A copy with these options, except those that are None."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})


def candidate_noise(seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Noise:
    """Noise [B, *shape] from one CPU generator per seed: a candidate is the same alone and in any batch."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def next_noise() -> Tensor:
        # On the CPU: the same numbers on every device
        return torch.stack([torch.randn(*shape, generator=one) for one in generators]).to(device)

    return next_noise


@torch.no_grad()
def sample(
    denoise: Denoiser, schedule: Schedule, options: SamplerConfig, noise: Noise, progress: Progress | None = None
) -> Tensor:
    """Sample from the distribution that a denoiser has learned.

    Args:
        denoise: see `make_denoiser`.
        schedule: the one the network was trained with.
        options: the sampler and its steps.
        noise: the source of the start x_T and of each step's noise.
        progress: called after each step with the steps done and in all.

    Returns:
        x_0, shaped like the noise, [B, ...].

    Raises:
        ValueError: more steps than the diffusion has.
    """
    return sample_from(noise(), denoise, schedule, options, noise, progress)


@torch.no_grad()
def sample_from(
    start: Tensor,
    denoise: Denoiser,
    schedule: Schedule,
    options: SamplerConfig,
    noise: Noise | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """`sample` from a given start x_T [B, ...]; ddpm, and ddim with eta above 0, need noise for their steps too."""
    steps = spaced_steps(len(schedule), options.steps, options.spacing)
    if options.draws and noise is None:
        raise ValueError(f"sampler {options.sampler} with eta {options.eta} needs noise in each step: pass some")
    x, before = start, None  # -1: the data
    for done, (now, then) in enumerate(zip(steps, [*steps[1:], -1], strict=True)):
        found = denoise(x, now)
        a, b = schedule.alpha_bar(now), schedule.alpha_bar(then)  # alpha-bars of x_t and x_s
        # The last step, to the data itself (then = -1), adds no noise
        added = noise() if options.draws and noise is not None and then >= 0 else None
        x = sampler_step(options, x, found, a, b, added, before)
        before = found.x0, a
        if progress is not None:
            progress(done + 1, len(steps))
    return x


def sampler_step(
    options: SamplerConfig,
    x: Tensor,
    found: Denoised,
    now: float,
    then: float,
    noise: Tensor | None,
    before: tuple[Tensor, float] | None,
) -> Tensor:
    """One step of the sampler that the options name; arguments as those of `dalle.generation.diffusion.steps`."""
    if options.sampler == "ddim":
        return ddim_step(found, now, then, options.eta, noise)
    if options.sampler == "ddpm":
        return ddpm_step(x, found, now, then, torch.zeros_like(x) if noise is None else noise, options.variance)
    return dpm_solver_step(x, found, now, then, before)


@torch.no_grad()
def invert(
    x0: Tensor,
    denoise: Denoiser,
    schedule: Schedule,
    options: SamplerConfig,
    iterations: int = 1,
    progress: Progress | None = None,
) -> Tensor:
    """DDIM inversion: the start x_T from which `sample_from` with the same options returns `x0` (unCLIP, section 3).

    The same steps are taken backward (arXiv 2010.02502, section 4.3). The noise prediction at the noisier point is not
    known before that point: the first guess uses the prediction at the current point. Each further iteration predicts
    at the guess (Pan et al. 2023, arXiv 2309.04907, section 3.2), which converges to the exact inverse.

    Args:
        x0: data [B, ...], in float32 as errors accumulate over the steps.
        denoise: without guidance and without limits, which cannot be inverted.
        schedule: the one the network was trained with.
        options: ddim with eta 0, and its steps.
        iterations: network evaluations per step; 1 is plain DDIM inversion.
        progress: called after each step with the steps done and in all.

    Returns:
        x_T, shaped like x0.

    Raises:
        ValueError: the sampler is stochastic or not ddim, or there are no iterations.
    """
    if options.sampler != "ddim" or options.eta:
        raise ValueError(f"inversion needs sampler=ddim with eta=0, got {options.sampler} with eta {options.eta}")
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; it must be at least 1")
    steps = spaced_steps(len(schedule), options.steps, options.spacing)
    x = x0
    for done, (then, now) in enumerate(zip(reversed([*steps[1:], -1]), reversed(steps), strict=True)):
        a, b = schedule.alpha_bar(now), schedule.alpha_bar(then)
        scale = (a / b) ** 0.5
        # ddim_step with sigma 0 is x_s = sqrt(b) x_0 + sqrt(1 - b) epsilon, x_0 = (x_t - sqrt(1 - a) epsilon) /
        # sqrt(a): solved for x_t
        guess = scale * x + ((1 - a) ** 0.5 - scale * (1 - b) ** 0.5) * denoise(x, now).epsilon
        for _ in range(iterations - 1):  # fixed-point iteration of x_s = ddim_step(x_t), solved for x_t
            found = denoise(guess, now)
            # Of the two equivalent forms, the one with epsilon contracts better at low noise, the one with x0 at high
            if b > 0.5:
                guess = scale * x + ((1 - a) ** 0.5 - scale * (1 - b) ** 0.5) * found.epsilon
            else:
                noise_scale = ((1 - a) / (1 - b)) ** 0.5
                guess = noise_scale * x + (a**0.5 - noise_scale * b**0.5) * found.x0
        x = guess
        if progress is not None:
            progress(done + 1, len(steps))
    return x
