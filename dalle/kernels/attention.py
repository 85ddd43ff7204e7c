"""Dense attention and rotary positions as pure functions. Knows nothing of weights.

Shapes: B batch, H heads, T queries, S keys, D head width, h x w the image grid.
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
_MAX_MATMUL_KEYS = 512
_QUERY_CHUNK = 160  # causal queries per chunk, which skips the keys after its last query: a quarter less work at 320


@accelerated
def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention.

    Args:
        q: [B, H, T, D].
        k: [B, H, S, D].
        v: [B, H, S, D].
        mask: None (all keys), "causal" (the T queries are the last of S positions), or bool [T, S] or [B, 1, T, S],
            True = may attend.
        dropout: dropout probability of the attention weights, from 0 to below 1.

    Returns:
        [B, H, T, D].
    """
    queries, keys = q.shape[-2], k.shape[-2]
    # `triangular`: what the caller asked for; `causal`: what is left for torch's own flag, without a mask in memory
    causal = isinstance(mask, str)
    if causal and queries == 1:  # the last position sees everything
        mask, causal = None, False
    triangular = causal
    # torch's fused CPU kernel takes no dropout, so products and softmax are written out then, too
    use_matmul = q.device.type == "cpu" and (dropout > 0 or (q.dtype == torch.bfloat16 and keys <= _MAX_MATMUL_KEYS))
    # scaled_dot_product_attention's `is_causal` aligns the first query with the first key, ours the last with the last
    if causal and (use_matmul or queries != keys):
        mask, causal = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries), False
    if not use_matmul:
        return F.scaled_dot_product_attention(q, k, v, None if causal else mask, dropout, causal)  # type: ignore[arg-type]
    if not isinstance(mask, Tensor):
        return _matmul_attention(q, k, v, None, dropout)
    bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -math.inf)  # 0 or -inf, added to the scores
    if not triangular or queries <= _QUERY_CHUNK:
        return _matmul_attention(q, k, v, bias, dropout)
    # No query of a chunk sees keys after the chunk's last query: these need not even be multiplied
    chunks = -(-queries // _QUERY_CHUNK)
    outputs, seen = [], keys - queries  # `seen`: the cached keys, which all queries see, then more with each chunk
    for rows, chunk_bias in zip(q.chunk(chunks, dim=-2), bias.chunk(chunks, dim=-2), strict=True):
        seen += rows.shape[-2]
        outputs.append(_matmul_attention(rows, k[..., :seen, :], v[..., :seen, :], chunk_bias[..., :seen], dropout))
    return torch.cat(outputs, dim=-2)


@accelerated
def attend_packed(qkv: Tensor, mask: Mask = None, dropout: float = 0.0) -> Tensor:
    """`attend` over whole sequences, with queries, keys and values in one tensor [3, B, H, T, D]; native: no copies."""
    q, k, v = qkv
    return attend(q, k, v, mask, dropout)


def _matmul_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    # Scaling q costs T x D multiplications, scaling the scores T x S
    scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-1, -2)  # [B, H, T, S]
    weights = (scores if bias is None else scores + bias).softmax(-1)
    return (F.dropout(weights, dropout) if dropout else weights) @ v  # [B, H, T, D]


def split_heads(qkv: Tensor, kv_heads: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [B, H, T, D], keys and values [B, G, T, D] as views of their fused projection [B, T, (H + 2 G) D].

    Args:
        qkv: the heads of the queries, then those of the keys, then those of the values.
        kv_heads: number of heads of keys and values, G.
        width: head width, D.
    """
    # Plain views: at one token per step, einops' own overhead would be a tenth of the time
    heads = qkv.unflatten(-1, (-1, width)).transpose(1, 2)  # [B, H + 2 G, T, D]
    q, k, v = heads.split((heads.shape[1] - 2 * kv_heads, kv_heads, kv_heads), dim=1)
    return q, k, v


def rope_table(text_length: int, height: int, width: int, dim: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of two-dimensional rotary positions.

    Every token has two coordinates: text token t is at (t, t), the image token in row y and column x at
    (text_length + y, text_length + x), as in Qwen2-VL (Wang et al. 2024, arXiv 2409.12191, section 2.1). Half of a
    head's channels rotate with the first coordinate, the other half with the second. For text this is plain 1-D RoPE
    (Su et al. 2021, arXiv 2104.09864) with every frequency used twice.

    Args:
        text_length: number of text tokens.
        height: rows of the image grid.
        width: columns of the image grid.
        dim: head width, a multiple of 4.
        base: wavelength of the slowest rotation, divided by 2 pi.

    Returns:
        cos, sin: each [S, dim / 2] float32.
    """
    assert dim % 4 == 0  # two coordinates, each turning pairs of channels
    text = torch.arange(text_length)
    # The image begins where the text ends, in both coordinates: no two tokens have the same position
    y = text_length + torch.arange(height).repeat_interleave(width)
    x = text_length + torch.arange(width).repeat(height)
    frequency = base ** (-torch.arange(dim // 4, dtype=torch.float32) / (dim // 4))  # 1 down to almost 1 / base
    first, second = torch.cat((text, y)), torch.cat((text, x))  # [S]
    angle = torch.cat((first[:, None] * frequency, second[:, None] * frequency), dim=1)  # [S, dim / 2]
    return angle.cos(), angle.sin()


def rope_table_1d(length: int, dim: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of one-dimensional rotary positions (Su et al. 2021, arXiv 2104.09864), as in Llama.

    Args:
        length: number of positions, S.
        dim: head width, even.
        base: wavelength of the slowest rotation, divided by 2 pi.

    Returns:
        cos, sin: each [S, dim / 2] float32.
    """
    assert dim % 2 == 0
    frequency = 1 / base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)  # [D / 2]
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency)  # [S, D / 2]
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions: rotate the channel pairs (i, i + D/2) of each head by the angles of its position.

    Args:
        x: [B, H, T, D].
        cos: [T, D / 2].
        sin: [T, D / 2].

    Returns:
        [B, H, T, D] in x's dtype.
    """
    # In float32, as 16 bits are too coarse for the products
    a, b = x.float().chunk(2, dim=-1)  # [B, H, T, D / 2] each
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)
