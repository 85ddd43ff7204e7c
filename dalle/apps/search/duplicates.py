"""Vectors that lie close together: joined into groups, or left out of a ranking."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

_QUERIES = 1024  # at a time

Nearest = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""float32 [Q, D] and K -> cosines [Q, K] and rows [Q, K], -1 for none."""


def group_duplicates(blocks: Sequence[np.ndarray], least: float, nearest: Nearest, every: int) -> list[list[int]]:
    """Find the groups of at least two vectors, each with a cosine of `least` or more with another of its group.

    These are the connected components of the graph of near neighbors, found by union-find.

    Args:
        blocks: float16 [rows, D] each, N rows in all.
        least: the least cosine of two neighbors.
        nearest: finds neighbors.
        every: largest number of neighbors to look at for each vector.

    Returns:
        Rows of each group in their order, the largest group first.
    """
    parents: list[int] = []  # a root is its own parent

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = parents[parents[row]]  # path halving keeps the trees flat
            row = parents[row]
        return row

    parents.extend(range(sum(map(len, blocks))))
    start = 0
    for block in blocks:
        for at in range(0, len(block), _QUERIES):
            queries = torch.from_numpy(block[at : at + _QUERIES].astype(np.float32))
            count = min(32, every)
            values, rows = nearest(queries, count)
            # Where the last one found is near enough, there may be more
            while count < every and bool((values[:, -1] >= least).any()):
                count = min(4 * count, every)
                values, rows = nearest(queries, count)
            for number, other in torch.nonzero((values >= least) & (rows >= 0)).tolist():
                # The smaller row becomes the root, so that groups do not depend on the order of the blocks
                one, two = root(start + at + number), root(int(rows[number, other]))
                parents[max(one, two)] = min(one, two)
        start += len(block)
    groups: dict[int, list[int]] = {}
    for row in range(len(parents)):
        groups.setdefault(root(row), []).append(row)
    return sorted((rows for rows in groups.values() if len(rows) > 1), key=len, reverse=True)


def first_of_each(vectors: Tensor, least: float) -> list[int]:
    """Rows of unit vectors float32 [N, D] without those whose cosine with an earlier one that stays is `least` or more.

    Greedy in the given order, so that of near-duplicates the best hit stays.
    """
    chosen: list[int] = []
    for row in range(len(vectors)):
        if not chosen or float((vectors[chosen] @ vectors[row]).max()) < least:
            chosen.append(row)
    return chosen
