"""Normalization layers that a `TransformerConfig` asks for: over the channels of a token, and over those of a head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.models.transformer_config import TransformerConfig


def norm(config: TransformerConfig) -> nn.Module:
    """The normalization layer that the config asks for, over the channels."""
    kind = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
    return kind(config.width, eps=config.norm_eps)


class HeadNorm(nn.LayerNorm):
    """LayerNorm over the channels of a head, with weights and biases of its own for each (Chameleon)."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__(width)
        self.weight = nn.Parameter(torch.ones(heads, 1, width))  # broadcast over positions
        self.bias = nn.Parameter(torch.zeros(heads, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, T, D] to the same shape."""
        # The statistics of each head's own channels; only weights and biases differ from head to head
        return F.layer_norm(x, self.normalized_shape, eps=self.eps) * self.weight + self.bias


def head_norm(config: TransformerConfig, heads: int) -> nn.Module:
    """The normalization layer of queries or keys [B, H, T, D] that the config asks for."""
    if config.qk_norm_kind == "own":
        return HeadNorm(heads, config.head_width)
    if config.qk_norm_kind == "rms":
        return nn.RMSNorm(config.head_width, eps=config.norm_eps)
    # Dehghani et al. 2023 (ViT-22B, arXiv 2302.05442), section 2: LayerNorm on queries and keys, without biases.
    return nn.LayerNorm(config.head_width, bias=False)
