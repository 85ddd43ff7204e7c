"""Attention heads of published models: their number, and the order of their channels under rotary embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.published.state import derived


def heads_of(width: int, known: Mapping[int, int], given: Mapping[str, Any]) -> int:
    """The number of attention heads, which no tensor shape reveals: as given, or from a table by width.

    Args:
        width: channels of the transformer.
        known: width -> heads of the family's published models.
        given: the user's options, perhaps with `heads`.

    Raises:
        ValueError: the number is unknown, or does not divide the width.
    """
    heads = given.get("heads", known.get(width))
    if heads is None:
        raise ValueError(f"its number of attention heads is not recorded (width {width}): give heads=NUMBER")
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise ValueError(f"heads is {heads!r}; give a whole number that divides the width, {width}")
    return heads


def permute_rope_rows(weight: Tensor, heads: int, parts: Literal["qk", "qkv"]) -> LazyTensor:
    """Reorder the rows of a fused projection [3 * heads * D, C] from interleaved to half-split rotary embeddings.

    The published code rotates neighboring channels (2 i, 2 i + 1); ours rotates (i, i + D / 2). The same permutation of
    query and key channels leaves their dot products unchanged.

    Args:
        weight: query, key and value rows.
        heads: number of heads.
        parts: which projections are rotated: usually "qk".
    """

    def make() -> Tensor:
        made = weight.clone().unflatten(0, (3, heads, -1))  # [3, heads, D, C]
        for part in range(len(parts)):
            made[part] = made[part][:, deinterleave(made.shape[2])]
        return made.flatten(0, 2)

    return derived([weight], weight.shape, make)


def deinterleave(dim: int) -> Tensor:
    """Channel order of a head that puts all even channels before all odd ones, int64 [D]."""
    return torch.cat((torch.arange(0, dim, 2), torch.arange(1, dim, 2)))
