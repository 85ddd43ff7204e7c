"""Attention that costs what its mask covers: which way is taken. `dalle.kernels.attention` says what is computed.

Letters: B batch, H heads, T queries, S keys, D head width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dalle.kernels import attention
from dalle.kernels.attention import Mask
from dalle.kernels.sparse import blocked, flex
from dalle.kernels.sparse.pattern import Pattern

Way = Literal["auto", "dense", "blocked", "flex"]

_FEW = 32  # queries that are asked one by one which keys they see
# Of the dense mask's pairs or keys: with fewer the other ways are faster (docs/log.md)
_PAIRS, _KEYS = 0.5, 0.7
_way = os.environ.get("DALLE_SPARSE", "auto")


@dataclass(frozen=True, eq=False)
class Sparse:
    """What a layer's tokens may look at, where that has a pattern.

    Attributes:
        pattern: the pattern.
        dense: the same as bool [T, S]; the T queries are the last of S tokens.
    """

    pattern: Pattern
    dense: Tensor


@dataclass(frozen=True, eq=False)
class Listed:
    """The keys that one query of each row sees, as tensors, for where its place is known to the device alone.

    Attributes:
        keys: int [K].
        real: bool [K]; False where this is none of them.
    """

    keys: Tensor
    real: Tensor


LayerMask = Mask | Sparse | Listed


def attend(q: Tensor, k: Tensor, v: Tensor, mask: LayerMask = None, dropout: float = 0.0) -> Tensor:
    """`dalle.kernels.attention.attend`, in the way that is fast for the mask.

    Args:
        q: [B, H, T, D].
        k: [B, H, S, D].
        v: [B, H, S, D].
        mask: as there, a `Sparse`, or a `Listed` of one query.
        dropout: as there; a `Sparse` mask is then taken as a dense one.

    Returns:
        [B, H, T, D]: the same numbers whatever the way, but for rounding.
    """
    if isinstance(mask, Listed):
        k, v = k.index_select(2, mask.keys), v.index_select(2, mask.keys)
        return attention.attend(q, k, v, mask.real[None], dropout)
    if not isinstance(mask, Sparse):
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
    if isinstance(mask, Sparse | Listed):
        q, k, v = qkv
        return attend(q, k, v, mask, dropout)
    return attention.attend_packed(qkv, mask, dropout)


def _pick(x: Tensor, parts: list[slice], dim: int) -> Tensor:
    """These slices of a dimension, one after the other."""
    return torch.cat([x[(slice(None),) * dim + (part,)] for part in parts], dim)


@contextmanager
def by(way: Way) -> Iterator[None]:
    """This way wherever it can be gone, in this block: to compare them."""
    global _way
    before, _way = _way, way
    try:
        yield
    finally:
        _way = before


def _choose(q: Tensor, k: Tensor, pattern: Pattern) -> Literal["dense", "blocked", "flex", "slices"]:
    """The way to go for some queries, the last tokens of the keys."""
    if _way not in get_args(Way):
        raise ValueError(f"DALLE_SPARSE is {_way!r}; it must be one of {', '.join(get_args(Way))}")
    end = k.shape[2]
    start = end - q.shape[2]
    within = start >= pattern.text  # queries of the image alone
    if _way == "dense" or end <= pattern.text or not (start == 0 or within):
        return "dense"
    if _way != "blocked" and within and end - start <= _FEW:
        return "slices" if pattern.covered(start, end) <= _KEYS * end else "dense"
    if q.device.type == "cpu" and _way != "flex":
        gains = pattern.pairs(start, end) <= _PAIRS * (end - start) * end
        return "blocked" if gains or _way == "blocked" else "dense"
    if start == 0 and (q.device.type == "cuda" or _way == "flex"):
        return "flex" if flex.runs(q.dtype, q.device, q.shape[3], torch.is_grad_enabled()) else "dense"
    return "dense"
