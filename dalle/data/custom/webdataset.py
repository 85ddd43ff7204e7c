"""Tar files in the WebDataset layout: neighbours of one name, 000012.jpg and 000012.txt, are one record.

Only headers and captions are read on the way; images stay where they are until they are wanted.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from unicodedata import normalize

from dalle.data.custom.records import FileSpan, Index, Record, Shard, Source, caption_column, captions_of, in_utf8
from dalle.images.read import EXTENSIONS

_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)$")  # name and everything after its first dot
_TEXTS = ("txt", "text", "caption")
_PEEK = 100
_BLOCK = 512


@dataclass
class _Group:
    """Files of one record by what follows their name's first dot."""

    name: str
    texts: dict[str, bytes] = field(default_factory=dict)
    images: dict[str, FileSpan] = field(default_factory=dict)


class TarSource(Source):
    """Shards of tar files. A record's key is SHARD/NAME.

    Captions are the lines of NAME.txt, or `caption`, `captions`, `text` or `texts` of NAME.json; data.caption chooses
    another ending ("title.txt") or another entry of the JSON ("json.title").

    Raises:
        ValueError: the first shard holds no images, or not the captions that were asked for.
    """

    def __init__(self, files: list[Path], image: str | None, caption: str | None):
        self.files, self.image, self.caption = files, image, caption
        first = [group for group in islice(_groups(files[0]), _PEEK) if isinstance(group, _Group)]
        if first and not any(group.images for group in first):
            raise ValueError(
                f"{files[0]} holds no images among its first {_PEEK} records: expected 000.jpg, 000.txt, ..."
            )
        columns = dict.fromkeys(column for group in first for column in (*group.images, *_columns(group)))
        if image is not None and image not in columns:
            raise ValueError(f"{files[0]} has no NAME.{image}: there are {', '.join(columns)}; set data.image to one")
        if first and caption is not None:
            caption_column(caption, columns, str(files[0]))

    def rows(self) -> Index:
        return Index(record for shard in self.shards() for record in shard.records())

    def shards(self, images: bool = True) -> list[Shard]:
        return [Shard(file.name, partial(self._records_in_utf8, file)) for file in self.files]

    def _records_in_utf8(self, file: Path) -> Iterator[Record]:
        return map(in_utf8, self._records(file))

    def _records(self, file: Path) -> Iterator[Record]:
        for group in _groups(file):
            if isinstance(group, str):
                yield Record(file.name, fault=group)
                continue
            for own in [group] if self.image in group.images else _apart(group):
                yield self._record(f"{file.name}/{own.name}", own)

    def _record(self, key: str, group: _Group) -> Record:
        if not group.images:
            return Record(key, fault=f"there is no image among {', '.join(group.texts)}")
        plain = [ending for ending in group.images if "." not in ending] or list(group.images)
        if "." in plain[0] and len(plain) > 1 and self.image not in group.images:
            return Record(
                key,
                fault=f"{', '.join(plain[:3])} are images of one record, as a name ends at its first dot: choose one "
                "by data.image, or name the files otherwise",
            )
        try:
            image = group.images[self.image if self.image in group.images else plain[0]]
            return Record(key, self._captions(group), image)
        except ValueError as error:  # JSON or UTF-8 that is none
            return Record(key, fault=f"its captions cannot be read ({error})")

    def _captions(self, group: _Group) -> tuple[str, ...]:
        texts = group.texts
        if self.caption is not None and not self.caption.startswith("json."):
            return captions_of(texts.get(self.caption, b""), lines=True)
        for name in _TEXTS:
            if self.caption is None and name in texts:
                return captions_of(texts[name], lines=True)
        entries = _entries(group)
        for name in ("caption", "captions", "text", "texts") if self.caption is None else (self.caption[5:],):
            if name in entries:
                return captions_of(entries[name])
        return ()


def _groups(file: Path) -> Iterator[_Group | str]:
    """Records of a shard; a str says why reading ended early."""
    group, fault, end = _Group(""), None, 0
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                end = tar.offset  # of this member, padding and all
                named = _MEMBER.match(member.name)
                if named is None or not member.isfile():
                    continue
                name, ending = normalize("NFC", named[1]), named[2].lower()
                if name != group.name:
                    if group.texts or group.images:
                        yield group
                    group = _Group(name)
                if "." + ending.rsplit(".")[-1] in EXTENSIONS:
                    group.images[ending] = FileSpan(str(file), member.offset_data, member.size)
                elif ending.rsplit(".")[-1] in (*_TEXTS, "json"):
                    content = tar.extractfile(member)
                    assert content is not None
                    group.texts[ending] = content.read()
        if not _ends_at(file, end):
            fault = f"the tar file is not whole: it ends or is damaged after record {group.name!r}"
    except (tarfile.TarError, OSError) as error:
        fault = f"the tar file is not whole or not an uncompressed one ({error})"
    cut = fault is not None and end > file.stat().st_size  # within the last file of the group
    if (group.texts or group.images) and not cut:
        yield group
    if fault is not None:
        yield fault


def _apart(group: _Group) -> list[_Group]:
    """The records that a group is, where dots within names have put several together: "a 1.0.png", "a 1.1.png".

    By WebDataset's rule a name ends at its first dot. But where each image has a text of its own, it is a record.
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


def _ends_at(file: Path, end: int) -> bool:
    """Whether the closing block of zeros is there: tarfile takes a damaged header for the end as well."""
    with file.open("rb") as content:
        content.seek(end)
        return content.read(_BLOCK) == bytes(_BLOCK)


def _entries(group: _Group) -> dict[str, Any]:
    content = json.loads(group.texts.get("json", b"{}"))
    return content if isinstance(content, dict) else {}


def _columns(group: _Group) -> Iterator[str]:
    """All that data.caption could name."""
    yield from group.texts
    try:
        yield from (f"json.{name}" for name in _entries(group))
    except ValueError:
        return
