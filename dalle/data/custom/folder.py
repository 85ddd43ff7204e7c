"""Images in a folder, with a metadata file or with a text file each."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from dalle.data.custom.records import (
    CAPTIONS,
    FileSpan,
    Index,
    Record,
    Shard,
    Source,
    caption_column,
    captions_of,
    has_captions,
    in_utf8,
)
from dalle.data.custom.walk import by_endings, ending, name_of, tell, walk
from dalle.images.read import EXTENSIONS

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_TEXTS = (".txt", ".caption")
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
_STATISTICS = "_stats.json"  # of img2dataset, beside its shards


class FolderSource(Source):
    """The images that metadata files name; without one, all images, with NAME.txt (or .caption, .json) beside each.

    A record's key is the image's path within the folder.

    Args:
        root: the folder.
        files: those in it that count.
        caption: column of a metadata file, or ending of the files beside images ("json.ENTRY": an entry of
            NAME.json); None: the usual ones.
        captioned: whether a record needs a caption. Where not, images without one are records too.

    Attributes:
        passed: how many of the files were not used, by the reason.

    Raises:
        ValueError: no images, no captions, or a metadata file that cannot be read or names what is not there.
    """

    def __init__(self, root: Path, files: list[Path], caption: str | None, captioned: bool = True):
        metadata = [file for file in files if file.name in METADATA]
        images = [file for file in files if ending(file) in EXTENSIONS]
        beside = _Beside(files, caption)
        if not captioned:
            records = _all(root, metadata, files, images, caption, beside)
        elif metadata:
            records = _listed(root, metadata, files, caption)
        elif not images:
            raise ValueError(f"{root} holds no images: expected {', '.join(EXTENSIONS)}, .parquet or .tar files in it")
        else:
            records = [beside.record(root, image) for image in images]
            if not any(record.captions for record in records):
                raise ValueError(
                    f"{root} holds images but no captions: expected metadata.jsonl, metadata.csv or "
                    f"NAME{beside.endings[0]} beside NAME{images[0].suffix}"
                )
        self.index = Index(map(in_utf8, records))
        taken = {record.image.file for record in records if isinstance(record.image, FileSpan)}
        self.passed = _passed(files, taken | {str(file) for file in (*metadata, *beside.used)}, bool(metadata))

    def rows(self) -> Index:
        return self.index

    def shards(self, images: bool = True) -> list[Shard]:
        return [Shard("", lambda: (self.index.record(row) for row in range(len(self.index))))]


class _Beside:
    """Texts beside images: NAME.txt or NAME.caption, whose lines are captions, or entries of NAME.json.

    Attributes:
        used: the files that were asked for.
    """

    def __init__(self, files: list[Path], caption: str | None):
        self.used: list[Path] = []
        self.entries: tuple[str, ...] = CAPTIONS
        self.endings: tuple[str, ...] = (*_TEXTS, ".json")
        if caption is not None:
            kind, _, entry = caption.partition(".")
            self.endings = (f".{kind.lower()}",)
            if kind == "json" and entry:
                self.entries = (entry,)
        known = {*_TEXTS, ".json", *self.endings}
        self.files = {name_of(file): file for file in files if ending(file) in known}

    def of(self, image: Path) -> Path | None:
        """The file with an image's captions; of several the first kind counts."""
        for kind in self.endings:
            for name in (image.with_suffix(kind), Path(f"{image}{kind}")):
                found = self.files.get(name_of(name))
                if found is not None:
                    return found
        return None

    def wanted(self, image: Path) -> str:
        """What was looked for beside an image."""
        return " or ".join(image.with_suffix(kind).name for kind in self.endings)

    def record(self, root: Path, image: Path) -> Record:
        """An image and its captions."""
        key, text = _key(root, image), self.of(image)
        if text is None:
            return Record(key, fault=f"there is no caption: expected it in {self.wanted(image)}")
        self.used += [file for kind in (*_TEXTS, ".json") if (file := self.files.get(name_of(image.with_suffix(kind))))]
        self.used.append(text)
        try:
            content = text.read_bytes()
            captions = self._entry(content) if ending(text) == ".json" else captions_of(content, lines=True)
        except (OSError, ValueError) as error:  # JSON or UTF-8 that is none
            return Record(key, fault=f"{text.name} cannot be read ({error})")
        return Record(key, captions, FileSpan(str(image)))

    def _entry(self, content: bytes) -> tuple[str, ...]:
        entries = json.loads(content)
        found = [entries[name] for name in self.entries if isinstance(entries, dict) and name in entries]
        return captions_of(found[0]) if found else ()


def captioned_images(files: list[Path], caption: str | None) -> bool:
    """Whether some image among these files has a text beside it."""
    beside = _Beside(files, caption)
    return any(beside.of(file) is not None for file in files if ending(file) in EXTENSIONS)


def _passed(files: list[Path], used: set[str], metadata: bool) -> Counter[str]:
    """How many files were not used, by the reason."""
    others = [file for file in files if str(file) not in used and not file.name.endswith(_STATISTICS)]
    named = "images that no metadata file names" if metadata else "images without a caption"
    reasons = dict.fromkeys(EXTENSIONS, named) | dict.fromkeys(_TEXTS, "texts without an image")
    reasons |= {".parquet": "tables beside images (.parquet)", ".tar": "archives beside images (.tar)"}
    rest = [file for file in others if ending(file) not in reasons]
    theirs = {file.with_suffix("") for file in rest}  # texts of images that cannot be read go without saying
    told = [
        file
        for file in others
        if ending(file) in reasons and not (ending(file) in _TEXTS and file.with_suffix("") in theirs)
    ]
    return Counter(reasons[ending(file)] for file in told) + by_endings(rest)


def unread(files: list[Path], *readable: str) -> Counter[str]:
    """How many files are neither images nor what tells of images, nor of other endings that are read."""
    known = {*EXTENSIONS, *_TEXTS, ".json", ".jsonl", ".csv", *readable}
    return by_endings(file for file in files if ending(file) not in known)


def _all(
    root: Path, metadata: list[Path], files: list[Path], images: list[Path], caption: str | None, beside: _Beside
) -> list[Record]:
    """Every image, with the captions that it may have."""
    if not images:
        raise ValueError(f"{root} holds no images: expected {', '.join(EXTENSIONS)} in it")
    listed = {record.key: record for record in (_listed(root, metadata, files, caption, False) if metadata else [])}
    for image in images:
        key = _key(root, image)
        if key not in listed:
            has_text = beside.of(image) is not None
            listed[key] = beside.record(root, image) if has_text else Record(key, (), FileSpan(str(image)))
    return list(listed.values())


def image_files(path: str | Path) -> list[Record]:
    """An image file, or all images in a folder and in those below it, in the order of their paths, without captions.

    A file that is named is taken whatever its ending says; what has a name that begins with a dot is left out.

    Raises:
        ValueError: nothing is there, or no images are in it.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return [in_utf8(Record(str(root), (), FileSpan(str(root))))]
    if not root.is_dir():
        raise ValueError(f"{root}: no such file or folder")
    walked = walk(root)
    found = [file for file in walked.files if ending(file) in EXTENSIONS]
    if not found:
        raise ValueError(f"{root} holds no images: expected {', '.join(EXTENSIONS)} in it")
    tell(root, walked.passed + unread(walked.files))
    return [in_utf8(Record(str(file), (), FileSpan(str(file)))) for file in found]


def _listed(
    root: Path, metadata: list[Path], files: list[Path], caption: str | None, captioned: bool = True
) -> list[Record]:
    """The records of metadata files; several rows for one image are several captions."""
    there = {name_of(file): file for file in files}
    captions: dict[Path, list[str]] = {}
    for file in metadata:
        rows = list(_ROWS[file.suffix](file))
        if not rows:
            raise ValueError(f"{file} is empty: expected a row for each image, with file_name and a caption")
        columns = list(dict.fromkeys(name for _, row in rows for name in row))
        if "file_name" not in columns:
            raise ValueError(f"{file} has no column 'file_name': there are {', '.join(columns)}")
        others = [name for name in columns if name != "file_name"]
        column = caption_column(caption, others, str(file)) if captioned or has_captions(caption, others) else None
        for line, row in rows:
            name = row.get("file_name")
            if not isinstance(name, str) or not name:
                raise ValueError(f"{file}, line {line}: file_name is {name!r}, expected the path of an image")
            image = _named(file.parent, name, there)
            if image is None:
                raise ValueError(f"{file}, line {line}: there is no image {file.parent / name}")
            captions.setdefault(image, []).extend(captions_of(row.get(column)) if column else ())
    return [
        Record(_key(root, image), tuple(dict.fromkeys(own)), FileSpan(str(image))) for image, own in captions.items()
    ]


def _named(folder: Path, name: str, there: dict[str, Path]) -> Path | None:
    """The image that a metadata file means, whose names may be composed otherwise or have backslashes; None: none."""
    for own in (name, name.replace("\\", "/")):
        image = folder / own
        found = there.get(name_of(image)) or there.get(name_of(os.path.normpath(image)))
        if found is not None or image.is_file():
            return found or image
    return None


def _key(root: Path, image: Path) -> str:
    return image.relative_to(root).as_posix() if image.is_relative_to(root) else image.as_posix()


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
    lines = _lines(file)
    first = lines.readline()
    lines.seek(0)
    delimiter = max(_DELIMITERS, key=first.count)  # as spreadsheets of many countries write it
    reader = csv.DictReader(lines, strict=True, delimiter=delimiter, skipinitialspace=True)
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        for row in reader:
            if None in row:  # what stands beyond the last column
                raise ValueError(
                    f"{file}, line {reader.line_num} has more fields than the first line names: a caption with a "
                    f'{_DELIMITERS[delimiter]} stands in quotes, "a dog{delimiter} running"'
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num + 1}: {error}; is a quote left open there?") from error


def _parquet(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        yield from enumerate(parquet.read_table(file).to_pylist(), 1)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{file} is not a whole parquet file ({str(error).splitlines()[0]}): copy it anew") from error


_ROWS = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}


def _lines(file: Path) -> io.StringIO:
    """Lines with their ends, which may stand inside a quoted field of a csv."""
    try:
        return io.StringIO(file.read_text(encoding="utf-8-sig"), newline="")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as UTF-8 text ({error})") from error
