"""The nearest vectors by looking at all of them, block after block.

Shapes: Q queries, N vectors, D dimensions, K wanted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dalle.apps.search.store import Table


def nearest(
    blocks: Sequence[np.ndarray], queries: Tensor, k: int, allowed: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """The K vectors with the largest products.

    Args:
        blocks: float16 [rows, D] each, in order; N rows in all.
        queries: float32 [Q, D].
        k: K; fewer are returned if there are fewer.
        allowed: bool [N], the rows that may be found; None: all.

    Returns:
        float32 [Q, K] products, the largest first, and int64 [Q, K] rows; of equals the first rows.
    """
    values, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    start = 0
    for block in blocks:
        own_rows = np.arange(len(block)) if allowed is None else np.flatnonzero(allowed[start : start + len(block)])
        vectors = torch.from_numpy((block if allowed is None else block[own_rows]).astype(np.float32))
        products = queries @ vectors.T  # [Q, rows of the block]
        best = products.topk(min(k, len(own_rows)))
        values = torch.cat([values, best.values], dim=1)
        rows = torch.cat([rows, torch.from_numpy(own_rows)[best.indices] + start], dim=1)
        # Stable: of equal products the first row stays first, whatever the blocks
        order = values.sort(dim=1, descending=True, stable=True).indices[:, :k]
        values, rows = values.gather(1, order), rows.gather(1, order)
        start += len(block)
    return values, rows


def rescored(table: Table, queries: Tensor, candidates: np.ndarray, k: int) -> tuple[Tensor, Tensor]:
    """The K best of some candidates by their stored vectors.

    Args:
        table: The vectors.
        queries: float32 [Q, D].
        candidates: int64 [Q, C] rows; -1 stands for none.
        k: K.

    Returns:
        As `nearest`; -inf and -1 where there are fewer candidates.
    """
    # The candidates were found by 8-bit vectors; the stored ones put them in the right order
    found = torch.from_numpy(candidates)
    # -1 reads row 0, whose product is masked
    vectors = torch.from_numpy(table.vectors(candidates.clip(min=0).reshape(-1))).view(*candidates.shape, -1)
    products = torch.einsum("qd,qcd->qc", queries, vectors).masked_fill(found < 0, -torch.inf)
    best = products.topk(min(k, candidates.shape[1]))
    return best.values, found.gather(1, best.indices)
