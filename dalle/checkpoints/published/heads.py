"""Heads of published attention: how many there are, and the order of their channels where positions are rotary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from dalle.checkpoints.published.state import derived
from dalle.checkpoints.tensors import LazyTensor


def heads_of(width: int, known: Mapping[int, int], given: Mapping[str, Any]) -> int:
    """How many heads a transformer has, which no shape tells: as given, or as its family's models of that width have.

    Raises:
        ValueError: neither tells, or what is given does not divide the width.
    """
    heads = given.get("heads", known.get(width))
    if heads is None:
        raise ValueError(f"it does not tell how many heads its width of {width} has: give heads=NUMBER")
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise ValueError(f"heads is {heads!r}; give a whole number that divides the width, {width}")
    return heads


def permute_rope_rows(weight: Tensor, heads: int, parts: Literal["qk", "qkv"]) -> LazyTensor:
    """Query, key and value rows [3 * heads * D, C] for rotary positions whose pairs are (i, i + D / 2).

    Published are pairs of neighbours (2 i, 2 i + 1). What queries and keys give each other is the same in any order.
    """

    def make() -> Tensor:
        made = weight.clone().unflatten(0, (3, heads, -1))  # [3, heads, D, C]
        for part in range(len(parts)):
            made[part] = made[part][:, deinterleave(made.shape[2])]
        return made.flatten(0, 2)

    return derived([weight], weight.shape, make)


def deinterleave(dim: int) -> Tensor:
    """Channels of a head in pairs of neighbours, the first ones of all pairs and then the second ones: int64 [D]."""
    return torch.cat((torch.arange(0, dim, 2), torch.arange(1, dim, 2)))
