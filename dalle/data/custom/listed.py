"""Records of images that a table lists: metadata files beside images, and tables of captions under other names."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from dalle.data.custom.annotations import IN_PARQUET, CaptionTable
from dalle.data.custom.columns import caption_column, has_captions, read_captions, usual_name
from dalle.data.custom.metadata import read_rows
from dalle.data.custom.records import FileSpan, Record
from dalle.data.custom.walk import normalized_name
from dalle.files import url_of
from dalle.images.read import EXTENSIONS

_FILE_NAMES = ("file_name", "image_file_name")  # columns with the path of the image, as Hugging Face datasets has it
_LONG = 500  # characters: no path of a file, but an image in base64


class ListedImages:
    """Collects the captions that tables have for the images of a folder.

    Args:
        root: the folder.
        files: its files.
        others: files of other splits, whose rows are left out.

    Attributes:
        missing: number of captions for images that are not there, of tables that may list more than there is.
    """

    def __init__(self, root: Path, files: Iterable[Path], others: Collection[Path] = ()):
        self.root, self.missing = root, 0
        self.files = dict.fromkeys(files)
        self.by_path = {normalized_name(file): file for file in self.files}
        self.others = {normalized_name(file): file for file in others}
        self.captions: dict[Path, list[str]] = {}
        self.faults: dict[Path, str | None] = {}
        self.by_name: dict[str, list[Path]] = {}
        for file in (*self.files, *others):
            if file.suffix.lower() in EXTENSIONS:
                self.by_name.setdefault(normalized_name(file.name), []).append(file)
                self.by_name.setdefault(normalized_name(file.stem), []).append(file)

    def add_metadata(self, file: Path, caption: str | None, captioned: bool = True) -> None:
        """Read a metadata file.

        Args:
            file: the file.
            caption: the column with captions; None tries the usual ones.
            captioned: whether such a column must be there.

        Raises:
            ValueError: it is damaged, lacks a column, or names an image that is not there.
        """
        rows = list(read_rows(file))
        if not rows:
            raise ValueError(f"{file} is empty: expected a row for each image, with file_name and a caption")
        columns = list(dict.fromkeys(name for _, row in rows for name in row))
        path = usual_name(columns, _FILE_NAMES)
        if path is None:
            raise ValueError(f"{file} has no column 'file_name': there are {', '.join(columns)}{_embedded(rows[0][1])}")
        named = [name for name in columns if name != path]
        column = caption_column(caption, named, str(file)) if captioned or has_captions(caption, named) else None
        for place, row in rows:
            name = row.get(path)
            if not isinstance(name, str) or not name:
                raise ValueError(f"{file}, {place}: {path} is {name!r}, expected the path of an image")
            image = self._find(file.parent, name)
            if normalized_name(os.path.normpath(image or file.parent / name)) in self.others:
                continue
            if image is None:
                there = f"there is no image {file.parent / name}"
                if url_of(name) is not None:
                    there = f"{name[:60]!r} is an address: download the images first, as by img2dataset"
                raise ValueError(f"{file}, {place}: {there}")
            # Also without a caption: the image is then named as a broken record, and not left out in silence
            value = row.get(column) if column else None
            lacking = column is not None and column not in row
            self._add(image, value, f"it has no {column!r} in {file.name}, {place}" if lacking else None)

    def add_table(self, table: CaptionTable) -> None:
        """Take the captions of a table of another kind, whose images may lie in any folder, or not be there."""
        for name, value in table.rows:
            image = self._find(table.file.parent, name) or self._find(self.root, name) or self._named(name)
            if image is None:
                self.missing += 1
            elif normalized_name(image) not in self.others:
                self._add(image, value)

    def names_any(self, table: CaptionTable) -> bool:
        """Whether any image of a table is there."""
        places = (table.file.parent, self.root)
        return any(any(self._find(place, name) for place in places) or self._named(name) for name, _ in table.rows)

    def records(self) -> list[Record]:
        """A record for each image, in the order that they were found in."""
        return [
            Record(key_of(self.root, image), tuple(dict.fromkeys(own)), FileSpan(str(image)), None, self.faults[image])
            for image, own in self.captions.items()
        ]

    def _add(self, image: Path, value: Any, fault: str | None = None) -> None:
        captions, found = read_captions(value)
        self.captions.setdefault(image, []).extend(captions)
        self.faults[image] = fault or found

    def _find(self, folder: Path, name: str) -> Path | None:
        """The image that a row names, whatever its Unicode normalization or path separators; None if missing."""
        # Tables written on Windows have backslashes
        for own in (name, name.replace("\\", "/")):
            image = folder / own
            plain = Path(os.path.normpath(image))
            # As it is spelled first: IMG.JPG and IMG.jpg may both be there
            exact = next((path for path in (image, plain) if path in self.files), None)
            found = exact or self.by_path.get(normalized_name(image)) or self.by_path.get(normalized_name(plain))
            if found is not None or os.path.isfile(image):  # of Path, it raises where a name is too long for a file
                return found or image
        return None

    def _named(self, name: str) -> Path | None:
        """The one image of this name, with or without its extension, in any folder; None if there are several."""
        found = self.by_name.get(normalized_name(name.replace("\\", "/").rpartition("/")[2]), [])
        return found[0] if len(found) == 1 else None


def key_of(root: Path, image: Path) -> str:
    """The key of an image in a folder: its path within."""
    # Outside: tables may name such files
    return image.relative_to(root).as_posix() if image.is_relative_to(root) else image.as_posix()


def _embedded(row: dict[str, Any]) -> str:
    """What to do with a table whose cells are images, where one that names files is expected."""
    if any(
        isinstance(value, (bytes, dict)) or (isinstance(value, str) and len(value) > _LONG) for value in row.values()
    ):
        return f"; {IN_PARQUET}, with any other name"
    return ""
