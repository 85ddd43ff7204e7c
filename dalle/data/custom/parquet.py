"""Tables through Hugging Face datasets: local Parquet files, `save_to_disk` folders, hub ids; indexed or streamed."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from dalle.data.custom.cells import parse_image_cell
from dalle.data.custom.columns import caption_column, has_captions, image_column, read_captions
from dalle.data.custom.records import IndexedRecords, Record, Shard, Source
from dalle.data.custom.split_names import canonical_split
from dalle.data.custom.table_errors import friendly_errors, offline_if_unreachable
from dalle.data.parquet_errors import parquet_errors

_SHARDS = 16  # shards that a `save_to_disk` data set is split into for streaming
_CHUNK = 16  # records that a stream reads at a time; each has its image's bytes in memory
_KEY = "__key__"  # record names in the WebDataset layout of the hub


class TableSource(Source):
    """A table with an image column and a caption column (strings, or lists of strings).

    A record's key is its value in column data.key; else FILE/ROW, or only ROW for a data set of the hub.

    Args:
        load: loads the table with `datasets`; its argument says whether to stream.
        where: name of the source in error messages.
        files: the local Parquet files; empty for other sources.
        image: name of the column with images; None tries the usual ones.
        caption: name of the column with captions; None tries the usual ones.
        key: name of the column with record names; None: file and row.
        captioned: whether a caption column is required.

    Raises:
        ValueError: the table cannot be loaded, or lacks a column.
    """

    def __init__(
        self,
        load: Callable[[bool], Any],
        where: str,
        files: list[Path],
        image: str | None,
        caption: str | None,
        key: str | None,
        captioned: bool = True,
    ):
        self.load, self.where, self.files = load, where, files
        self.folders = list(dict.fromkeys(file.parent for file in files))
        self.image, self.caption, self.key, self.captioned = image, caption, key, captioned

    def rows(self) -> ArrowRecords:
        """All records by index."""
        with friendly_errors(self.where):
            table = self.load(False)
        names = table.column_names
        table = self._without_decoding(table)
        if (key := self._key(names)) is not None:
            # The whole column at once: row by row would take minutes
            values = table.select_columns([key])[:][key]
            keys = [str(row if value is None else value) for row, value in enumerate(values)]
        elif self.files:
            keys = [f"{file.name}/{row}" for file in self.files for row in range(row_count(file))]
        else:
            keys = [str(row) for row in range(len(table))]
        return ArrowRecords(table, keys, self._image(names), self._caption(names), self.folders)

    def shards(self, images: bool = True) -> list[Shard]:
        """The same records for sequential reading, shard by shard."""
        with friendly_errors(self.where):
            stream = self.load(True)
            # A stream of files without a schema knows its columns only after its first record
            names = list(stream.features or next(iter(stream)))
        image, caption, key = self._image(names), self._caption(names), self._key(names)
        assert caption is not None, "streams are for training, which needs captions"
        stream = self._without_decoding(stream)
        if not images:
            stream = stream.select_columns(list(dict.fromkeys([caption] + ([key] if key else []))))
        count = stream.num_shards
        named = [file.name for file in self.files]
        if len(named) != count:  # `datasets` shards by its own rule, so names of files would be wrong
            named = [str(number) for number in range(count)]

        stream_shards = [stream.shard(num_shards=count, index=number) for number in range(count)]
        shown, classes = image if images else None, _class_names(stream.features, caption)
        read = partial(self._records, image=shown, caption=caption, key=key, classes=classes)
        return [
            Shard(name, partial(read, stream_shard, name))
            for name, stream_shard in zip(named, stream_shards, strict=True)
        ]

    def _records(
        self,
        stream_shard: Any,
        name: str,
        image: str | None,
        caption: str,
        key: str | None,
        classes: Sequence[str] | None,
    ) -> Iterator[Record]:
        row = 0
        # `iter` and not `__iter__`, which would split the records among the loader's workers: each reads all of them.
        chunks = stream_shard.iter(_CHUNK)
        while True:
            with friendly_errors(self.where):  # a file, or the connection, may have gone since the stream was opened
                chunk = next(chunks, None)
            if chunk is None:
                return
            for at, captions in enumerate(chunk[caption]):
                own = f"{name}/{row}" if key is None or chunk[key][at] is None else str(chunk[key][at])
                content, fault = (None, None) if image is None else parse_image_cell(chunk[image][at], self.folders)
                cleaned, missing = _read_cell(captions, caption, classes)
                yield Record(own, cleaned, content, fault, missing)
                row += 1

    def _image(self, names: list[str]) -> str:
        return image_column(self.image, [name for name in names if name != _KEY], self.where)

    def _caption(self, names: list[str]) -> str | None:
        others = [name for name in names if name != _KEY]
        if not self.captioned and not has_captions(self.caption, others):
            return None
        return caption_column(self.caption, others, self.where)

    def _key(self, names: list[str]) -> str | None:
        if self.key is None:
            return _KEY if _KEY in names else None
        if self.key not in names:
            raise ValueError(
                f"{self.where} has no column {self.key!r}: there are {', '.join(names)}; set data.key to one"
            )
        return self.key

    def _without_decoding(self, table: Any) -> Any:
        """Keep images as bytes: a broken one then fails in `pair`, where it can be skipped; skipping ahead is cheap."""
        import datasets

        # A table may have other image columns than the one that is trained on: none is decoded
        for name, feature in (table.features or {}).items():
            if isinstance(feature, datasets.Image):
                table = table.cast_column(name, datasets.Image(decode=False))
        return table


class ArrowRecords(IndexedRecords):
    """Records of a memory-mapped Arrow table.

    Args:
        table: a `datasets.Dataset`.
        keys: name of each record.
        image: image column.
        caption: caption column; None if there are no captions.
        folders: folders that relative paths of images start from.
    """

    def __init__(
        self, table: Any, keys: list[str], image: str, caption: str | None, folders: Sequence[Path] = ()
    ) -> None:
        self.keys, self.image, self.caption, self.folders = keys, image, caption, folders
        # Images of other columns are never read
        self.table = table.select_columns(list(dict.fromkeys([image, caption] if caption else [image])))
        self.texts = table.select_columns([caption]) if caption else None  # reading captions alone skips the images
        self.classes = _class_names(table.features, caption)

    def record(self, row: int) -> Record:
        """The record at index `row`."""
        found = self.table[row]
        image, fault = parse_image_cell(found[self.image], self.folders)
        captions, missing = self._captions(found)
        return Record(self.keys[row], captions, image, fault, missing)

    def captions(self, row: int) -> tuple[str, ...]:
        """The captions of a record, without reading its image."""
        return () if self.texts is None else self._captions(self.texts[row])[0]

    def _captions(self, found: dict[str, Any]) -> tuple[tuple[str, ...], str | None]:
        if self.caption is None:
            return (), None
        return _read_cell(found[self.caption], self.caption, self.classes)


def _class_names(features: Any, caption: str | None) -> Sequence[str] | None:
    """The names of the classes that a `ClassLabel` column holds the numbers of; None if it is another column."""
    return None if features is None or caption is None else getattr(features[caption], "names", None)


def _read_cell(value: Any, caption: str, classes: Sequence[str] | None) -> tuple[tuple[str, ...], str | None]:
    """The captions in a cell of the column `caption`, as `read_captions`; the number of a class becomes its name."""
    if classes is not None and isinstance(value, int):
        value = classes[value] if value >= 0 else None  # -1 stands for an unknown class
    return read_captions(value, lines=caption == "txt")


def parquet_source(
    files: list[Path], image: str | None, caption: str | None, key: str | None, captioned: bool = True
) -> TableSource:
    """Open local Parquet files; those without rows, which some tools write for the last shard, add nothing.

    Raises:
        ValueError: a file is not a complete Parquet file, has other columns than the first, or there are no rows.
    """
    filled = [file for file in files if row_count(file)]
    if not filled:
        raise ValueError(
            f"{files[0]}: there are no rows in {'it' if len(files) == 1 else f'any of {len(files)} files'}"
        )
    files = filled
    _check_columns(files)

    def load(stream: bool) -> Any:
        import datasets

        # A name may hold the signs of a pattern
        return datasets.load_dataset(
            "parquet", data_files=[glob.escape(str(f)) for f in files], split="train", streaming=stream
        )

    where = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    return TableSource(load, where, files, image, caption, key, captioned)


def hub_source(
    name: str, split: str, image: str | None, caption: str | None, key: str | None, captioned: bool = True
) -> TableSource:
    """Open a data set of the hub, `owner/name`."""

    def load(stream: bool) -> Any:
        import datasets

        with offline_if_unreachable(name):
            return datasets.load_dataset(name, split=split, streaming=stream)

    return TableSource(load, f"{name} (not a local folder, so taken as a hub id)", [], image, caption, key, captioned)


def is_saved(root: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of Hugging Face datasets."""
    return (root / "dataset_dict.json").is_file() or all(
        (root / name).is_file() for name in ("dataset_info.json", "state.json")
    )


def saved_source(
    root: Path, split: str, image: str | None, caption: str | None, key: str | None, captioned: bool = True
) -> TableSource:
    """Open a folder written by `save_to_disk` of Hugging Face datasets.

    Raises:
        ValueError: it has splits but not this one, or has none and `split` is not "train".
    """
    with friendly_errors(str(root)):
        import datasets

        found = datasets.load_from_disk(str(root))
    splits = found if isinstance(found, datasets.DatasetDict) else {"train": found}
    split = next((own for own in splits if canonical_split(own) == canonical_split(split)), split)
    if split not in splits:
        raise ValueError(
            f"{root} has no split {split!r}: there are {', '.join(map(str, splits))}; set data.split to one"
        )
    table = splits[split]

    def load(stream: bool) -> Any:
        # No shard without rows
        return table.to_iterable_dataset(num_shards=max(1, min(_SHARDS, len(table)))) if stream else table

    return TableSource(load, str(root), [], image, caption, key, captioned)


def _check_columns(files: list[Path]) -> None:
    """Tables that are read as one must have the same columns."""
    columns = {}
    for file in files:
        with parquet_errors(file):
            columns[file] = parquet.read_schema(file).names
    first = files[0]
    for file, own in columns.items():
        if set(own) != set(columns[first]):
            raise ValueError(
                f"{file} has the columns {', '.join(own)}, and {first.name} has {', '.join(columns[first])}: give "
                "tables with the same columns"
            )


def row_count(file: Path) -> int:
    """The number of rows of a Parquet file, from its footer.

    Raises:
        ValueError: it is not a complete Parquet file.
    """
    with parquet_errors(file):
        return parquet.read_metadata(file).num_rows
