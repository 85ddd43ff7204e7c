"""Attention and its masks as pure functions, and rotary positions. Knows nothing of weights.

Letters: B batch, H heads, T queries, S keys, D head width, h x w the image grid, C text length.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.kernels.dispatch import accelerated
from dalle.kernels.masks import Mask

# Up to this many keys, matmul + softmax in bfloat16 beats scaled_dot_product_attention on a CPU, forward + backward:
# 2.6 times at 96 keys, equal at 320 (2 cores with AMX); 3.9 times at 96, 2 times at 320 (Zen 4).
_SHORT = 512
_PIECE = 160  # queries that look at no key behind the last of them: at 320 a quarter of the work less


@accelerated
def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention.

    Args:
        q: [B, H, T, D].
        k: [B, H, S, D].
        v: [B, H, S, D].
        mask: None (all keys), "causal" (the T queries are the last of S positions), or bool [T, S], True = may look.
        dropout: share of the weights that is dropped, from 0 to below 1; the others grow by 1 / (1 - dropout).

    Returns:
        [B, H, T, D].
    """
    queries, keys = q.shape[-2], k.shape[-2]
    causal = isinstance(mask, str)
    if causal and queries == 1:
        mask, causal = None, False
    triangular = causal
    by_hand = q.device.type == "cpu" and (dropout > 0 or (q.dtype == torch.bfloat16 and keys <= _SHORT))
    if causal and (by_hand or queries != keys):
        mask, causal = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries), False
    if not by_hand:
        return F.scaled_dot_product_attention(q, k, v, None if causal else mask, dropout, causal)  # type: ignore[arg-type]
    if not isinstance(mask, Tensor):
        return _by_hand(q, k, v, None, dropout)
    bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -math.inf)
    if not triangular or queries <= _PIECE:
        return _by_hand(q, k, v, bias, dropout)
    pieces = -(-queries // _PIECE)
    parts, seen = [], keys - queries
    for rows, under in zip(q.chunk(pieces, dim=-2), bias.chunk(pieces, dim=-2), strict=True):
        seen += rows.shape[-2]
        parts.append(_by_hand(rows, k[..., :seen, :], v[..., :seen, :], under[..., :seen], dropout))
    return torch.cat(parts, dim=-2)


@accelerated
def attend_packed(qkv: Tensor, mask: Mask = None, dropout: float = 0.0) -> Tensor:
    """`attend` of whole sequences whose queries, keys and values are one tensor [3, B, H, T, D]: without copies."""
    q, k, v = qkv
    return attend(q, k, v, mask, dropout)


def _by_hand(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-1, -2)  # [B, H, T, S]
    weights = (scores if bias is None else scores + bias).softmax(-1)
    return (F.dropout(weights, dropout) if dropout else weights) @ v


def rope_table(text_length: int, height: int, width: int, dim: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions in two dimensions.

    Every token has two coordinates: text token t lies at (t, t), the image token in row y and column x at
    (text_length + y, text_length + x), as in Qwen2-VL (Wang et al. 2024, arXiv 2409.12191, section 2.1). Half of a head
    turns with the first coordinate, the other half with the second, so text is plain 1-D RoPE (Su et al. 2021, arXiv
    2104.09864) whose frequencies come twice.

    Args:
        text_length: text tokens.
        height: rows of the image grid.
        width: columns of the image grid.
        dim: head width, a multiple of 4.
        base: the slowest rotation's wavelength over 2 pi.

    Returns:
        cos, sin: each [S, dim / 2] float32.
    """
    assert dim % 4 == 0
    text = torch.arange(text_length)
    y = text_length + torch.arange(height).repeat_interleave(width)
    x = text_length + torch.arange(width).repeat(height)
    frequency = base ** (-torch.arange(dim // 4, dtype=torch.float32) / (dim // 4))
    first, second = torch.cat((text, y)), torch.cat((text, x))  # [S]
    angle = torch.cat((first[:, None] * frequency, second[:, None] * frequency), dim=1)  # [S, dim / 2]
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + D/2) of each head by its position's angles.

    Args:
        x: [B, H, T, D].
        cos: [T, D / 2].
        sin: [T, D / 2].

    Returns:
        [B, H, T, D] in x's dtype.
    """
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)
