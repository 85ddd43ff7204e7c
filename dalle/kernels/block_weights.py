"""The weights of a transformer block, in the form that a fused decode step takes them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MAX_TOKENS = 32  # new tokens per sequence in one step: each of them reads all keys again

# Up to this many rows (new tokens of all sequences) the fused step beats PyTorch, by weight type (docs/log.md)
MAX_ROWS = {torch.float32: 16, torch.bfloat16: 16, torch.int8: 64}

Rope = tuple[Tensor, Tensor]  # cosines and sines of the positions, [T, D / 2] each


class NormWeights(NamedTuple):
    """A LayerNorm, or an RMSNorm if `rms`."""

    weight: Tensor
    bias: Tensor | None
    eps: float
    rms: bool


class MatrixWeights(NamedTuple):
    """A linear layer: weight [N, K], scale [N] of each row if the weight is int8, bias [N]."""

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None


class LayerWeights(NamedTuple):
    """A block of `dalle.models.transformer`; each branch may end with a norm and a scale [C]."""

    attention_norm: NormWeights
    qkv: MatrixWeights  # [(H + 2 G) D, C]
    q_norm: NormWeights | None  # weight [D], or [H, 1, D] if each head has its own
    k_norm: NormWeights | None
    out: MatrixWeights  # [C, H D]
    attention_end: NormWeights | None  # a second norm, after the branch ("sandwich")
    attention_scale: Tensor | None  # LayerScale
    feed_norm: NormWeights
    up: MatrixWeights  # [hidden, C], or [2 hidden, C] if the activation is gated
    down: MatrixWeights  # [C, hidden]
    feed_end: NormWeights | None
    feed_scale: Tensor | None
