"""Pictures in a folder, with a metadata file or with a text file each."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dalle.data.custom.records import (
    Index,
    Place,
    Record,
    Shard,
    Source,
    caption_column,
    captions_of,
    has_captions,
    in_utf8,
)
from dalle.images.read import EXTENSIONS

log = logging.getLogger(__name__)

METADATA = ("metadata.jsonl", "metadata.csv")


class FolderSource(Source):
    """The pictures that a metadata.jsonl or metadata.csv names; without one, all pictures, NAME.txt beside NAME.jpg.

    A record's key is the picture's path within the folder.

    Args:
        root: the folder.
        files: those in it that count.
        caption: column of a metadata file; None: the usual ones.
        captioned: whether a record needs a caption. Where not, pictures without one are records too.

    Raises:
        ValueError: no pictures, no captions, or a metadata file that cannot be read or names what is not there.
    """

    def __init__(self, root: Path, files: list[Path], caption: str | None, captioned: bool = True):
        metadata = [file for file in files if file.name in METADATA]
        pictures = [file for file in files if file.suffix.lower() in EXTENSIONS]
        if not captioned:
            records = _all(root, metadata, files, pictures, caption)
        elif metadata:
            records = _listed(root, metadata, files, caption)
            _tell_of_others(root, pictures, records)
        elif not pictures:
            raise ValueError(
                f"{root} holds no pictures: expected {', '.join(EXTENSIONS)}, .parquet or .tar files in it"
            )
        else:
            records = [_with_text(root, picture) for picture in pictures]
            if not any(record.captions for record in records):
                raise ValueError(
                    f"{root} holds pictures but no captions: expected metadata.jsonl, metadata.csv or NAME.txt beside "
                    f"NAME{pictures[0].suffix}"
                )
        self.index = Index(map(in_utf8, records))

    def rows(self) -> Index:
        return self.index

    def shards(self, pictures: bool = True) -> list[Shard]:
        return [Shard("", lambda: (self.index.record(row) for row in range(len(self.index))))]


def _with_text(root: Path, picture: Path) -> Record:
    """A picture and the lines of the text beside it, each a caption."""
    key, text = picture.relative_to(root).as_posix(), picture.with_suffix(".txt")
    try:
        captions = captions_of(text.read_text(encoding="utf-8-sig"), lines=True)
    except FileNotFoundError:
        return Record(key, fault=f"there is no caption: expected it in {text.name}")
    except (OSError, UnicodeDecodeError) as error:
        return Record(key, fault=f"{text.name} cannot be read ({error})")
    return Record(key, captions, Place(str(picture)))


def _all(
    root: Path, metadata: list[Path], files: list[Path], pictures: list[Path], caption: str | None
) -> list[Record]:
    """Every picture, with the captions that it may have."""
    if not pictures:
        raise ValueError(f"{root} holds no pictures: expected {', '.join(EXTENSIONS)} in it")
    listed = {record.key: record for record in (_listed(root, metadata, files, caption, False) if metadata else [])}
    there = set(files)
    for picture in pictures:
        key = _key(root, picture)
        if key not in listed:
            has_text = picture.with_suffix(".txt") in there
            listed[key] = _with_text(root, picture) if has_text else Record(key, (), Place(str(picture)))
    return list(listed.values())


def picture_files(path: str | Path) -> list[Record]:
    """A picture file, or all pictures in a folder and in those below it, in the order of their paths, without captions.

    A file that is named is taken whatever its ending says; what has a name that begins with a dot is left out.

    Raises:
        ValueError: nothing is there, or no pictures are in it.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return [in_utf8(Record(str(root), (), Place(str(root))))]
    if not root.is_dir():
        raise ValueError(f"{root}: no such file or folder")
    found = [file for file in visible_files(root) if file.suffix.lower() in EXTENSIONS]
    if not found:
        raise ValueError(f"{root} holds no pictures: expected {', '.join(EXTENSIONS)} in it")
    return [in_utf8(Record(str(file), (), Place(str(file)))) for file in found]


def visible_files(root: Path) -> list[Path]:
    """All files below a folder in the order of their paths; nothing whose name begins with a dot, or lies in such."""
    return sorted(f for f in root.rglob("*") if f.is_file() and not _hidden(f.relative_to(root)))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _listed(
    root: Path, metadata: list[Path], files: list[Path], caption: str | None, captioned: bool = True
) -> list[Record]:
    """The records of metadata files; several rows for one picture are several captions."""
    there = set(files)
    captions: dict[Path, list[str]] = {}
    for file in metadata:
        rows = list(_jsonl(file) if file.suffix == ".jsonl" else _csv(file))
        if not rows:
            raise ValueError(f"{file} is empty: expected a row for each picture, with file_name and a caption")
        columns = list(dict.fromkeys(name for _, row in rows for name in row))
        if "file_name" not in columns:
            raise ValueError(f"{file} has no column 'file_name': there are {', '.join(columns)}")
        others = [name for name in columns if name != "file_name"]
        column = caption_column(caption, others, str(file)) if captioned or has_captions(caption, others) else None
        for line, row in rows:
            name = row.get("file_name")
            if not isinstance(name, str) or not name:
                raise ValueError(f"{file}, line {line}: file_name is {name!r}, expected the path of a picture")
            picture = file.parent / name
            if picture not in there and not picture.is_file():
                raise ValueError(f"{file}, line {line}: there is no picture {picture}")
            captions.setdefault(picture, []).extend(captions_of(row.get(column)) if column else ())
    return [
        Record(_key(root, picture), tuple(dict.fromkeys(own)), Place(str(picture))) for picture, own in captions.items()
    ]


def _key(root: Path, picture: Path) -> str:
    return picture.relative_to(root).as_posix() if picture.is_relative_to(root) else picture.as_posix()


def _jsonl(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(_lines(file), 1):
        if text.strip():
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {line} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f'{file}, line {line}: expected {{"file_name": ..., "text": ...}}, got {text[:60]!r}')
            yield line, row


def _csv(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(_lines(file), strict=True)
    try:
        for row in reader:
            if None in row:  # what stands beyond the last column
                raise ValueError(
                    f"{file}, line {reader.line_num} has more fields than the first line names: a caption with a comma "
                    'stands in quotes, "a dog, running"'
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num + 1}: {error}; is a quote left open there?") from error


def _lines(file: Path) -> io.StringIO:
    """Lines with their ends, which may stand inside a quoted field of a csv."""
    try:
        return io.StringIO(file.read_text(encoding="utf-8-sig"), newline="")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as UTF-8 text ({error})") from error


def _tell_of_others(root: Path, pictures: list[Path], records: list[Record]) -> None:
    keys = {record.key for record in records}
    others = [key for picture in pictures if (key := _key(root, picture)) not in keys]
    if others:
        log.warning(
            "%s: %d pictures that no metadata file names are left out, such as %s", root, len(others), others[0]
        )
