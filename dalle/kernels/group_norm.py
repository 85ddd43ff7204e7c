"""GroupNorm, optionally followed by SiLU."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.kernels.dispatch import accelerated

GROUPS = 32
"""Groups of most image networks' norms, from DDPM (arXiv 2006.11239) on."""


@accelerated
def group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float, swish: bool) -> Tensor:
    """GroupNorm, followed by SiLU if `swish`.

    Args:
        x: [B, C, H, W].
        weight: [C].
        bias: [C].
        groups: must divide C.
        epsilon: added to the variance.
        swish: whether to apply SiLU afterward.

    Returns:
        Shaped like x.
    """
    if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last):
        # On a CPU, PyTorch's channels_last kernel is many times slower than the contiguous one plus two copies
        y = F.group_norm(x.contiguous(), groups, weight, bias, epsilon).contiguous(memory_format=torch.channels_last)
    else:
        y = F.group_norm(x, groups, weight, bias, epsilon)
    return F.silu(y) if swish else y


class Norm(nn.GroupNorm):
    """GroupNorm of `groups` groups, or as many as divide both these and a smaller width; swish follows if wanted."""

    def __init__(self, width: int, eps: float = 1e-6, groups: int = GROUPS):
        super().__init__(math.gcd(groups, width), width, eps=eps)

    def forward(self, x: Tensor, swish: bool = False) -> Tensor:
        """Images [B, width, H, W] normalized, each group over all its channels and pixels."""
        return group_norm(x, self.weight, self.bias, self.num_groups, self.eps, swish)
