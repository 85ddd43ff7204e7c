"""The embedding of a caption that a text encoder has read: its features instead of token ids."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FeatureEmbedding(nn.Module):
    """Projects a text encoder's features [B, T, F] to the transformer's width, as LlamaGen does (arXiv 2406.06525)."""

    null: Tensor

    def __init__(self, features: int, length: int, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(features, width, bias=False)
        self.down = nn.Linear(width, width, bias=False)
        # Part of the weights, though not trained here: published models have learned it
        self.register_buffer("null", torch.randn(length, features) * features**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """[B, T, F] to [B, T, C]."""
        # Features come in the encoder's dtype, which need not be the transformer's
        x = self.up(features.to(self.up.weight.dtype))
        return self.down(F.gelu(x, approximate="tanh"))
