"""GroupNorm, with SiLU behind it if wanted."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.kernels.dispatch import accelerated


@accelerated
def group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float, swish: bool) -> Tensor:
    """`group_norm(x)`, or `silu(group_norm(x))`.

    Args:
        x: [B, C, H, W].
        weight: [C].
        bias: [C].
        groups: must divide C.
        epsilon: added to the variance.
        swish: whether SiLU follows.

    Returns:
        As x.
    """
    if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last):
        # PyTorch's kernel for channels_last is many times slower on a CPU than the other one and two copies
        y = F.group_norm(x.contiguous(), groups, weight, bias, epsilon).contiguous(memory_format=torch.channels_last)
    else:
        y = F.group_norm(x, groups, weight, bias, epsilon)
    return F.silu(y) if swish else y


class Norm(nn.GroupNorm):
    """GroupNorm of 32 groups, or as many as divide both 32 and a smaller width; swish follows if wanted."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__(math.gcd(32, width), width, eps=eps)

    def forward(self, x: Tensor, swish: bool = False) -> Tensor:
        """Images [B, width, H, W] normalized, each group over all its channels and pixels."""
        return group_norm(x, self.weight, self.bias, self.num_groups, self.eps, swish)
