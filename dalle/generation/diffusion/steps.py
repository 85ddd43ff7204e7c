"""One step of each sampler, from x_t to a less noisy x_s: DDPM, DDIM and DPM-Solver++ (2M). Pure functions.

They need only two alpha-bars of the schedule: `now` of x_t, and `then` of x_s, which is 1 if x_s is the data.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from dalle.generation.diffusion.prediction import Denoised

Variance = Literal["small", "large", "learned"]


def ddpm_step(x: Tensor, found: Denoised, now: float, then: float, noise: Tensor, variance: Variance) -> Tensor:
    """Sample from p(x_s | x_t) (Ho et al. 2020, arXiv 2006.11239, equations 6, 7 and 11).

    Args:
        x: x_t [B, ...].
        found: the estimated data and noise.
        now: alpha-bar of x_t.
        then: alpha-bar of x_s, above `now`.
        noise: unit Gaussian, shaped like x; unused if x_s is the data.
        variance: that of the posterior (small), beta (large), or learned, an interpolation of their logarithms
            (Nichol & Dhariwal 2021, arXiv 2102.09672, equation 15).

    Raises:
        ValueError: the variance is learned, but the network predicts none.
    """
    # The beta of a step from x_s to x_t that may skip time steps; alpha is their ratio
    beta = 1 - now / then
    mean = (then**0.5 * beta * found.x0 + (now / then) ** 0.5 * (1 - then) * x) / (1 - now)
    if then == 1:  # no variance is left
        return mean
    # Variance of the posterior q(x_s | x_t, x_0)
    small = beta * (1 - then) / (1 - now)
    if variance == "small":
        return mean + small**0.5 * noise
    if variance == "large":
        return mean + beta**0.5 * noise
    if found.variance is None:
        raise ValueError("variance is learned, but this network predicts none: set it to small or large")
    share = (found.variance.to(x.dtype) + 1) / 2  # from [-1, 1] to [0, 1]
    log_variance = share * math.log(beta) + (1 - share) * math.log(small)
    return mean + (log_variance / 2).exp() * noise


def ddim_step(found: Denoised, now: float, then: float, eta: float = 0.0, noise: Tensor | None = None) -> Tensor:
    """A DDIM step (Song et al. 2020, arXiv 2010.02502, equations 12 and 16).

    Args:
        found: the estimated data and noise of x_t.
        now: alpha-bar of x_t.
        then: alpha-bar of x_s.
        eta: 0 is deterministic, 1 has the variance of DDPM (small).
        noise: unit Gaussian; needed if eta is above 0.
    """
    sigma = eta * ((1 - then) / (1 - now) * (1 - now / then)) ** 0.5  # equation 16
    # Rounding may make the remaining variance slightly negative
    mean = then**0.5 * found.x0 + max(1 - then - sigma**2, 0.0) ** 0.5 * found.epsilon
    return mean if noise is None or not sigma else mean + sigma * noise


def dpm_solver_step(
    x: Tensor, found: Denoised, now: float, then: float, before: tuple[Tensor, float] | None = None
) -> Tensor:
    """A DPM-Solver++ (2M) step (Lu et al. 2022, arXiv 2211.01095, algorithm 2); the first one is first-order.

    Args:
        x: x_t [B, ...].
        found: the estimated data and noise.
        now: alpha-bar of x_t.
        then: alpha-bar of x_s.
        before: the previous step's predicted data and the alpha-bar it was predicted at. None: first-order. So is the
            last step, to the data, whose log signal-to-noise ratio is infinite.
    """
    if then == 1:
        return found.x0
    width = _half_log_snr(then) - _half_log_snr(now)  # h of the paper, above 0
    x0 = found.x0
    if before is not None:
        old, at = before
        # Second order: extrapolate x_0 from the last two predictions
        ratio = (_half_log_snr(now) - _half_log_snr(at)) / width
        x0 = x0 + (x0 - old) / (2 * ratio)
    # Exact for an x_0 that does not change
    return ((1 - then) / (1 - now)) ** 0.5 * x - then**0.5 * math.expm1(-width) * x0


def _half_log_snr(alpha_bar: float) -> float:
    """log(sqrt(alpha-bar) / sqrt(1 - alpha-bar)): half the log signal-to-noise ratio, DPM-Solver's lambda."""
    return (math.log(alpha_bar) - math.log1p(-alpha_bar)) / 2
