"""Attention that costs what its mask covers: which way is taken. `dalle.kernels.attention` says what is computed.

Letters: B batch, H heads, T queries, S keys, D head width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dalle.kernels import attention
from dalle.kernels.pattern import GatheredKeys, LayerMask, Pattern, SparseMask
from dalle.kernels.sparse import blocked, flex
from dalle.kernels.switches import switch

_FEW = 32  # queries that are asked one by one which keys they see
# Of the dense mask's pairs or keys: with fewer the other ways are faster (docs/log.md)
_PAIRS, _KEYS = 0.5, 0.7


def attend(q: Tensor, k: Tensor, v: Tensor, mask: LayerMask = None, dropout: float = 0.0) -> Tensor:
    """`dalle.kernels.attention.attend`, in the way that is fast for the mask.

    Args:
        q: [B, H, T, D].
        k: [B, H, S, D].
        v: [B, H, S, D].
        mask: as there, a `SparseMask`, or `GatheredKeys` of one query.
        dropout: as there; a `SparseMask` is then taken as a dense one.

    Returns:
        [B, H, T, D]: the same numbers whatever the way, but for rounding.
    """
    if isinstance(mask, GatheredKeys):
        k, v = k.index_select(2, mask.keys), v.index_select(2, mask.keys)
        return attention.attend(q, k, v, mask.real[None], dropout)
    if not isinstance(mask, SparseMask):
        return attention.attend(q, k, v, mask, dropout)
    if dropout:
        return attention.attend(q, k, v, mask.dense, dropout)
    way = _choose(q, k, mask.pattern)
    if way == "blocked":
        return blocked.attend(q, k, v, mask.pattern)
    if way == "flex":
        return flex.attend(q, k, v, mask.pattern)
    if way == "dense":
        return attention.attend(q, k, v, mask.dense)
    parts = mask.pattern.slices(k.shape[2] - q.shape[2], k.shape[2])
    seen = None if q.shape[2] == 1 else _pick(mask.dense, parts, 1)
    return attention.attend(q, _pick(k, parts, 2), _pick(v, parts, 2), seen)


def attend_packed(qkv: Tensor, mask: LayerMask = None, dropout: float = 0.0) -> Tensor:
    """`attend` of whole sequences whose queries, keys and values are one tensor [3, B, H, T, D]."""
    if isinstance(mask, SparseMask | GatheredKeys):
        q, k, v = qkv
        return attend(q, k, v, mask, dropout)
    return attention.attend_packed(qkv, mask, dropout)


def _pick(x: Tensor, parts: list[slice], dim: int) -> Tensor:
    """These slices of a dimension, one after the other."""
    return torch.cat([x[(slice(None),) * dim + (part,)] for part in parts], dim)


def _choose(q: Tensor, k: Tensor, pattern: Pattern) -> Literal["dense", "blocked", "flex", "slices"]:
    """The way to go for some queries, the last tokens of the keys."""
    way = switch("sparse")
    end = k.shape[2]
    start = end - q.shape[2]
    within = start >= pattern.text  # queries of the image alone
    if way == "dense" or end <= pattern.text or not (start == 0 or within):
        return "dense"
    if way != "blocked" and within and end - start <= _FEW:
        return "slices" if pattern.covered(start, end) <= _KEYS * end else "dense"
    if q.device.type == "cpu" and way != "flex":
        gains = pattern.pairs(start, end) <= _PAIRS * (end - start) * end
        return "blocked" if gains or way == "blocked" else "dense"
    if start == 0 and (q.device.type == "cuda" or way == "flex"):
        return "flex" if flex.runs(q.dtype, q.device, q.shape[3], torch.is_grad_enabled()) else "dense"
    return "dense"
