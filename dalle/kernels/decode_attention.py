"""Attention of new tokens over a cache, to which their keys and values are added.

Letters: B batch, T new tokens, H heads, D head width.
"""

from __future__ import annotations

from torch import Tensor, nn

from dalle.kernels.attention import rotate
from dalle.kernels.block_weights import Rope
from dalle.kernels.dispatch import accelerated
from dalle.kernels.kv_cache import KVCache
from dalle.kernels.pattern import LayerMask
from dalle.kernels.sparse import attend


@accelerated
def decode_attention(
    qkv: Tensor,
    mask: LayerMask,
    cache: KVCache,
    layer: int,
    q_norm: nn.Module | None,
    k_norm: nn.Module | None,
    rope: Rope | None,
    rotate_values: bool,
    dropout: float = 0.0,
) -> Tensor:
    """Norms of queries and keys, rotary positions, the cache, attention.

    Args:
        qkv: queries, keys and values of the new tokens, [B, T, 3 H D].
        mask: what they may look at, of all keys up to them.
        cache: what went before; keys and values of this layer are stored behind it.
        layer: 0-based.
        q_norm: normalizes queries [.., D], where there is one.
        k_norm: normalizes keys likewise.
        rope: turns queries and keys.
        rotate_values: whether it turns values too.
        dropout: share of the attention weights that is dropped.

    Returns:
        [B, T, H D].
    """
    # Plain views: at one token a step, einops' own work would be a tenth of the time
    q, k, v = qkv.unflatten(-1, (3, cache.keys.shape[2], -1)).permute(2, 0, 3, 1, 4)  # [B, H, T, D] each
    if q_norm is not None and k_norm is not None:
        q, k = q_norm(q), k_norm(k)
    if rope is not None:
        q, k = rotate(q, *rope), rotate(k, *rope)
        v = rotate(v, *rope) if rotate_values else v
    k, v = cache.append(layer, k, v)
    return attend(q, k, v, mask, dropout).transpose(1, 2).flatten(2)
