"""Chooses how attention is computed, so that the cost follows what the mask covers; the result is always the same.

Shapes: B batch, H heads, T queries, S keys, D head width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dalle.kernels import attention
from dalle.kernels.pattern import GatheredKeys, LayerMask, Pattern, SparseMask
from dalle.kernels.sparse import blocked, flex
from dalle.kernels.switches import switch

_MAX_SLICED_QUERIES = 32  # each query's keys are found separately, so only for few
# As a fraction of the dense mask's pairs or keys: the other implementations are faster below it (docs/log.md)
_MAX_PAIR_FRACTION, _MAX_KEY_FRACTION = 0.5, 0.7


def attend(q: Tensor, k: Tensor, v: Tensor, mask: LayerMask = None, dropout: float = 0.0) -> Tensor:
    """`dalle.kernels.attention.attend`, by the implementation that is fastest for the mask.

    Args:
        q: [B, H, T, D].
        k: [B, H, S, D], or with fewer heads, each of which H / G heads of the queries share: [B, G, S, D].
        v: as k.
        mask: as there, or a `SparseMask`, or `GatheredKeys` if there is one query.
        dropout: as there; a `SparseMask` is then treated as dense.

    Returns:
        [B, H, T, D]; implementations differ by rounding only.
    """
    if k.shape[1] != q.shape[1]:
        return _attend_grouped(q, k, v, mask, dropout)
    # Only the device knows which query this is, so its keys are gathered by tensors, not by slices
    if isinstance(mask, GatheredKeys):
        k, v = k.index_select(2, mask.keys), v.index_select(2, mask.keys)
        return attention.attend(q, k, v, mask.valid[None], dropout)
    if not isinstance(mask, SparseMask):
        return attention.attend(q, k, v, mask, dropout)
    if dropout:
        return attention.attend(q, k, v, mask.dense, dropout)
    backend = _choose_backend(q, k, mask.pattern)
    if backend == "blocked":
        return blocked.attend(q, k, v, mask.pattern)
    if backend == "flex":
        return flex.attend(q, k, v, mask.pattern)
    if backend == "dense":
        return attention.attend(q, k, v, mask.dense)
    slices = mask.pattern.slices(k.shape[2] - q.shape[2], k.shape[2])
    seen = None if q.shape[2] == 1 else _concat_slices(mask.dense, slices, 1)  # exact for one query: needs no mask
    return attention.attend(q, _concat_slices(k, slices, 2), _concat_slices(v, slices, 2), seen)


def _attend_grouped(q: Tensor, k: Tensor, v: Tensor, mask: LayerMask, dropout: float) -> Tensor:
    """`attend` with fewer heads of keys and values than of queries."""
    group = q.shape[1] // k.shape[1]
    if q.shape[2] == 1 and not isinstance(mask, SparseMask | GatheredKeys):
        # The queries that share a head become queries of one head, so that keys and values are read once
        if isinstance(mask, Tensor):
            mask = mask.expand(*mask.shape[:-2], group, mask.shape[-1])
        queries = q.squeeze(2).unflatten(1, (-1, group))
        return attend(queries, k, v, mask if isinstance(mask, Tensor) else None, dropout).flatten(1, 2).unsqueeze(2)
    # With several queries, a copy of the keys costs little beside the products
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    return attend(q, k, v, mask, dropout)


def attend_packed(qkv: Tensor, mask: LayerMask = None, dropout: float = 0.0) -> Tensor:
    """`attend` over whole sequences, with queries, keys and values in one tensor [3, B, H, T, D]."""
    if isinstance(mask, SparseMask | GatheredKeys):
        q, k, v = qkv
        return attend(q, k, v, mask, dropout)
    return attention.attend_packed(qkv, mask, dropout)


def _concat_slices(x: Tensor, slices: list[slice], dim: int) -> Tensor:
    """Concatenate slices of a dimension."""
    return torch.cat([x[(slice(None),) * dim + (part,)] for part in slices], dim)


def _choose_backend(q: Tensor, k: Tensor, pattern: Pattern) -> Literal["dense", "blocked", "flex", "slices"]:
    """The implementation to use, given that the queries are the last tokens of the keys."""
    forced = switch("sparse")
    end = k.shape[2]
    start = end - q.shape[2]
    image_only = start >= pattern.text
    # Text alone is causal anyway, and the kernels handle either whole sequences or image queries
    if forced == "dense" or end <= pattern.text or not (start == 0 or image_only):
        return "dense"
    # Decoding: few queries, whose keys can be copied together
    if forced != "blocked" and image_only and end - start <= _MAX_SLICED_QUERIES:
        return "slices" if pattern.count_keys(start, end) <= _MAX_KEY_FRACTION * end else "dense"
    # Training and long prefixes: blocks on a CPU, FlexAttention on a GPU
    if q.device.type == "cpu" and forced != "flex":
        sparse_enough = pattern.count_pairs(start, end) <= _MAX_PAIR_FRACTION * (end - start) * end
        return "blocked" if sparse_enough or forced == "blocked" else "dense"
    if start == 0 and (q.device.type == "cuda" or forced == "flex"):
        return "flex" if flex.runs(q.dtype, q.device, q.shape[3], torch.is_grad_enabled()) else "dense"
    return "dense"
