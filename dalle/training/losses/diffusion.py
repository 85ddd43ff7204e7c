"""Losses of a diffusion: weights of its steps, and the variational bound that teaches a variance. Pure functions.

Letters: B images, T steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dalle.models.noise_schedule import Predicts, Schedule

_BIN = 1 / 255  # half the width of one of 256 values in [-1, 1]
_LEAST = 1e-12  # of a probability whose logarithm is taken


def min_snr_weights(schedule: Schedule, steps: Tensor, predicts: Predicts, gamma: float) -> Tensor:
    """Weights of the squared errors of steps int64 [B], float32 [B] (Hang et al. 2023, arXiv 2303.09556, section 3.4).

    Each step weighs as min(SNR, gamma) does for an error of the data, whatever is predicted.
    """
    ratio = schedule.signal_to_noise(steps)
    limited = ratio.clamp(max=gamma)
    if predicts == "sample":
        return limited
    return limited / (ratio if predicts == "epsilon" else ratio + 1)


def variational_bound(
    schedule: Schedule, x0: Tensor, noised: Tensor, steps: Tensor, predicted: Tensor, variance: Tensor
) -> Tensor:
    """One term of the variational bound (Nichol & Dhariwal 2021, arXiv 2102.09672, equations 2 to 6).

    Args:
        schedule: T steps.
        x0: [B, ...], data in [-1, 1] of 256 values.
        noised: x_t, as x0.
        steps: int64 [B].
        predicted: the network's view of x0, as x0; the paper lets no gradient into it.
        variance: where between its two bounds the log variance lies, in [-1, 1], as x0.

    Returns:
        float32 [B], bits a dimension.
    """
    shape = (-1, *[1] * (x0.ndim - 1))
    alpha_bars = torch.cat((schedule.alpha_bars.new_ones(1), schedule.alpha_bars)).to(x0.device)
    now, before = alpha_bars[steps + 1].view(shape), alpha_bars[steps].view(shape)
    beta = 1 - now / before
    small = beta * (1 - before) / (1 - now)
    # The posterior of step 0 has no variance; in its place stands that of step 1
    second = (1 - alpha_bars[2] / alpha_bars[1]) * (1 - alpha_bars[1]) / (1 - alpha_bars[2])
    log_small = torch.where(small > 0, small, second).log()
    share = (variance.double() + 1) / 2
    log_variance = share * beta.log() + (1 - share) * log_small
    of_x0, of_x = before.sqrt() * beta / (1 - now), (now / before).sqrt() * (1 - before) / (1 - now)
    true, mean = of_x0 * x0.double() + of_x * noised.double(), of_x0 * predicted.double() + of_x * noised.double()
    apart = (true - mean).square()
    divergence = (log_variance - log_small + (log_small - log_variance).exp() - 1 + apart * (-log_variance).exp()) / 2
    surprise = -_log_likelihood(x0.double(), mean, log_variance / 2)
    nats = torch.where((steps == 0).view(shape), surprise, divergence)
    return (nats.flatten(1).mean(1) / math.log(2)).float()


def _log_likelihood(x0: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Log probability of each of 256 values under a Gaussian; the outermost have all that lies beyond them."""
    scale = (-log_deviation).exp() / math.sqrt(2)

    def below(x: Tensor) -> Tensor:
        return (1 + torch.erf((x - mean) * scale)) / 2

    upper, lower = below(x0 + _BIN), below(x0 - _BIN)
    inside = torch.where(x0 < -0.999, upper, torch.where(x0 > 0.999, 1 - lower, upper - lower))
    return inside.clamp(min=_LEAST).log()
