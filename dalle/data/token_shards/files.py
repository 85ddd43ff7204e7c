"""The on-disk format of token shards: Parquet files of captions and codes, and tokens.json, which lists them.

A row is one view of an image: `key` (string), `view` (int), `mirrored` (bool), `captions` (list of strings), `codes`
(list of integers, row by row).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

from dalle.files import atomic_file

INDEX = "tokens.json"
GROUP_ROWS = 1024  # rows of a Parquet row group, the unit of reading
_FORMAT = 1
_UINT16 = 2**16


@dataclass(frozen=True)
class Provenance:
    """Everything that determines the contents of shards. Encoding resumes only if all of it is the same.

    Attributes:
        image_tokenizer: sha256 of the image tokenizer's folder.
        codebook_size: size of its codebook.
        grid: rows and columns of codes.
        data: options of the encoded data set.
        records: hash of the data set's record names.
        seed: random seed of the views.
        views: views per training image; validation images have one.
        mirror: whether a mirrored copy of each view is included.
        shard_images: images per shard.
    """

    image_tokenizer: str
    codebook_size: int
    grid: tuple[int, int]
    data: dict[str, Any]
    records: str
    seed: int
    views: int
    mirror: bool
    shard_images: int

    @property
    def codes(self) -> int:
        """Number of codes of an image."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class ShardFile:
    """A shard's file name, its size in rows and bytes, and the broken records left out of it."""

    name: str
    rows: int
    size: int
    bad: list[str] = field(default_factory=list)


class ShardIndex(NamedTuple):
    """The content of tokens.json. `shards` is None until encoding has finished."""

    provenance: Provenance
    shards: dict[str, list[ShardFile]] | None  # split -> files


class Group(NamedTuple):
    """The rows of one row group of a shard."""

    keys: list[str]
    captions: pyarrow.Array  # lists of strings
    codes: np.ndarray  # uint16 or int32 [R, h * w]


def write_index(folder: Path, index: ShardIndex) -> None:
    """Write tokens.json atomically."""
    shards = index.shards
    # "making" is the name of the provenance in files of version 1: renaming it would make them unreadable
    listed = None if shards is None else {split: [asdict(shard) for shard in own] for split, own in shards.items()}
    text = json.dumps({"format": _FORMAT, "making": asdict(index.provenance), "shards": listed}, ensure_ascii=False)
    _replace(folder / INDEX, lambda file: file.write_text(text, encoding="utf-8"))


def read_index(folder: Path) -> ShardIndex:
    """Read the tokens.json of a folder of shards.

    Raises:
        ValueError: it is not a folder of token shards, or has another format version.
    """
    if not folder.is_dir():
        raise ValueError(f"no such folder: {folder}; `python -m dalle encode CONFIG {folder}` makes token shards")
    try:
        content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {content['format']}, this version reads {_FORMAT}")
        provenance = content["making"] | {"grid": tuple(content["making"]["grid"])}
        shards = content["shards"]
        if shards is not None:
            shards = {split: [ShardFile(**shard) for shard in own] for split, own in shards.items()}
        return ShardIndex(Provenance(**provenance), shards)
    except FileNotFoundError as error:
        raise ValueError(f"{folder} has no {INDEX}: `python -m dalle encode CONFIG OUT` writes one") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / INDEX} cannot be read ({error}): encode the data again") from error


def write_shard(
    file: Path, rows: Mapping[str, Sequence[Any]], codes: np.ndarray, provenance: Provenance, bad: list[str]
) -> ShardFile:
    """Write a shard atomically.

    Args:
        file: the file to write.
        rows: columns `key`, `view`, `mirrored` and `captions`.
        codes: int64 [R, h * w].
        provenance: how it was encoded; the tokenizer's hash is stored in the file's metadata.
        bad: names of the records that could not be used, with reasons.

    Raises:
        ValueError: the disk is full, or the folder is not writable.
    """
    # uint16 is enough for almost every tokenizer, and groups in memory take half the space
    integers = np.uint16 if provenance.codebook_size <= _UINT16 else np.int32
    flat = pyarrow.array(codes.astype(integers).ravel())
    table = pyarrow.table(
        {
            "key": pyarrow.array(rows["key"], pyarrow.string()),
            "view": pyarrow.array(rows["view"], pyarrow.int32()),
            "mirrored": pyarrow.array(rows["mirrored"], pyarrow.bool_()),
            "captions": pyarrow.array(rows["captions"], pyarrow.list_(pyarrow.string())),
            "codes": pyarrow.FixedSizeListArray.from_arrays(flat, provenance.codes),
        }
    )
    own = {"image_tokenizer": provenance.image_tokenizer, "bad": json.dumps(bad, ensure_ascii=False)}
    table = table.replace_schema_metadata(own)
    options = {"row_group_size": GROUP_ROWS, "compression": "zstd", "write_page_checksum": True}
    _replace(file, lambda new: parquet.write_table(table, new, **options))
    return ShardFile(file.name, len(table), file.stat().st_size, bad)


def existing_shard(file: Path, provenance: Provenance) -> ShardFile | None:
    """The shard at `file` if a previous run finished it; None if it is missing, damaged, or of another tokenizer."""
    try:
        with parquet.ParquetFile(file) as content:
            own = content.schema_arrow.metadata or {}
            if own.get(b"image_tokenizer") != provenance.image_tokenizer.encode():
                return None
            return ShardFile(
                file.name, content.metadata.num_rows, file.stat().st_size, json.loads(own.get(b"bad", b"[]"))
            )
    except MemoryError:  # pyarrow's out-of-memory error is an ArrowException too, but no sign of damage
        raise
    except (OSError, pyarrow.ArrowException):
        return None


def read_group(file: Path, number: int, rows: int, provenance: Provenance) -> Group:
    """Read row group `number`, which has `rows` rows, and verify its page checksums.

    Raises:
        ValueError: the file is damaged, or was made with another image tokenizer.
    """
    try:
        with parquet.ParquetFile(file, page_checksum_verification=True) as content:
            found = (content.schema_arrow.metadata or {}).get(b"image_tokenizer", b"").decode()
            if found != provenance.image_tokenizer:
                raise ValueError(
                    f"its codes were made with the image tokenizer {found or '(none)'}, those of its folder with "
                    f"{provenance.image_tokenizer}"
                )
            table = content.read_row_group(number, columns=["key", "captions", "codes"], use_threads=False)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"it is damaged ({(str(error) or type(error).__name__).splitlines()[0]})") from error
    flat = table["codes"].combine_chunks().flatten().to_numpy()
    low, high = int(flat.min(initial=0)), int(flat.max(initial=0))
    if len(table) != rows or low < 0 or high >= provenance.codebook_size:
        raise ValueError(f"it is damaged ({len(table)} rows of {rows}, codes from {low} to {high})")
    captions = table["captions"].combine_chunks()
    return Group(table["key"].to_pylist(), captions, flat.reshape(rows, provenance.codes))


def _replace(file: Path, write: Any) -> None:
    """Write a file atomically, with a one-line error."""
    try:
        with atomic_file(file) as part:
            write(part)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"{file} could not be written ({reason}): finished shards are intact; free some space and run the same "
            "command again"
        ) from error
