"""The images of a folder, of files or of a data set of the hub: what each is called, where it is, when it changed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pyarrow.parquet as parquet

from dalle.apps.search.store import Source
from dalle.data.custom.cells import parse_image_cell
from dalle.data.custom.columns import IMAGES, image_column, usual_name
from dalle.data.custom.folder import FolderSource, count_unsupported, no_images
from dalle.data.custom.open_source import expand_pattern, is_hub_id
from dalle.data.custom.parquet import ArrowRecords, hub_source, is_saved, parquet_source, saved_source
from dalle.data.custom.records import FileSpan, IndexedRecords, Record
from dalle.data.custom.walk import log_ignored, walk
from dalle.data.custom.webdataset import TarSource
from dalle.files import missing_path, url_of
from dalle.images.read import EXTENSIONS


@dataclass(frozen=True)
class Item:
    """An image that is there, before anything of it is read.

    Attributes:
        path: what it is called: its file, FILE.tar/NAME, FILE.parquet/ROW, FOLDER/SPLIT/ROW or owner/name/SPLIT/ROW.
        file, offset, size: where its bytes are; of a table the file, the folder, or the hub's name.
        row: of a table, in the file; -1 elsewhere.
        stamp: differs once the file has been changed, or another of its columns is chosen.
        rows, number: what reads it.
        source: number of the source that it is of.
    """

    path: str
    file: str
    offset: int
    size: int
    row: int
    stamp: str
    rows: IndexedRecords
    number: int
    source: int

    @property
    def identity(self) -> str:
        """The name of this image in the index: path, offset and row."""
        return identity(self.path, self.offset, self.row)


def identity(path: str, offset: int, row: int) -> str:
    """The key of an image in an index; the path, and not the file, as it tells splits of a data set apart."""
    return f"{path}\0{offset}\0{row}"


def absolute(source: Source) -> Source:
    """The source by a path that holds wherever a command is run; a hub id, or a URL, as it is."""
    path = (
        source.path
        if is_hub_id(source.path) or url_of(source.path)
        else os.path.abspath(os.path.expanduser(source.path))
    )
    return Source(path, source.split, source.image, source.caption)


def items_of(source: Source, number: int = 0) -> Iterator[Item | str]:
    """All images of a source, in an order that is the same each time; a str names what was passed over, and why.

    Args:
        source: the source.
        number: what its items call it.

    Raises:
        ValueError: nothing is there, or no images are in it.
    """
    try:
        for item in _items(source):
            yield item if isinstance(item, str) else replace(item, source=number)
    except ValueError as error:
        raise ValueError(_with_names_of_options(error)) from error


def _with_names_of_options(error: ValueError) -> str:
    """The message of an error, with the options of `dalle index` in place of those of a recipe."""
    return re.sub(r"\bdata\.(image|caption|split)\b", r"\1 (--\1)", str(error))


def _items(source: Source) -> Iterator[Item | str]:
    local = Path(source.path)
    if is_hub_id(source.path):
        yield from _of_dataset(source.path, source)
    elif local.is_dir():
        yield from _of_folder(local, source)
    else:
        files = expand_pattern(local)
        if not files:
            raise ValueError(missing_path(source.path, f"no such file or folder: {source.path}"))
        other = next((file for file in files if file.suffix.lower() not in (".parquet", ".tar", *EXTENSIONS)), None)
        if other is not None:
            raise ValueError(f"{other}: expected a folder, images, or files that end in .parquet or in .tar")
        for file in files:
            yield from _of_file(file, source)


def read_item(row: dict[str, object], source: Source) -> Record:
    """The record of a row of an index, to read its image again."""
    path, file, number = str(row["path"]), str(row["file"]), int(str(row["row"]))
    if number < 0:  # in a file of its own, or in a tar
        return Record(path, image=FileSpan(file, int(str(row["offset"])), int(str(row["size"]))))
    if is_hub_id(file):
        return _dataset_rows(file, source).record(number)
    try:
        if is_saved(Path(file)):
            return _dataset_rows(file, source).record(number)
        with parquet.ParquetFile(file) as table:
            column = image_column(source.image, table.schema_arrow.names, file)
            for group in range(table.num_row_groups):
                count = table.metadata.row_group(group).num_rows
                if number < count:
                    found = table.read_row_group(group, [column]).column(column)[number].as_py()
                    image, fault = parse_image_cell(found, [Path(file).parent])
                    return Record(path, image=image, fault=fault)
                number -= count
    except (OSError, ValueError, IndexError) as error:  # gone, or no longer the table that it was
        return Record(path, fault=f"its file cannot be read ({error})")
    return Record(path, fault="the file has not so many rows any more")


def _of_folder(root: Path, source: Source) -> Iterator[Item | str]:
    if is_saved(root):
        yield from _of_dataset(str(root), source)
        return
    found = walk(root)
    files = found.files
    by_ending = {ending: [file for file in files if file.suffix.lower() == ending] for ending in (".parquet", ".tar")}
    images = any(file.suffix.lower() in EXTENSIONS for file in files)
    if not images and not any(by_ending.values()):
        raise no_images(root, files, ".parquet", ".tar")
    log_ignored(root, found.ignored + count_unsupported(files, ".parquet", ".tar"))
    if images:
        yield from _of_files(FolderSource(root, files, source.caption, captioned=False).rows())
    for file in (*by_ending[".parquet"], *by_ending[".tar"]):
        try:
            yield from _of_file(file, source)
        except ValueError as error:  # one file of many: a table of something else, or not whole
            yield _with_names_of_options(error)


def _of_file(file: Path, source: Source) -> Iterator[Item | str]:
    ending = file.suffix.lower()
    if ending == ".parquet":
        yield from _of_table(file, source)
    elif ending == ".tar":
        yield from _of_files(TarSource([file], source.image, source.caption, captioned=False).rows())
    else:
        yield from _of_files(FolderSource(file.parent, [file], source.caption, captioned=False).rows())


def _of_files(rows: IndexedRecords) -> Iterator[Item | str]:
    stamp_of = cache(_stamp)  # all images of a tar have one
    for number, key in enumerate(rows.keys):
        record = rows.record(number)
        if record.fault is not None:
            yield f"{key}: {record.fault}"
            continue
        span = record.image
        assert isinstance(span, FileSpan)
        inside = span.offset > 0  # of a tar file, whose records are called FILE/NAME
        path = f"{span.file}/{key.partition('/')[2]}" if inside else span.file
        yield Item(path, span.file, span.offset, span.size, -1, stamp_of(span.file), rows, number, 0)


def _of_table(file: Path, source: Source) -> Iterator[Item | str]:
    rows, stamp = parquet_source([file], source.image, source.caption, None, False).rows(), _stamp(str(file))
    # Other images once another column is chosen; the one found by name is not noted, as indexes noted none at first
    if source.image not in (None, usual_name(parquet.read_schema(file).names, IMAGES)):
        stamp += f" {source.image}"
    for row in range(len(rows)):
        yield Item(f"{file}/{row}", str(file), 0, -1, row, stamp, rows, row, 0)


def _of_dataset(name: str, source: Source) -> Iterator[Item | str]:
    rows = _dataset_rows(name, source)
    stamp = f"{source.split} {rows.table._fingerprint}"  # changes with the data
    for row in range(len(rows)):
        yield Item(f"{name}/{source.split}/{row}", name, 0, -1, row, stamp, rows, row, 0)


def _dataset_rows(name: str, source: Source) -> ArrowRecords:
    """The records of a data set of the hub, or of a folder that `save_to_disk` wrote."""
    columns = (source.image, source.caption, None, False)
    if is_hub_id(name):
        return hub_source(name, source.split, *columns).rows()
    return saved_source(Path(name), source.split, *columns).rows()


def _stamp(file: str) -> str:
    try:
        found = os.stat(file)
    except OSError:  # gone since the folder was listed: reading it will tell
        return ""
    return f"{found.st_mtime_ns} {found.st_size}"
