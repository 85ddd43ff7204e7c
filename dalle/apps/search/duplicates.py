"""Vectors that lie close together, joined into groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

_QUERIES = 1024  # at a time

Nearest = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""float32 [Q, D] and K -> cosines [Q, K] and rows [Q, K], -1 for none."""


def grouped(blocks: Sequence[np.ndarray], least: float, nearest: Nearest, every: int) -> list[list[int]]:
    """Groups of at least two vectors, each with a cosine of `least` or more with another of its group.

    Args:
        blocks: float16 [rows, D] each, N rows in all.
        least: the least cosine of two neighbours.
        nearest: finds neighbours.
        every: how many to look at for each vector, at most; where all of them are near enough, up to this.

    Returns:
        Rows of each group in their order, the largest group first.
    """
    leaders: list[int] = []

    def leader(row: int) -> int:
        while leaders[row] != row:
            leaders[row] = leaders[leaders[row]]
            row = leaders[row]
        return row

    leaders.extend(range(sum(map(len, blocks))))
    start = 0
    for block in blocks:
        for at in range(0, len(block), _QUERIES):
            queries = torch.from_numpy(block[at : at + _QUERIES].astype(np.float32))
            count = min(32, every)
            values, rows = nearest(queries, count)
            while count < every and bool((values[:, -1] >= least).any()):  # there may be more
                count = min(4 * count, every)
                values, rows = nearest(queries, count)
            for number, other in torch.nonzero((values >= least) & (rows >= 0)).tolist():
                one, two = leader(start + at + number), leader(int(rows[number, other]))
                leaders[max(one, two)] = min(one, two)
        start += len(block)
    groups: dict[int, list[int]] = {}
    for row in range(len(leaders)):
        groups.setdefault(leader(row), []).append(row)
    return sorted((rows for rows in groups.values() if len(rows) > 1), key=len, reverse=True)
