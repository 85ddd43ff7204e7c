"""A step of a diffusion as a vector."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """A step as sinusoids (Vaswani et al. 2017, section 3.5; arXiv 2006.11239, appendix B) through two linear maps."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.up = nn.Linear(2 * (channels // 2), width)  # an odd channel is left over
        self.down = nn.Linear(width, width)

    def forward(self, steps: Tensor) -> Tensor:
        """Steps int64 [B] to [B, width]."""
        half = self.channels // 2
        # From 1 down to almost 1 / 10000
        frequencies = torch.exp(torch.arange(half, device=steps.device) * (-math.log(10_000) / half))
        angles = steps[:, None].float() * frequencies  # [B, channels // 2]
        waves = torch.cat((angles.cos(), angles.sin()), dim=-1)  # cosines first, as in OpenAI's code
        embedded: Tensor = self.down(F.silu(self.up(waves.to(self.up.weight.dtype))))
        return embedded
