"""Attention of new tokens to those in a KV cache, to which their keys and values are appended.

Shapes: B batch, T new tokens, H heads, D head width.
"""

from __future__ import annotations

from torch import Tensor, nn

from dalle.kernels.attention import rotate, split_heads
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
    """Norms on queries and keys, rotary positions, cache update, and attention.

    Args:
        qkv: queries, keys and values of the new tokens, [B, T, (H + 2 G) D], with the G heads that the cache has.
        mask: which keys, of the cached and new ones, each may attend to.
        cache: the earlier tokens; this layer's keys and values are appended.
        layer: 0-based.
        q_norm: normalizes queries [.., D]; None: none.
        k_norm: normalizes keys likewise.
        rope: rotary positions of the new tokens; None: none.
        rotate_values: whether to apply them to values too.
        dropout: dropout probability of the attention weights.

    Returns:
        [B, T, H D].
    """
    q, k, v = split_heads(qkv, cache.keys.shape[2], cache.keys.shape[4])  # H heads of queries, G of keys and values
    if q_norm is not None and k_norm is not None:
        q, k = q_norm(q), k_norm(k)
    if rope is not None:
        q, k = rotate(q, *rope), rotate(k, *rope)
        v = rotate(v, *rope) if rotate_values else v
    # Keys are cached after rotation: a position, once given, never changes
    k, v = cache.append(layer, k, v)
    return attend(q, k, v, mask, dropout).transpose(1, 2).flatten(2)  # [B, H, T, D] to [B, T, H D]
