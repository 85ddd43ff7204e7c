"""How much noise each step of a diffusion has: what a network was trained with, and is sampled with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from dalle.config import config
from dalle.ranges import Range

_LARGEST_BETA = 0.999  # "we clip beta_t to be no larger than 0.999" (arXiv 2102.09672, section 3.2)

Predicts = Literal["epsilon", "v", "sample"]
"""The noise, v = sqrt(alpha-bar) epsilon - sqrt(1 - alpha-bar) x_0 (arXiv 2202.00512, appendix D), or the data."""

_Steps = Annotated[int, Range(2, ceiling=10**6)]
_Beta = Annotated[float, Range(0, 1, above=True, below=True)]


@config
class CosineConfig:
    """alpha-bar falls as a squared cosine (Nichol & Dhariwal 2021, arXiv 2102.09672, section 3.2)."""

    kind: Literal["cosine"] = "cosine"
    """Squared cosine."""
    steps: _Steps = 1000
    """Steps T of the diffusion that the network learns."""


@config
class LinearConfig:
    """beta grows linearly (Ho et al. 2020, arXiv 2006.11239, section 4)."""

    kind: Literal["linear"] = "linear"
    """Betas on a line."""
    steps: _Steps = 1000
    """Steps T of the diffusion that the network learns."""
    first: _Beta = 1e-4
    """beta of step 0."""
    last: _Beta = 0.02
    """beta of the last step."""

    def __post_init__(self) -> None:
        if self.first > self.last:
            raise ValueError(f"betas go from {self.first} to {self.last}; they must grow")


ScheduleConfig = CosineConfig | LinearConfig


@dataclass(frozen=True)
class Schedule:
    """The noise of T steps.

    Attributes:
        alpha_bars: float64 [T], the share of the variance of x_t that is the data's.
    """

    alpha_bars: Tensor

    def __len__(self) -> int:
        return len(self.alpha_bars)

    def alpha_bar(self, step: int) -> float:
        """alpha-bar of a step; of -1, the data themselves, 1."""
        return 1.0 if step < 0 else float(self.alpha_bars[step])

    def shares(self, steps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha-bar) and sqrt(1 - alpha-bar) of steps [B], each shaped to multiply `like` [B, ...]."""
        alpha_bars = self.alpha_bars.to(steps.device)[steps].view(-1, *[1] * (like.ndim - 1))
        return alpha_bars.sqrt().to(like.dtype), (1 - alpha_bars).sqrt().to(like.dtype)

    def signal_to_noise(self, steps: Tensor) -> Tensor:
        """alpha-bar / (1 - alpha-bar) of steps [B], float32 [B]."""
        alpha_bars = self.alpha_bars.to(steps.device)[steps]
        return (alpha_bars / (1 - alpha_bars)).float()

    def add_noise(self, x0: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """x_t of q(x_t | x_0) (arXiv 2006.11239, equation 4).

        Args:
            x0: [B, ...].
            noise: unit Gaussian, as x0.
            steps: int64 [B] from 0 to T - 1.

        Returns:
            As x0.
        """
        signal, sigma = self.shares(steps, x0)
        return signal * x0 + sigma * noise


def make_schedule(config: ScheduleConfig) -> Schedule:
    """The schedule that a recipe names."""
    if isinstance(config, LinearConfig):
        betas = torch.linspace(config.first, config.last, config.steps, dtype=torch.float64)
    else:
        curve = torch.tensor([_squared_cosine(i / config.steps) for i in range(config.steps + 1)], dtype=torch.float64)
        betas = (1 - curve[1:] / curve[:-1]).clamp(max=_LARGEST_BETA)
    return Schedule((1 - betas).cumprod(0))


def _squared_cosine(share: float, offset: float = 0.008) -> float:
    """f of equation 17 in arXiv 2102.09672; the offset keeps the first steps from having next to no noise."""
    return math.cos((share + offset) / (1 + offset) * math.pi / 2) ** 2
