"""Tar shards in the WebDataset layout: consecutive files with one name, 000012.jpg and 000012.txt, are one record.

Scanning a shard reads headers and captions only; images are stored as byte ranges of the tar file.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from unicodedata import normalize

from dalle.data.custom.columns import CAPTIONS, caption_column, read_captions, usual_name
from dalle.data.custom.records import FileSpan, Record, RecordIndex, Shard, Source, require_utf8
from dalle.data.custom.texts import read_json
from dalle.data.custom.walk import count_by_extension, describe_ignored, log_ignored_once
from dalle.files import lfs_pointer
from dalle.images.read import EXTENSIONS

# WebDataset's rule: the record's name, then everything after its first dot
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)$")
_TEXTS = ("txt", "text", "caption")
_PEEK = 100  # records of the first shard that are checked when a source is opened
_BLOCK = 512  # bytes of a tar block


@dataclass
class _Group:
    """The files of one record, by the part of their names after the first dot."""

    name: str
    texts: dict[str, bytes] = field(default_factory=dict)
    images: dict[str, FileSpan] = field(default_factory=dict)


class TarSource(Source):
    """Tar shards. A record's key is SHARD/NAME.

    Captions are the lines of NAME.txt, or the entry `caption`, `captions`, `text` or `texts` of NAME.json.

    Args:
        files: the shards.
        image: extension of the images; None takes any known one.
        caption: extension of the captions ("title.txt") or an entry of the JSON ("json.title"); None: the usual ones.
        captioned: whether captions are required.

    Raises:
        ValueError: the first shard holds no images, or not the requested captions; or no shard holds any record.
    """

    def __init__(self, files: list[Path], image: str | None, caption: str | None, captioned: bool = True):
        self.files, self.image, self.caption = files, image, caption
        # Mistakes in the options show in the first records: better now than as a bad record for each image
        first = [group for group in islice(_read_groups(files[0]), _PEEK) if isinstance(group, _Group)]
        if first and not any(group.images for group in first):
            raise ValueError(
                f"{files[0]} holds no images among its first {_PEEK} records: expected 000.jpg, 000.txt, ..."
            )
        if not first:
            _require_records(files)
        # Of the records that dots in names have merged, too
        groups = [own for group in first for own in (group, *_split_group(group))]
        columns = dict.fromkeys(column for group in groups for column in (*group.images, *_columns(group)))
        if first and image is not None and image not in columns:
            raise ValueError(f"{files[0]} has no NAME.{image}: there are {', '.join(columns)}; set data.image to one")
        if first and caption is not None:
            caption_column(caption, columns, str(files[0]))
        if captioned and first and not any(map(self._has_caption, first)):
            kinds = ", ".join(columns)
            raise ValueError(
                f"{files[0]}: no image of its first {len(first)} records has a caption: expected 000.txt right before "
                f"or behind 000.jpg (tar --sort=name), and there are {kinds}; data.caption names another kind"
            )

    def rows(self) -> RecordIndex:
        """All records by index."""
        ignored = {file: Counter[str]() for file in self.files}
        index = RecordIndex(record for file in self.files for record in self._records_in_utf8(file, ignored[file]))
        for file, reasons in ignored.items():
            log_ignored_once(file, reasons)
        return index

    def shards(self, images: bool = True) -> list[Shard]:
        """The same records for sequential reading, shard by shard."""
        return [Shard(file.name, partial(self._records_in_utf8, file)) for file in self.files]

    def _records_in_utf8(self, file: Path, ignored: Counter[str] | None = None) -> Iterator[Record]:
        return map(require_utf8, self._records(file, ignored))

    def _records(self, file: Path, ignored: Counter[str] | None) -> Iterator[Record]:
        for group in _read_groups(file, ignored):
            if isinstance(group, str):
                yield Record(file.name, fault=group)
                continue
            for own in [group] if self.image in group.images else _split_group(group):
                yield self._record(f"{file.name}/{own.name}", own)

    def _record(self, key: str, group: _Group) -> Record:
        if not group.images:
            return Record(key, fault=f"there is no image among {', '.join(group.texts)}")
        # "jpg" before "seg.jpg": an image without a further dot is the record's own
        plain = [ending for ending in group.images if "." not in ending] or list(group.images)
        if "." in plain[0] and len(plain) > 1 and self.image not in group.images:
            return Record(
                key,
                fault=f"{', '.join(plain[:3])} are images of one record, because a name ends at its first dot: "
                "choose one with data.image, or rename the files",
            )
        image = group.images[self.image if self.image in group.images else plain[0]]
        try:
            captions, fault = read_captions(*self._captions(group))
        except ValueError as error:  # invalid JSON
            captions, fault = (), f"its captions cannot be read ({error})"
        return Record(key, captions, image, None, fault or self._missing(group))

    def _has_caption(self, group: _Group) -> bool:
        """Whether an image of a group has a caption, or a fault with a better reason than that it has none."""
        records = [(own, self._record("", own)) for own in _split_group(group) if own.images]
        return any(found.captions or found.fault or (own.texts and found.caption_fault) for own, found in records)

    def _missing(self, group: _Group) -> str | None:
        """Why a group has no caption, if it has no text."""
        wanted = "NAME.txt" if self.caption is None else f"NAME.{self.caption.split('.json')[0]}"
        return None if group.texts else f"there is no caption: expected {wanted} right before or behind it in the tar"

    def _captions(self, group: _Group) -> tuple[Any, bool]:
        """The captions of a group as they stand there, and whether each line is one."""
        texts = group.texts
        if self.caption is not None and not self.caption.startswith("json."):
            return texts.get(self.caption, b""), True
        for name in (kind for end in _TEXTS for kind in (end, *(f"{of}.{end}" for of in group.images))):  # a.jpg.txt
            if self.caption is None and name in texts:
                return texts[name], True
        entries = _entries(group)
        # Behind "json."
        own = usual_name(entries, CAPTIONS) if self.caption is None else self.caption[5:]
        return None if own is None else entries.get(own), False


def _read_groups(file: Path, ignored: Counter[str] | None = None) -> Iterator[_Group | str]:
    """Yield the records of a shard; a str, if any, comes last and says why reading ended early.

    Members that are neither images nor texts are counted in `ignored`, by reason.
    """
    group, fault, end = _Group(""), None, 0
    try:
        with tarfile.open(file, "r:") as tar:  # without compression, or there would be no byte ranges
            for member in tar:
                end = tar.offset  # past this member and its padding
                named = _MEMBER.match(member.name)
                if named is None or not member.isfile():
                    if ignored is not None:
                        ignored.update(_reason(member))
                    continue
                # The same name may be composed or decomposed
                name, ending = normalize("NFC", named[1]), named[2].lower()
                # A name that comes again is the next record's: nothing is overwritten in silence
                if name != group.name or ending in group.images or ending in group.texts:
                    if group.texts or group.images:
                        yield group
                    group = _Group(name)
                if "." + ending.rsplit(".")[-1] in EXTENSIONS:
                    group.images[ending] = FileSpan(str(file), member.offset_data, member.size)
                elif ending.rsplit(".")[-1] in (*_TEXTS, "json"):
                    content = tar.extractfile(member)
                    assert content is not None
                    group.texts[ending] = content.read()
                elif ignored is not None:
                    ignored.update(count_by_extension([Path(member.name)]))
        if not _has_end_marker(file, end):
            fault = f"the tar file is truncated or damaged after record {group.name!r}"
    except tarfile.TarError as error:
        fault = f"the tar file is {lfs_pointer(file) or f'damaged, or is compressed: unpack it to .tar ({error})'}"
    except OSError as error:
        fault = f"the tar file cannot be read ({error})"
    # A file that is cut off belongs to the last group, which would be an image half gray: it is dropped
    truncated = fault is not None and end > _size(file)  # its last file, at least, is incomplete
    if (group.texts or group.images) and not truncated:
        yield group
    if fault is not None:
        yield fault


def _require_records(files: list[Path]) -> None:
    """Refuse shards of which none has a record, not even a broken one.

    Raises:
        ValueError: so it is; the message says what is there.
    """
    ignored = Counter[str]()
    if all(next(_read_groups(file, ignored), None) is None for file in files):
        there = f"; found {describe_ignored(ignored)}" if ignored else ""
        where = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        raise ValueError(f"{where}: no images: expected 000.jpg, 000.txt, ... in the tar{there}")


def _reason(member: tarfile.TarInfo) -> list[str]:
    """Why a member is not used that is no file with an extension; none if it is hidden or a folder, as in folders."""
    if member.isdir() or member.name.rpartition("/")[2].startswith("."):
        return []
    return ["links"] if member.issym() or member.islnk() else ["files without an extension"]


def _size(file: Path) -> int:
    """The size of a file in bytes; 0 if it has gone."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _split_group(group: _Group) -> list[_Group]:
    """Split a group that dots in names have merged: "a 1.0.png", "a 1.1.png".

    By WebDataset's rule a name ends at its first dot. But if each image has a text of its own, each is a record.
    """
    if any("." not in ending for ending in group.images):
        return [group]
    parts = {ending.rpartition(".")[0]: _Group("") for ending in group.images}
    for of_part, of_group in (("images", group.images), ("texts", group.texts)):
        for ending, content in of_group.items():
            before, _, kind = ending.rpartition(".")
            if before in parts:
                getattr(parts[before], of_part)[kind] = content
    if not all(part.texts for part in parts.values()) or not parts:
        return [group]
    for before, part in parts.items():
        part.name = f"{group.name}.{before}"
    return list(parts.values())


def _has_end_marker(file: Path, end: int) -> bool:
    """Whether the final block of zeros exists: tarfile silently treats a damaged header as the end, too."""
    with file.open("rb") as content:
        content.seek(end)
        return content.read(_BLOCK) == bytes(_BLOCK)


def _entries(group: _Group) -> dict[str, Any]:
    own = (f"{of}.json" for of in group.images if f"{of}.json" in group.texts)  # a.jpg.json
    content = read_json(group.texts.get("json") or group.texts.get(next(own, ""), b"{}"))
    return content if isinstance(content, dict) else {}


def _columns(group: _Group) -> Iterator[str]:
    """All valid values of data.caption for this group."""
    yield from group.texts
    try:
        yield from (f"json.{name}" for name in _entries(group))
    except ValueError:
        return
