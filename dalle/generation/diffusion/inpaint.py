"""Sampling what is unknown of data whose rest is known: at each step the known part, noised, takes its place again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dalle.generation.diffusion.prediction import Denoiser
from dalle.generation.diffusion.sample import Noise, SamplerConfig, sampler_step
from dalle.generation.diffusion.spacing import spaced_steps
from dalle.generation.progress import Progress
from dalle.models.noise_schedule import Schedule


@dataclass(frozen=True)
class Known:
    """Data of which a part is known.

    Attributes:
        data: [B, ...] or what broadcasts to it.
        unknown: bool, as data: what is to be sampled.
    """

    data: Tensor
    unknown: Tensor

    def put_back(self, x: Tensor, alpha_bar: float, noise: Tensor) -> Tensor:
        """x with its known part replaced by the data, noised as x is."""  # q(x_s | x_0)
        noised = alpha_bar**0.5 * self.data + (1 - alpha_bar) ** 0.5 * noise
        return torch.where(self.unknown, x, noised)


@torch.no_grad()
def inpaint(
    denoise: Denoiser,
    schedule: Schedule,
    options: SamplerConfig,
    known: Known,
    noise: Noise,
    resample: int = 1,
    progress: Progress | None = None,
) -> Tensor:
    """Sample what is unknown (Lugmayr et al. 2022, "RePaint", arXiv 2201.09865, algorithm 1).

    Args:
        denoise: see `make_denoiser`.
        schedule: what the network was trained with.
        options: sampler and its steps.
        known: the rest.
        noise: the start x_T, then what each step uses: the sampler's, that of the known part, that of going back.
        resample: how often each step is taken, going back between: so both parts come to agree. 1 goes on at once.
        progress: called after each step with the steps done and in all.

    Returns:
        x_0 as the noise, [B, ...]; where it is known, the data.

    Raises:
        ValueError: resample below 1, or more steps than the network was trained with.
    """
    if resample < 1:
        raise ValueError(f"resample is {resample}; it must be at least 1")
    steps = spaced_steps(len(schedule), options.steps, options.spacing)
    x, before = noise(), None
    # Step -1 is the data itself, with alpha-bar 1
    for done, (now, then) in enumerate(zip(steps, [*steps[1:], -1], strict=True)):
        a, b = schedule.alpha_bar(now), schedule.alpha_bar(then)
        for again in reversed(range(resample)):
            found = denoise(x, now)
            drawn = noise() if options.draws and then >= 0 else None
            # At the data the noise of the known part has weight 0, so anything may stand for it
            x = known.put_back(sampler_step(options, x, found, a, b, drawn, before), b, noise() if then >= 0 else x)
            before = found.x0, a
            if again and then >= 0:
                # Back to x_t by the forward process (algorithm 1, line 10), so that the known part has its say in what
                # follows
                x, before = (a / b) ** 0.5 * x + (1 - a / b) ** 0.5 * noise(), None
            elif then < 0:  # the data need no second pass
                break
        if progress is not None:
            progress(done + 1, len(steps))
    return x
