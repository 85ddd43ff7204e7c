"""The weights of a transformer's block, as one call for all blocks takes them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MAX_TOKENS = 32  # of one row: each reads all keys again

# Up to so many rows one call is faster than PyTorch's functions, by the dtype of the weights (docs/log.md)
MAX_ROWS = {torch.float32: 16, torch.bfloat16: 16, torch.int8: 64}

Rope = tuple[Tensor, Tensor]  # cosines and sines of positions, [T, D / 2] each


class NormWeights(NamedTuple):
    """A LayerNorm, or an RMSNorm."""

    weight: Tensor
    bias: Tensor | None
    eps: float
    rms: bool


class MatrixWeights(NamedTuple):
    """A linear map: weight [N, K], factors [N] of its rows where it is int8, bias [N]."""

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None


class LayerWeights(NamedTuple):
    """A block of `dalle.models.transformer`; each branch may end with a norm and with factors [C]."""

    attention_norm: NormWeights
    qkv: MatrixWeights
    q_norm: NormWeights | None
    k_norm: NormWeights | None
    out: MatrixWeights
    attention_end: NormWeights | None
    attention_scale: Tensor | None
    feed_norm: NormWeights
    up: MatrixWeights
    down: MatrixWeights
    feed_end: NormWeights | None
    feed_scale: Tensor | None
