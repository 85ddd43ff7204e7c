"""The folder of an index: one table of images with their vectors, mapped into memory, and index.json that names it.

A change writes new files beside the old ones and then replaces index.json, so a reader has all of the old state or all
of the new one. What a run has embedded so far is kept in segments, which the next run uses if it was stopped.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

from dalle.config import from_dict
from dalle.config.ranges import NonNegativeInt, PositiveInt, check_ranges
from dalle.files import FileLock, atomic_file, parse_json, remove_parts, write_text

NAME, LOCK = "index.json", ".lock"
BLOCK = 1 << 16  # rows that are written, and looked through, at a time
FACTS = ("path", "caption", "width", "height", "sha256", "file", "offset", "size", "row", "source", "stamp")
_FORMAT = 1
_NOT_THERE = "no index: make one with `python -m dalle index IMAGES --out {}`"


@dataclass(frozen=True)
class Source:
    """Where images come from: a folder, files, or a data set of the hub, and the names of its columns."""

    path: str
    split: str = "train"
    image: str | None = None
    caption: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What index.json says.

    Attributes:
        clip: where the CLIP that made the vectors came from; "" is the one that ships.
        clip_hash: `dalle.apps.embed.fingerprint` of it.
        dimensions: of a vector.
        images: how many there are.
        sources: what was indexed.
        table: file of the table, and its size in bytes.
        ann: file of the approximate index and its size (`near` in index.json); None while there are few vectors.
        generation: counts the changes.
    """

    clip: str
    clip_hash: str
    dimensions: PositiveInt
    images: NonNegativeInt
    sources: list[Source]
    table: tuple[str, int]
    ann: tuple[str, int] | None
    generation: NonNegativeInt

    def __post_init__(self) -> None:
        check_ranges(self)


def schema(dimensions: int) -> pa.Schema:
    """Columns of the table: what an image is, where it is, and its vector."""
    texts = [(name, pa.string()) for name in ("path", "caption", "sha256", "file", "stamp")]
    numbers = [("width", pa.int32()), ("height", pa.int32())]
    places = [(name, pa.int64()) for name in ("offset", "size", "row", "source")]
    return pa.schema([*texts, *numbers, *places, ("vector", pa.list_(pa.float16(), dimensions))])


class Table:
    """A memory-mapped table: only the rows that are accessed are read.

    Attributes:
        blocks: vectors of each batch, float16 [rows, D].
    """

    def __init__(self, path: Path):
        self.batches: list[pa.RecordBatch] = []
        with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as reader:
            self.batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self.ends = list(accumulate(batch.num_rows for batch in self.batches))
        self.blocks = [_vectors(batch) for batch in self.batches]

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def row(self, number: int, names: Sequence[str] = FACTS) -> dict[str, Any]:
        """Columns of a row, its vector not among them."""
        block, at = self._locate(number)
        batch = self.batches[block]
        return {name: batch.column(name)[at].as_py() for name in names}

    def vector(self, number: int) -> np.ndarray:
        """float16 [D]."""
        block, at = self._locate(number)
        vector: np.ndarray = self.blocks[block][at]
        return vector

    def vectors(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """float32 [len(numbers), D]."""
        # Rows are gathered block by block: each is one mapped array
        wanted = np.asarray(numbers, dtype=np.int64)
        found = np.empty((len(wanted), self.blocks[0].shape[1] if self.blocks else 0), dtype=np.float32)
        blocks = np.searchsorted(self.ends, wanted, side="right")
        for block in np.unique(blocks):
            mine = blocks == block
            start = self.ends[block - 1] if block else 0
            found[mine] = self.blocks[block][wanted[mine] - start]
        return found

    def _locate(self, number: int) -> tuple[int, int]:
        block = bisect_right(self.ends, number)
        return block, number - (self.ends[block - 1] if block else 0)


def write_table(path: Path, batches: Iterable[pa.RecordBatch], dimensions: int) -> int:
    """Write a table atomically; returns its size in bytes."""
    with atomic_file(path) as part:
        with pa.ipc.new_file(part, schema(dimensions)) as writer:
            for batch in batches:
                writer.write_batch(batch)
        return part.stat().st_size


def as_batch(rows: Sequence[Mapping[str, Any]], vectors: np.ndarray) -> pa.RecordBatch:
    """Rows with their vectors, float16 [len(rows), D]."""
    own = schema(vectors.shape[1])
    columns = [pa.array([row[field.name] for row in rows], field.type) for field in own if field.name != "vector"]
    # float16 halves the index; cosines of unit vectors change by less than 1e-3
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float16).reshape(-1), pa.float16())
    return pa.RecordBatch.from_arrays([*columns, pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])], schema=own)


def read_manifest(folder: Path) -> Manifest:
    """What index.json says.

    Raises:
        ValueError: there is no index, or it is no index of this version.
    """
    try:
        content = parse_json((folder / NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder}: {_NOT_THERE.format(folder)}") from None
    except ValueError as error:
        raise _damaged(folder / NAME, error) from error
    if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
        raise ValueError(
            f"{folder / NAME} is not of format {_FORMAT}, which this version reads: index the images again"
        )
    # `ann` has the name that it had first; that of `images` changed with version 0.2
    names = {"near": "ann", "pictures": "images"}
    current = {str(names.get(key, key)): value for key, value in content.items()}
    try:
        return cast(Manifest, from_dict(Manifest, current, NAME))
    except ValueError as error:
        raise _damaged(folder / NAME, error) from error


def _damaged(file: Path, error: Exception) -> ValueError:
    reason = str(error).splitlines()[0]
    return ValueError(f"{file} is damaged ({reason}): remove {file.parent} and index the images again")


def open_table(folder: Path, manifest: Manifest) -> Table:
    """The table that a manifest names.

    Raises:
        ValueError: the file is cut short or damaged.
        FileNotFoundError: it is not there (any more).
    """
    return _opened(folder, manifest.table)


def complete_file(folder: Path, file: tuple[str, int]) -> Path:
    """The path of a file of the index.

    Raises:
        ValueError: it is not as long as it was when it was written.
        FileNotFoundError: it is not there (any more).
    """
    path, size = folder / file[0], (folder / file[0]).stat().st_size
    if size != file[1]:
        raise ValueError(
            f"{path} is cut short or damaged: {size} bytes, expected {file[1]}; remove {folder} and index the images "
            "again"
        )
    return path


def commit(folder: Path, manifest: Manifest) -> None:
    """Make the files that `manifest` names the index, and remove those of before."""
    # The file keeps the names that it had first
    content = {"near" if name == "ann" else name: value for name, value in asdict(manifest).items()}
    write_text(folder / NAME, json.dumps({"format": _FORMAT} | content, indent=1, ensure_ascii=False))
    # Only now: until index.json was replaced, readers opened the files of before
    current = {manifest.table[0], *([manifest.ann[0]] if manifest.ann else [])}
    for old in folder.iterdir():
        if (
            re.fullmatch(r"(images|pictures|near|piece)-[0-9a-f-]+\.(arrow|faiss)", old.name)
            and old.name not in current
        ):
            old.unlink()


def open_segments(folder: Path, clip_hash: str) -> list[Table]:
    """Open what stopped runs had embedded with this CLIP; a segment that is cut short is removed."""
    found = []
    for file in sorted(folder.glob(f"piece-{clip_hash[:12]}-*.arrow")):
        try:
            found.append(Table(file))
        # Nothing is lost but time: these images are embedded again
        except pa.ArrowInvalid:  # written when the disk was full, or the machine stopped
            file.unlink()
    return found


def write_segment(folder: Path, clip_hash: str, batch: pa.RecordBatch) -> None:
    """Write what has been embedded since the last segment, for the next run if this one is stopped."""
    name = f"piece-{clip_hash[:12]}-"
    numbers = [int(file.stem.rpartition("-")[2]) for file in folder.glob(f"{name}*.arrow")]
    file = folder / f"{name}{max(numbers, default=0) + 1:06d}.arrow"
    write_table(file, [batch], batch.schema.field("vector").type.list_size)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder, which is created if necessary, against other writers; the lock ends with the process.

    Raises:
        ValueError: another process writes to it, or it holds other things than an index.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name another place for the index")
    # Never take over a folder of somebody's images: an update removes files that look like its own
    if folder.is_dir() and any(folder.iterdir()) and not _is_begun(folder):
        raise ValueError(f"{folder} holds other things than an index: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / LOCK)
    except BlockingIOError:
        raise ValueError(f"{folder} is being written by another process: wait for it") from None
    with lock:
        remove_parts(folder)
        yield


def _is_begun(folder: Path) -> bool:
    """Whether a folder is of an index, or of one whose making was stopped; runs have a lock of that name too."""
    visible = (path for path in folder.iterdir() if not path.name.startswith("."))
    whole = (folder / NAME).exists() or all(path.suffix in (".arrow", ".faiss") for path in visible)
    return whole and (folder / LOCK).exists()


def _opened(folder: Path, file: tuple[str, int]) -> Table:
    path = complete_file(folder, file)
    try:
        return Table(path)
    except pa.ArrowInvalid as error:
        raise _damaged(path, error) from error


def _vectors(batch: pa.RecordBatch) -> np.ndarray:
    column = batch.column("vector")
    flat: np.ndarray = column.flatten().to_numpy(zero_copy_only=True)
    return flat.reshape(len(column), -1) if len(column) else flat.reshape(0, column.type.list_size)
