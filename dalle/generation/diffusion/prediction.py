"""Converts a network's prediction (epsilon, v or the data) to both data and noise; guidance and thresholding.

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
"""x_t [B, ...] and steps int64 [B] to the prediction [B, ...]; with learned variance, twice the channels."""


class Denoised(NamedTuple):
    """A network's estimate of what x_t consists of: x_t = sqrt(a_t) x0 + sqrt(1 - a_t) epsilon holds exactly."""

    x0: Tensor
    """The data, [B, ...]."""
    epsilon: Tensor
    """The noise, [B, ...]."""
    variance: Tensor | None = None
    """Where the next step's log variance lies between its bounds, [B, ...] in [-1, 1], if the network predicts it."""


Denoiser = Callable[[Tensor, int], Denoised]
"""x_t [B, ...] and its step to the estimated data and noise."""


@dataclass(frozen=True)
class Limit:
    """Bounds on the predicted data.

    With a `percentile` this is dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487, section 2.3): each sample
    is clipped at its own percentile of |x_0| if that is above 1, and divided by it, so that guidance does not saturate.
    """

    value: float = 1.0
    """Data are in [-value, value]; with a percentile: the highest threshold."""
    percentile: float | None = None
    """Share of a sample's absolute values that are not clipped, such as 0.995; None: clip at `value`."""

    def __post_init__(self) -> None:
        if self.value <= 0:
            raise ValueError(f"the limit of predictions is {self.value}; it must be above 0")
        if self.percentile is not None and not 0 < self.percentile <= 1:
            raise ValueError(f"the percentile of dynamic thresholding is {self.percentile}; it must be in (0, 1]")

    def __call__(self, x0: Tensor) -> Tensor:
        """Clip x_0 [B, ...]."""
        if self.percentile is None:
            return x0.clamp(-self.value, self.value)
        # Thresholds below 1 would amplify small values instead of limiting large ones
        bound = x0.float().abs().flatten(1).quantile(self.percentile, dim=1)  # [B]
        bound = bound.clamp(1.0, max(self.value, 1.0)).to(x0.dtype).view(-1, *[1] * (x0.ndim - 1))
        return torch.minimum(torch.maximum(x0, -bound), bound) / bound


def target(kind: Predicts, schedule: Schedule, x0: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
    """The training target of a network, shaped like x0 [B, ...]; steps int64 [B]."""
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return x0
    signal, sigma = schedule.scales(steps, x0)  # broadcast over all but the batch
    return signal * noise - sigma * x0


def denoised(kind: Predicts, alpha_bar: float, x: Tensor, output: Tensor) -> Denoised:
    """Data and noise of x_t [B, ...], given a network's prediction `output`."""
    # x_t = signal x_0 + sigma epsilon, solved for what is not predicted
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
    signal, sigma = schedule.scales(steps, x)
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
    """Wrap a network for the samplers.

    If predicted data are clipped, the noise is recomputed from them, as in OpenAI's code.

    Args:
        network: conditional network.
        schedule: the one it was trained with.
        kind: what it predicts.
        unconditional: the same without the condition; called if `guidance` is not 1.
        guidance: classifier-free guidance scale (Ho & Salimans 2022, arXiv 2207.12598); 1 is off.
        limit: bounds on the predicted data.
        learned_variance: the second half of the network's channels is the variance (arXiv 2102.09672, equation 15),
            which is taken from the conditional prediction.

    Raises:
        ValueError: the guidance is not finite, or there is one but no `unconditional`.
    """
    if not 0 <= guidance < float("inf"):
        raise ValueError(f"guidance is {guidance}; it must be 0 or more (1 is no guidance)")
    if guidance != 1 and unconditional is None:
        raise ValueError(f"guidance is {guidance}, but this model has no unconditional prediction: set it to 1")

    def denoise(x: Tensor, step: int) -> Denoised:
        steps = torch.full((len(x),), step, dtype=torch.long, device=x.device)
        output, variance = _halves(network(x, steps), learned_variance)
        if guidance != 1 and unconditional is not None:
            # The variance is not guided, as in OpenAI's code
            output = guide(output, _halves(unconditional(x, steps), learned_variance)[0], guidance)
        alpha_bar = schedule.alpha_bar(step)
        found = denoised(kind, alpha_bar, x, output.to(x.dtype))
        if limit is not None:
            # Clipping moves x_0, so the noise must be recomputed for x_t to stay consistent
            found = denoised("sample", alpha_bar, x, limit(found.x0))
        return found._replace(variance=variance)

    return denoise


def _halves(output: Tensor, learned_variance: bool) -> tuple[Tensor, Tensor | None]:
    if not learned_variance:
        return output, None
    mean, variance = output.chunk(2, dim=1)
    return mean, variance
