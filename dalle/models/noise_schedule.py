"""Noise schedules of Gaussian diffusion, which training and sampling must share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from dalle.config import config
from dalle.config.ranges import Range

_MAX_BETA = 0.999  # "we clip beta_t to be no larger than 0.999" (arXiv 2102.09672, section 3.2)

Predicts = Literal["epsilon", "v", "sample"]
"""What a network predicts: the noise; v = sqrt(alpha-bar) epsilon - sqrt(1 - alpha-bar) x_0 (arXiv 2202.00512,
appendix D); or the data x_0."""

_Steps = Annotated[int, Range(2, ceiling=10**6)]
_Beta = Annotated[float, Range(0, 1, above=True, below=True)]


@config
class CosineConfig:
    """alpha-bar falls as a squared cosine (Nichol & Dhariwal 2021, arXiv 2102.09672, section 3.2)."""

    kind: Literal["cosine"] = "cosine"
    """Squared-cosine schedule."""
    steps: _Steps = 1000
    """Number of time steps T."""


@config
class LinearConfig:
    """beta grows linearly (Ho et al. 2020, arXiv 2006.11239, section 4)."""

    kind: Literal["linear"] = "linear"
    """Linear schedule of beta."""
    steps: _Steps = 1000
    """Number of time steps T."""
    first: _Beta = 1e-4
    """beta of step 0."""
    last: _Beta = 0.02
    """beta of the last step."""

    def __post_init__(self) -> None:
        if self.first > self.last:
            raise ValueError(f"betas go from {self.first} to {self.last}; they must increase")


ScheduleConfig = CosineConfig | LinearConfig


@dataclass(frozen=True)
class Schedule:
    """The noise level of each of T time steps.

    Attributes:
        alpha_bars: float64 [T], the share of the variance of x_t that comes from the data.
    """

    alpha_bars: Tensor

    def __len__(self) -> int:
        return len(self.alpha_bars)

    def alpha_bar(self, step: int) -> float:
        """alpha-bar of a time step; 1 for -1, which stands for the data."""
        return 1.0 if step < 0 else float(self.alpha_bars[step])

    def scales(self, steps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha-bar) and sqrt(1 - alpha-bar) of steps [B], each shaped to broadcast with `like` [B, ...]."""
        # Looked up in float64, and cast only after the square root: 1 - alpha-bar is tiny at step 0
        alpha_bars = self.alpha_bars.to(steps.device)[steps].view(-1, *[1] * (like.ndim - 1))
        return alpha_bars.sqrt().to(like.dtype), (1 - alpha_bars).sqrt().to(like.dtype)

    def signal_to_noise(self, steps: Tensor) -> Tensor:
        """Signal-to-noise ratio, alpha-bar / (1 - alpha-bar), of steps [B], float32 [B]."""
        alpha_bars = self.alpha_bars.to(steps.device)[steps]
        return (alpha_bars / (1 - alpha_bars)).float()

    def add_noise(self, x0: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Sample x_t from q(x_t | x_0) (arXiv 2006.11239, equation 4).

        Args:
            x0: [B, ...].
            noise: unit Gaussian, shaped like x0.
            steps: int64 [B], each from 0 to T - 1.

        Returns:
            x_t, shaped like x0.
        """
        signal, sigma = self.scales(steps, x0)
        return signal * x0 + sigma * noise


def make_schedule(config: ScheduleConfig) -> Schedule:
    """The schedule that a config describes."""
    if isinstance(config, LinearConfig):
        betas = torch.linspace(config.first, config.last, config.steps, dtype=torch.float64)
    else:
        # In float64, as alpha-bar is a product of up to thousands of factors close to 1
        curve = torch.tensor([_squared_cosine(i / config.steps) for i in range(config.steps + 1)], dtype=torch.float64)
        betas = (1 - curve[1:] / curve[:-1]).clamp(max=_MAX_BETA)
    return Schedule((1 - betas).cumprod(0))  # alpha-bar_t, the product of all alphas so far


def _squared_cosine(fraction: float, offset: float = 0.008) -> float:
    """f of equation 17 in arXiv 2102.09672; without the offset the first steps would add almost no noise."""
    return math.cos((fraction + offset) / (1 + offset) * math.pi / 2) ** 2
