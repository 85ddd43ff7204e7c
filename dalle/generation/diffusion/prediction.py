"""What a network predicts, turned into the data and the noise that it stands for: epsilon, v or the data themselves.

v is sqrt(a_t) epsilon - sqrt(1 - a_t) x_0 (Salimans & Ho 2022, arXiv 2202.00512, section 4 and appendix D).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dalle.generation.sampling import guide
from dalle.models.noise_schedule import Predicts, Schedule

Network = Callable[[Tensor, Tensor], Tensor]
"""x_t [B, ...] and steps int64 [B] to what it predicts, [B, ...]; with learnt variance twice the channels."""


class Denoised(NamedTuple):
    """A network's view of x_t: x_t = sqrt(a_t) x0 + sqrt(1 - a_t) epsilon holds exactly."""

    x0: Tensor
    """The data, [B, ...]."""
    epsilon: Tensor
    """The noise, [B, ...]."""
    variance: Tensor | None = None
    """Where between the two bounds the log variance of the next step lies, [B, ...] in [-1, 1], if it was learnt."""


Denoiser = Callable[[Tensor, int], Denoised]
"""x_t [B, ...] and its step to what is under the noise."""


@dataclass(frozen=True)
class Limit:
    """Bounds that predicted data are kept in.

    With a `percentile` it is dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487, section 2.3): each sample's
    own percentile of |x_0| is clipped at and divided by, where it lies above 1, so that guidance does not saturate.
    """

    value: float = 1.0
    """Data lie in [-value, value]; dynamic: the largest percentile that is clipped at."""
    percentile: float | None = None
    """Share of the absolute values of a sample that are not clipped, such as 0.995; None clips at `value`."""

    def __post_init__(self) -> None:
        if self.value <= 0:
            raise ValueError(f"the limit of predictions is {self.value}; it must be above 0")
        if self.percentile is not None and not 0 < self.percentile <= 1:
            raise ValueError(f"the percentile of dynamic thresholding is {self.percentile}; give one in (0, 1]")

    def __call__(self, x0: Tensor) -> Tensor:
        """[B, ...] within the bounds."""
        if self.percentile is None:
            return x0.clamp(-self.value, self.value)
        bound = x0.float().abs().flatten(1).quantile(self.percentile, dim=1)
        bound = bound.clamp(1.0, max(self.value, 1.0)).to(x0.dtype).view(-1, *[1] * (x0.ndim - 1))
        return torch.minimum(torch.maximum(x0, -bound), bound) / bound


def target(kind: Predicts, schedule: Schedule, x0: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
    """What a network is to predict of x_t, as x0 [B, ...]; steps int64 [B]."""
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return x0
    signal, sigma = schedule.shares(steps, x0)
    return signal * noise - sigma * x0


def denoised(kind: Predicts, alpha_bar: float, x: Tensor, output: Tensor) -> Denoised:
    """Data and noise of x_t [B, ...], of which a network has predicted `output`."""
    signal, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    if kind == "epsilon":
        return Denoised((x - sigma * output) / signal, output)
    if kind == "v":
        return Denoised(signal * x - sigma * output, sigma * x + signal * output)
    return Denoised(output, (x - signal * output) / sigma)


def denoised_rows(kind: Predicts, schedule: Schedule, steps: Tensor, x: Tensor, output: Tensor) -> Tensor:
    """The data of x_t, each sample [B, ...] at a step of its own, int64 [B]."""
    if kind == "sample":
        return output
    signal, sigma = schedule.shares(steps, x)
    return (x - sigma * output) / signal if kind == "epsilon" else signal * x - sigma * output


def make_denoiser(
    network: Network,
    schedule: Schedule,
    kind: Predicts,
    *,
    unconditional: Network | None = None,
    guidance: float = 1.0,
    limit: Limit | None = None,
    learned_variance: bool = False,
) -> Denoiser:
    """A network as samplers call it.

    Where predicted data are limited, the noise is made to agree with them, as OpenAI's code does it.

    Args:
        network: with the condition.
        schedule: what it was trained with.
        kind: what it predicts.
        unconditional: the same without the condition; asked where `guidance` is not 1.
        guidance: classifier-free guidance scale (Ho & Salimans 2022, arXiv 2207.12598); 1 is none.
        limit: bounds of predicted data.
        learned_variance: the second half of the network's channels is the variance (arXiv 2102.09672, equation 15),
            taken from the conditional prediction.

    Raises:
        ValueError: a guidance that is not finite, or one without `unconditional`.
    """
    if not 0 <= guidance < float("inf"):
        raise ValueError(f"guidance is {guidance}; it must be 0 or more (1 is no guidance)")
    if guidance != 1 and unconditional is None:
        raise ValueError(f"guidance is {guidance}, but this model has no unconditional prediction; take guidance 1")

    def denoise(x: Tensor, step: int) -> Denoised:
        steps = torch.full((len(x),), step, dtype=torch.long, device=x.device)
        output, variance = _halves(network(x, steps), learned_variance)
        if guidance != 1 and unconditional is not None:
            output = guide(output, _halves(unconditional(x, steps), learned_variance)[0], guidance)
        alpha_bar = schedule.alpha_bar(step)
        found = denoised(kind, alpha_bar, x, output.to(x.dtype))
        if limit is not None:
            found = denoised("sample", alpha_bar, x, limit(found.x0))
        return found._replace(variance=variance)

    return denoise


def _halves(output: Tensor, learned_variance: bool) -> tuple[Tensor, Tensor | None]:
    if not learned_variance:
        return output, None
    mean, variance = output.chunk(2, dim=1)
    return mean, variance
