"""Token shards on disk: parquet files of captions and codes, and tokens.json, which says what they are and how many.

A row is one view of an image: `key` (text), `view` (number), `mirrored` (whether it is), `captions`
(list of texts), `codes` (list of integers).
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
GROUP_ROWS = 1024  # read at a time
_FORMAT = 1
_UINT16 = 2**16


@dataclass(frozen=True)
class Provenance:
    """All that decides what is in shards: an encoding goes on only with the same.

    Attributes:
        image_tokenizer: sha256 of its folder.
        codebook_size: a code is below it.
        grid: rows and columns of codes.
        data: options of the data set that they were made from.
        records: hash of what the data set held.
        seed: of what is left to chance in an image.
        views: of each image; one in validation.
        mirror: whether each view is there mirrored too.
        shard_images: images of one shard.
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
        """Codes of an image."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class ShardFile:
    """A file of the folder: its rows and bytes, and the broken records that are missing from it."""

    name: str
    rows: int
    size: int
    bad: list[str] = field(default_factory=list)


class Index(NamedTuple):
    """What tokens.json says; without shards while they are being made."""

    making: Provenance
    shards: dict[str, list[ShardFile]] | None  # by split


class Group(NamedTuple):
    """Neighbouring rows of a shard."""

    keys: list[str]
    captions: pyarrow.Array  # of lists of texts
    codes: np.ndarray  # uint16 or int32 [R, h * w]


def write_index(folder: Path, index: Index) -> None:
    """Write tokens.json, whole or not at all."""
    shards = index.shards
    listed = None if shards is None else {split: [asdict(shard) for shard in own] for split, own in shards.items()}
    text = json.dumps({"format": _FORMAT, "making": asdict(index.making), "shards": listed}, ensure_ascii=False)
    _replace(folder / INDEX, lambda file: file.write_text(text, encoding="utf-8"))


def read_index(folder: Path) -> Index:
    """What a folder of shards holds.

    Raises:
        ValueError: it is no such folder, or of another version.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: `python -m dalle encode CONFIG {folder}` makes token shards")
    try:
        content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"it is of format {content['format']}, and this version reads {_FORMAT}")
        making = content["making"] | {"grid": tuple(content["making"]["grid"])}
        shards = content["shards"]
        if shards is not None:
            shards = {split: [ShardFile(**shard) for shard in own] for split, own in shards.items()}
        return Index(Provenance(**making), shards)
    except FileNotFoundError as error:
        raise ValueError(f"{folder} has no {INDEX}: `python -m dalle encode CONFIG OUT` writes one") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / INDEX} cannot be read ({error}): encode the data again") from error


def write_shard(
    file: Path, rows: Mapping[str, Sequence[Any]], codes: np.ndarray, making: Provenance, bad: list[str]
) -> ShardFile:
    """Write a shard, whole or not at all.

    Args:
        file: where to.
        rows: columns `key`, `view`, `mirrored` and `captions`.
        codes: int64 [R, h * w].
        making: what it is of; the tokenizer's hash is written into the file.
        bad: what could not be used, with reasons.

    Raises:
        ValueError: there is no room, or the folder cannot be written.
    """
    integers = np.uint16 if making.codebook_size <= _UINT16 else np.int32
    flat = pyarrow.array(codes.astype(integers).ravel())
    table = pyarrow.table(
        {
            "key": pyarrow.array(rows["key"], pyarrow.string()),
            "view": pyarrow.array(rows["view"], pyarrow.int32()),
            "mirrored": pyarrow.array(rows["mirrored"], pyarrow.bool_()),
            "captions": pyarrow.array(rows["captions"], pyarrow.list_(pyarrow.string())),
            "codes": pyarrow.FixedSizeListArray.from_arrays(flat, making.codes),
        }
    )
    own = {"image_tokenizer": making.image_tokenizer, "bad": json.dumps(bad, ensure_ascii=False)}
    table = table.replace_schema_metadata(own)
    options = {"row_group_size": GROUP_ROWS, "compression": "zstd", "write_page_checksum": True}
    _replace(file, lambda new: parquet.write_table(table, new, **options))
    return ShardFile(file.name, len(table), file.stat().st_size, bad)


def found_shard(file: Path, making: Provenance) -> ShardFile | None:
    """The shard that is there already; None where there is none, or only a damaged one."""
    try:
        with parquet.ParquetFile(file) as content:
            own = content.schema_arrow.metadata or {}
            if own.get(b"image_tokenizer") != making.image_tokenizer.encode():
                return None
            return ShardFile(
                file.name, content.metadata.num_rows, file.stat().st_size, json.loads(own.get(b"bad", b"[]"))
            )
    except MemoryError:  # which is an ArrowException as well, and no damage
        raise
    except (OSError, pyarrow.ArrowException):
        return None


def read_group(file: Path, number: int, rows: int, making: Provenance) -> Group:
    """A group of rows, its checksums verified.

    Raises:
        ValueError: the file is damaged, or not of these shards.
    """
    try:
        with parquet.ParquetFile(file, page_checksum_verification=True) as content:
            found = (content.schema_arrow.metadata or {}).get(b"image_tokenizer", b"").decode()
            if found != making.image_tokenizer:
                raise ValueError(
                    f"its codes are of the image tokenizer {found or 'of no name'}, those of its folder of "
                    f"{making.image_tokenizer}"
                )
            table = content.read_row_group(number, columns=["key", "captions", "codes"], use_threads=False)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"it is damaged ({(str(error) or type(error).__name__).splitlines()[0]})") from error
    flat = table["codes"].combine_chunks().flatten().to_numpy()
    low, high = int(flat.min(initial=0)), int(flat.max(initial=0))
    if len(table) != rows or low < 0 or high >= making.codebook_size:
        raise ValueError(f"it is damaged ({len(table)} rows of {rows}, codes from {low} to {high})")
    captions = table["captions"].combine_chunks()
    return Group(table["key"].to_pylist(), captions, flat.reshape(rows, making.codes))


def _replace(file: Path, write: Any) -> None:
    """Write a file whole or not at all."""
    try:
        with atomic_file(file) as part:
            write(part)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"{file} could not be written ({reason}): the shards that are there are whole; make room, then run the "
            "same command again"
        ) from error
