"""An index as one parquet file that vector databases read: docs/scale.md tells how."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet

from dalle.apps.search.store import Table
from dalle.files import atomic_file

_COLUMNS = ("path", "caption", "width", "height", "sha256")


def export(table: Table, path: Path, dimensions: int) -> int:
    """Write `id` (int64, the row), `vector` (list of float32, unit length) and what is known of each image.

    Args:
        table: the rows.
        path: file to write, whole or not at all.
        dimensions: of a vector.

    Returns:
        How many rows were written.
    """
    kinds = [pa.int64(), pa.list_(pa.float32()), pa.string(), pa.string(), pa.int32(), pa.int32(), pa.string()]
    schema = pa.schema(list(zip(("id", "vector", *_COLUMNS), kinds, strict=True)))
    path.parent.mkdir(parents=True, exist_ok=True)
    start = 0
    with atomic_file(path) as part, parquet.ParquetWriter(part, schema) as writer:
        for batch, block in zip(table.batches, table.blocks, strict=True):
            ids = pa.array(range(start, start + len(block)), pa.int64())
            # Where each list begins and ends
            ends = pa.array(range(0, (len(block) + 1) * dimensions, dimensions), pa.int32())
            flat = pa.array(block.astype("float32").reshape(-1))
            columns = [ids, pa.ListArray.from_arrays(ends, flat), *(batch.column(name) for name in _COLUMNS)]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
            start += len(block)
    return start
