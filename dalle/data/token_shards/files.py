"""The on-disk format of shards: Parquet files of captions and encoded images, and tokens.json, which lists them.

A row is one view of an image: `key` (string), `view` (int), `mirrored` (bool), `captions` (list of strings), and
`codes` (list of integers, row by row), `embedding` (list of floats), or `embedding_and_image` (bytes of both).
Embedding shards have embeddings.json, those with images embedded_images.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

from dalle.config import from_dict
from dalle.config.ranges import NonNegativeInt, Range, check_ranges
from dalle.data.token_shards.provenance import Provenance
from dalle.files import atomic_file, parse_json

GROUP_ROWS = 1024  # rows of a Parquet row group, the unit of reading
_FORMAT = 1


@dataclass(frozen=True)
class ShardFile:
    """A shard's file name, its size in rows and bytes, and the broken records left out of it."""

    name: str
    rows: NonNegativeInt
    size: Annotated[int, Range(0)]
    bad: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.name or Path(self.name).name != self.name:
            raise ValueError(f"name is {self.name!r}; it must be that of a file in the folder")


class ShardIndex(NamedTuple):
    """The content of an index. `shards` is None until encoding has finished."""

    provenance: Provenance
    shards: dict[str, list[ShardFile]] | None  # split -> files


class Group(NamedTuple):
    """The rows of one row group of a shard."""

    keys: list[str]
    captions: pyarrow.Array  # lists of strings
    values: np.ndarray  # [R, width], as stored


def write_index(folder: Path, index: ShardIndex) -> None:
    """Write the index of a folder atomically."""
    shards = index.shards
    # "making" is the name of the provenance in files of version 1: renaming it would make them unreadable
    listed = None if shards is None else {split: [asdict(shard) for shard in own] for split, own in shards.items()}
    text = json.dumps({"format": _FORMAT, "making": asdict(index.provenance), "shards": listed}, ensure_ascii=False)
    _replace(folder / index.provenance.index, lambda file: file.write_text(text, encoding="utf-8"))


def read_index(folder: Path, kind: type[Provenance]) -> ShardIndex:
    """Read the index of a folder of shards of one kind.

    Raises:
        ValueError: it is not a folder of such shards, has another format version, or a value that cannot be.
    """
    if not folder.is_dir():
        raise ValueError(f"no such folder: {folder}; `python -m dalle encode CONFIG {folder}` makes shards")
    file = folder / kind.index
    try:
        return _parsed_index(parse_json(file.read_text(encoding="utf-8")), kind)
    except FileNotFoundError as error:
        raise ValueError(f"{folder} has no {kind.index}: `python -m dalle encode CONFIG OUT` writes one") from error
    except (ValueError, OSError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
        raise ValueError(f"{file} cannot be read ({reason}): encode the data again") from error


def _parsed_index(content: Any, kind: type[Provenance]) -> ShardIndex:
    """What an index says.

    Raises:
        ValueError: something is missing, has another type, or is out of range.
    """
    if not isinstance(content, dict) or not {"format", "making", "shards"} <= content.keys():
        raise ValueError("expected format, making and shards")
    if content["format"] != _FORMAT:
        raise ValueError(f"its format is {content['format']}, this version reads {_FORMAT}")
    made = from_dict(kind, content["making"], "making")
    listed = content["shards"]
    if listed is None:
        return ShardIndex(made, None)
    if not isinstance(listed, dict) or not all(isinstance(own, list) for own in listed.values()):
        raise ValueError("shards: expected a list of files for each split")
    shards = {
        split: [from_dict(ShardFile, shard, f"shards: {split}.{number}") for number, shard in enumerate(own)]
        for split, own in listed.items()
    }
    for shard in (shard for own in shards.values() for shard in own):
        # Lists as long as its row groups are made before it is read
        if shard.rows > made.most_rows:
            raise ValueError(f"shards: {shard.name} has {shard.rows:,} rows, more than {made.most_rows:,}")
    return ShardIndex(made, shards)


def write_shard(
    file: Path, rows: Mapping[str, Sequence[Any]], values: np.ndarray, provenance: Provenance, bad: list[str]
) -> ShardFile:
    """Write a shard atomically.

    Args:
        file: the file to write.
        rows: columns `key`, `view`, `mirrored` and `captions`.
        values: encoded images [R, width].
        provenance: how it was encoded; the encoder's hash is stored in the file's metadata.
        bad: names of the records that could not be used, with reasons.

    Raises:
        ValueError: the disk is full, or the folder is not writable.
    """
    flat = pyarrow.array(values.astype(provenance.dtype).ravel())
    table = pyarrow.table(
        {
            "key": pyarrow.array(rows["key"], pyarrow.string()),
            "view": pyarrow.array(rows["view"], pyarrow.int32()),
            "mirrored": pyarrow.array(rows["mirrored"], pyarrow.bool_()),
            "captions": pyarrow.array(rows["captions"], pyarrow.list_(pyarrow.string())),
            provenance.column: pyarrow.FixedSizeListArray.from_arrays(flat, provenance.width),
        }
    )
    own = {provenance.encoder: provenance.sha256, "bad": json.dumps(bad, ensure_ascii=False)}
    table = table.replace_schema_metadata(own)
    options = {"row_group_size": GROUP_ROWS, "compression": "zstd", "write_page_checksum": True}
    _replace(file, lambda new: parquet.write_table(table, new, **options))
    return ShardFile(file.name, len(table), file.stat().st_size, bad)


def existing_shard(file: Path, provenance: Provenance) -> ShardFile | None:
    """The shard at `file` if a previous run finished it; None if it is missing, damaged, or of another encoder."""
    try:
        with parquet.ParquetFile(file) as content:
            own = content.schema_arrow.metadata or {}
            if own.get(provenance.encoder.encode()) != provenance.sha256.encode():
                return None
            facts = {"rows": content.metadata.num_rows, "size": file.stat().st_size}
            bad = parse_json(own.get(b"bad", b"[]").decode())
            return cast(ShardFile, from_dict(ShardFile, {"name": file.name, **facts, "bad": bad}, str(file)))
    except MemoryError:  # pyarrow's out-of-memory error is an ArrowException too, but no sign of damage
        raise
    except (OSError, pyarrow.ArrowException, ValueError):  # ValueError: of its list of bad records
        return None


def read_group(file: Path, number: int, rows: int, provenance: Provenance) -> Group:
    """Read row group `number`, which has `rows` rows, and verify its page checksums.

    Raises:
        ValueError: the file is damaged, or was made with another encoder.
    """
    try:
        with parquet.ParquetFile(file, page_checksum_verification=True) as content:
            found = (content.schema_arrow.metadata or {}).get(provenance.encoder.encode(), b"").decode()
            if found != provenance.sha256:
                raise ValueError(
                    f"it was made with the {provenance.encoder.replace('_', ' ')} {found or '(none)'}, the others of "
                    f"its folder with {provenance.sha256}"
                )
            # Workers are parallel already
            table = content.read_row_group(number, columns=["key", "captions", provenance.column], use_threads=False)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"it is damaged ({(str(error) or type(error).__name__).splitlines()[0]})") from error
    flat = table[provenance.column].combine_chunks().flatten().to_numpy()
    damage = f"{len(table)} rows of {rows}" if len(table) != rows else provenance.damage(flat)
    if damage is not None or len(flat) != rows * provenance.width:
        raise ValueError(f"it is damaged ({damage or 'rows of another length'})")
    captions = table["captions"].combine_chunks()
    return Group(table["key"].to_pylist(), captions, flat.reshape(rows, provenance.width))


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
