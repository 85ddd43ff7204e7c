"""The rows of a table that are nearest to queries: by looking at all, or at the candidates of an approximate index.

Shapes: Q queries, N rows, D dimensions, K wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dalle.apps.search import exact
from dalle.apps.search.ann import FaissIndex
from dalle.apps.search.store import Table
from dalle.apps.search.update import EXACT

_CANDIDATES, _FEWEST = 8, 100  # vectors to compare exactly for each that is wanted, and the fewest


@dataclass(frozen=True)
class NeighborSearch:
    """Nearest neighbors in a table of unit vectors.

    Attributes:
        table: N rows.
        ann: its approximate index; None: every search looks at all rows.
    """

    table: Table
    ann: FaissIndex | None

    def nearest(self, queries: Tensor, k: int, allowed: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        """The K rows of the largest cosines.

        Args:
            queries: float32 [Q, D], unit vectors.
            k: K.
            allowed: bool [N], the rows that may be found; None: all.

        Returns:
            float32 [Q, K] cosines, the largest first, and int64 [Q, K] rows; -inf and -1 where there are fewer.
        """
        # Filters that leave few rows, and large K, are faster and exact by looking at all of them
        if self.ann is None or (allowed is not None and allowed.sum() <= EXACT) or k * _CANDIDATES > EXACT:
            return exact.nearest(self.table.blocks, queries, k, allowed)
        count = max(_FEWEST, k * _CANDIDATES)
        candidates = self.ann.candidates(queries.numpy(), count, allowed)
        return exact.rescored(self.table, queries, candidates, k)
