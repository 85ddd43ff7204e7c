"""From noise to data and back again: the loops of all samplers and of DDIM inversion over one list of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from dalle.config import config
from dalle.generation.diffusion.prediction import Denoised, Denoiser
from dalle.generation.diffusion.spacing import Spacing, spaced_steps
from dalle.generation.diffusion.steps import Variance, ddim_step, ddpm_step, dpm_solver_step
from dalle.models.noise_schedule import Schedule
from dalle.ranges import Range

Noise = Callable[[], Tensor]
"""Unit Gaussian numbers [B, ...]: what a sampler starts from, then those of each step, in the order of their use."""
Progress = Callable[[int, int], None]
"""Called after each step with the steps that are done and all of them."""


@config
class SamplerConfig:
    """How a diffusion is sampled."""

    sampler: Literal["ddpm", "ddim", "dpm++"] = "ddim"
    """ddpm draws each step, ddim follows an ODE where eta is 0, dpm++ is DPM-Solver++ (2M): the same in fewer steps."""
    steps: Annotated[int, Range(1, ceiling=10**6)] = 25
    """Passes of the network; at most as many as the steps it was trained with."""
    spacing: Spacing = "trailing"
    """Which steps are visited: with both ends (linspace, unCLIP's), leading (with step 0) or trailing (with the last).
    The logarithm of the signal-to-noise ratio leaps ahead of step 0: without it dpm++ needs far fewer steps."""
    eta: Annotated[float, Range(0, 1, hint="0 draws nothing, 1 as DDPM")] = 0.0
    """ddim: 0 draws nothing but the start, 1 has the variance of ddpm."""
    variance: Variance = "small"
    """ddpm: that of the posterior, beta, or what the network has learnt."""

    def __post_init__(self) -> None:
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"eta is {self.eta}, which is an option of sampler=ddim; sampler is {self.sampler}")

    @property
    def draws(self) -> bool:
        """Whether it draws noise in each step."""
        return self.sampler == "ddpm" or self.eta > 0

    def updated(self, **given: Any) -> SamplerConfig:
        """These options where they are given (not None), its own elsewhere."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})


def candidate_noise(seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Noise:
    """Noise [B, *shape] from a CPU generator for each of the B seeds: a candidate is the same alone and in a batch."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw() -> Tensor:
        return torch.stack([torch.randn(*shape, generator=one) for one in generators]).to(device)

    return draw


@torch.no_grad()
def sample(
    denoise: Denoiser, schedule: Schedule, options: SamplerConfig, noise: Noise, progress: Progress | None = None
) -> Tensor:
    """Draw from the distribution that a denoiser has learnt.

    Args:
        denoise: see `make_denoiser`.
        schedule: what the network was trained with.
        options: sampler and its steps.
        noise: the start x_T, then as many tensors as the sampler needs.
        progress: called after each step.

    Returns:
        x_0 as the noise, [B, ...].

    Raises:
        ValueError: more steps than the network was trained with.
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
    """`sample` from a start x_T [B, ...] that is given; noise is needed by ddpm, and by ddim where eta is above 0."""
    steps = spaced_steps(len(schedule), options.steps, options.spacing)
    if options.draws and noise is None:
        raise ValueError(f"sampler {options.sampler} with eta {options.eta} draws noise in each step: give some")
    x, before = start, None
    for done, (now, then) in enumerate(zip(steps, [*steps[1:], -1], strict=True)):
        found = denoise(x, now)
        a, b = schedule.alpha_bar(now), schedule.alpha_bar(then)
        drawn = noise() if options.draws and noise is not None and then >= 0 else None
        x = sampler_step(options, x, found, a, b, drawn, before)
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
    """The start x_T from which `sample_from` with the same options gives `x0` back (unCLIP, section 3).

    DDIM's ODE is walked up the same list of steps (arXiv 2010.02502, section 4.3). The noise of the noisier point is
    not known before it is reached: the first guess takes that predicted at the point before. Each further iteration
    predicts it at the guess (Pan et al. 2023, arXiv 2309.04907, section 3.2), until it is exact.

    Args:
        x0: data [B, ...], float32: errors add up over the steps.
        denoise: without guidance and without limits, which no inversion can undo.
        schedule: what the network was trained with.
        options: ddim with eta 0, and the steps.
        iterations: passes of the network for each step; 1 is plain DDIM inversion.
        progress: called after each step.

    Returns:
        x_T as x0.

    Raises:
        ValueError: a sampler that draws or has a memory, or no iterations.
    """
    if options.sampler != "ddim" or options.eta:
        raise ValueError(f"inversion needs sampler=ddim with eta=0, got {options.sampler} with eta {options.eta}")
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; it must be at least 1")
    steps = spaced_steps(len(schedule), options.steps, options.spacing)
    x = x0
    for done, (then, now) in enumerate(zip(reversed([*steps[1:], -1]), reversed(steps), strict=True)):
        a, b = schedule.alpha_bar(now), schedule.alpha_bar(then)
        share = (a / b) ** 0.5
        guess = share * x + ((1 - a) ** 0.5 - share * (1 - b) ** 0.5) * denoise(x, now).epsilon
        for _ in range(iterations - 1):  # x_s = ddim_step(x_t) solved for x_t
            found = denoise(guess, now)
            if b > 0.5:
                guess = share * x + ((1 - a) ** 0.5 - share * (1 - b) ** 0.5) * found.epsilon
            else:
                grown = ((1 - a) / (1 - b)) ** 0.5
                guess = grown * x + (a**0.5 - grown * b**0.5) * found.x0
        x = guess
        if progress is not None:
            progress(done + 1, len(steps))
    return x
