"""Losses of diffusion models: min-SNR weights, and the variational bound that trains a variance. Pure functions.

Shapes: B images, T steps of the schedule.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dalle.models.noise_schedule import Predicts, Schedule

_HALF_BIN = 1 / 255  # half the distance of two of the 256 values in [-1, 1]
_MIN_PROBABILITY = 1e-12  # its logarithm must be finite


def min_snr_weights(schedule: Schedule, steps: Tensor, predicts: Predicts, gamma: float) -> Tensor:
    """Min-SNR-gamma weights of squared errors (Hang et al. 2023, arXiv 2303.09556, section 3.4).

    The loss is that of min(SNR, gamma) times the squared error of the data x0, whatever the network predicts.

    Args:
        schedule: T steps.
        steps: int64 [B].
        predicts: what the network predicts.
        gamma: maximum of the signal-to-noise ratio.

    Returns:
        float32 [B]
    """
    snr = schedule.signal_to_noise(steps)  # [B]
    clamped = snr.clamp(max=gamma)
    if predicts == "sample":
        return clamped
    # An error of the noise is sqrt(SNR) times that of x0, one of v sqrt(SNR + 1) times
    return clamped / (snr if predicts == "epsilon" else snr + 1)


def variational_bound(
    schedule: Schedule, x0: Tensor, noised: Tensor, steps: Tensor, predicted: Tensor, variance: Tensor
) -> Tensor:
    """One term of the variational bound (Nichol & Dhariwal 2021, arXiv 2102.09672, equations 2 to 6).

    Args:
        schedule: T steps.
        x0: [B, ...], data in [-1, 1] of 256 values.
        noised: x_t, as x0.
        steps: int64 [B].
        predicted: x0 as predicted by the network, detached, so that the bound trains the variance only.
        variance: interpolates the log variance between its lower (-1) and upper (1) bound; as x0.

    Returns:
        float32 [B], bits per dimension.
    """
    shape = (-1, *[1] * (x0.ndim - 1))
    # Index 0 stands for the data, so that index t is the step before step t
    alpha_bars = torch.cat((schedule.alpha_bars.new_ones(1), schedule.alpha_bars)).to(x0.device)
    current, previous = alpha_bars[steps + 1].view(shape), alpha_bars[steps].view(shape)
    beta = 1 - current / previous
    posterior_variance = beta * (1 - previous) / (1 - current)
    # The posterior variance of step 0 is 0, whose logarithm is infinite; that of step 1 replaces it
    second = (1 - alpha_bars[2] / alpha_bars[1]) * (1 - alpha_bars[1]) / (1 - alpha_bars[2])
    log_lower = torch.where(posterior_variance > 0, posterior_variance, second).log()
    weight = (variance.double() + 1) / 2  # equation 15 of the paper
    log_variance = weight * beta.log() + (1 - weight) * log_lower
    # Means of the true posterior and of the model's, as combinations of x0 and x_t
    of_x0 = previous.sqrt() * beta / (1 - current)
    of_noised = (current / previous).sqrt() * (1 - previous) / (1 - current)
    true_mean = of_x0 * x0.double() + of_noised * noised.double()
    mean = of_x0 * predicted.double() + of_noised * noised.double()
    # KL divergence of two Gaussians; the likelihood of the data at step 0
    ratio = (log_lower - log_variance).exp()
    distance = (true_mean - mean).square() * (-log_variance).exp()
    # KL(N(m1, v1) || N(m2, v2)) = (log v2 - log v1 + v1 / v2 - 1 + (m1 - m2)^2 / v2) / 2
    divergence = (log_variance - log_lower + ratio - 1 + distance) / 2
    nll = -_log_likelihood(x0.double(), mean, log_variance / 2)
    nats = torch.where((steps == 0).view(shape), nll, divergence)
    return (nats.flatten(1).mean(1) / math.log(2)).float()  # bits per dimension


def _log_likelihood(x0: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log probability of 8-bit values under a Gaussian discretized to bins; the outermost bins reach to infinity."""
    scale = (-log_std).exp() / math.sqrt(2)

    def cdf(x: Tensor) -> Tensor:
        return (1 + torch.erf((x - mean) * scale)) / 2  # of a Gaussian

    upper, lower = cdf(x0 + _HALF_BIN), cdf(x0 - _HALF_BIN)
    probability = torch.where(x0 < -0.999, upper, torch.where(x0 > 0.999, 1 - lower, upper - lower))
    return probability.clamp(min=_MIN_PROBABILITY).log()
