"""The nearest of many vectors by looking at few of them: an inverted file of faiss with 8-bit vectors.

k-means cuts the space into cells; a query looks into the cells that are nearest to it. The vectors in it are stored as
8-bit numbers, so what it finds are candidates, which are to be compared by the exact vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from dalle.files import install_command

PROBES = 64  # cells that a query looks into
_PER_CELL = 64  # vectors for each cell that k-means looks at
EXTRA = install_command("search")


def library() -> ModuleType | None:
    """faiss, or None where the extra is not installed."""
    try:
        import faiss
    except ModuleNotFoundError:
        return None
    found: ModuleType = faiss
    return found


def build(blocks: Sequence[np.ndarray], path: Path, trained: Path | None = None) -> None:
    """Write an index of all vectors.

    Args:
        blocks: float16 [rows, D] each, in order; the numbers of the vectors count through them.
        path: file to write.
        trained: an earlier index, whose cells are used again if their number still suits that of the vectors: k-means
            is half of the work. One that is not there or is damaged is left out.
    """
    faiss = _faiss()
    count, dimensions = sum(map(len, blocks)), blocks[0].shape[1]
    # faiss's guidelines: 4 to 16 times the square root. A power of 2 changes only when the index has doubled
    cells = 1 << round(math.log2(4 * math.sqrt(count)))
    index = None if trained is None else _emptied(trained, dimensions, cells)
    if index is None:
        index = faiss.index_factory(dimensions, f"IVF{cells},SQ8", faiss.METRIC_INNER_PRODUCT)
        index.cp.niter, index.cp.max_points_per_centroid = 8, _PER_CELL
        sample = np.random.default_rng(0).choice(count, min(count, cells * _PER_CELL), replace=False)
        index.train(_rows(blocks, np.sort(sample)))
    for block in blocks:
        index.add(block.astype(np.float32))
    faiss.write_index(index, str(path))


def _emptied(path: Path, dimensions: int, cells: int) -> Any:
    """An index with its cells and no vectors; None if it cannot be read, or is of other dimensions or cells."""
    faiss = _faiss()
    try:
        index = faiss.read_index(str(path))
        index.reset()
        return index if (index.d, faiss.extract_index_ivf(index).nlist) == (dimensions, cells) else None
    except (RuntimeError, MemoryError):  # of damaged lengths, memory that there is not
        return None


class FaissIndex:
    """An index that is mapped into memory."""

    def __init__(self, path: Path):
        faiss = _faiss()
        # faiss has OpenMP threads of its own, which know nothing of torch's limit
        faiss.omp_set_num_threads(torch.get_num_threads())
        self.index: Any = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)

    def candidates(
        self, queries: np.ndarray, count: int, allowed: np.ndarray | None = None, probes: int = PROBES
    ) -> np.ndarray:
        """Vectors that are likely the nearest.

        Args:
            queries: float32 [Q, D].
            count: how many, C.
            allowed: bool [N], the rows that may be found; None: all.
            probes: cells to look into.

        Returns:
            int64 [Q, C]; -1 where there are no more.
        """
        faiss = _faiss()
        options: dict[str, Any] = {"nprobe": probes}
        if allowed is not None:
            bits = np.packbits(allowed, bitorder="little")  # one bit a row, as faiss reads them
            options["sel"] = faiss.IDSelectorBitmap(bits)
        found: np.ndarray = self.index.search(queries, count, params=faiss.SearchParametersIVF(**options))[1]
        return found


def _faiss() -> ModuleType:
    found = library()
    if found is None:
        raise ValueError(f"this index is approximate, and faiss is not installed: {EXTRA}")
    return found


def _rows(blocks: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """float32 [len(rows), D] of sorted rows."""
    parts, start = [], 0
    for block in blocks:
        first, last = np.searchsorted(rows, [start, start + len(block)])
        parts.append(block[rows[first:last] - start].astype(np.float32))
        start += len(block)
    return np.concatenate(parts)
