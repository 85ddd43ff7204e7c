"""What a data set of the user's holds before anything is decoded: records, by number (`Rows`) or shard after shard."""

from __future__ import annotations

import codecs
import hashlib
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dalle.data.base import BadRecord


@dataclass(frozen=True)
class FileSpan:
    """Bytes in a file, so that a record can be passed by without reading its image."""

    file: str
    offset: int = 0
    size: int = -1  # to the end

    def read(self) -> bytes:
        if "://" in self.file:  # images that lie singly in a repository of the hub
            import fsspec  # which datasets brings

            with fsspec.open(self.file, "rb") as remote:
                content: bytes = remote.read()
            return content
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class Record:
    """An undecoded image with its captions.

    Attributes:
        key: decides the split that the record belongs to, and names it in the log.
        captions: as they stand in the data; blank ones do not count.
        image: the file's bytes, or where they are.
        fault: why the record cannot be used.
    """

    key: str
    captions: tuple[str, ...] = ()
    image: bytes | FileSpan | None = None
    fault: str | None = None


def content_of(record: Record) -> bytes:
    """The bytes of a record's image file.

    Raises:
        BadRecord: the record has a fault, or the file cannot be read.
    """
    if record.fault is not None:
        raise BadRecord(record.key, record.fault)
    assert record.image is not None
    try:
        return record.image if isinstance(record.image, bytes) else record.image.read()
    except OSError as error:
        raise BadRecord(record.key, f"its file cannot be read ({error})") from error


def in_utf8(record: Record) -> Record:
    """The record, or a fault where a name or a caption of it is not UTF-8: no log, table or tokenizer could hold it."""
    file = record.image.file if isinstance(record.image, FileSpan) else ""
    key, fault = _escaped(record.key), record.fault
    if key != record.key:
        fault = "its name is not UTF-8: rename it"
    elif _escaped(file) != file:
        fault = "the name of a folder that it lies in is not UTF-8: rename that"
    elif any(_escaped(caption) != caption for caption in record.captions):
        fault = "a caption is not UTF-8: it holds half of a pair of surrogates"
    return record if fault is None else Record(key, fault=_escaped(fault))


def _escaped(text: str) -> str:
    """The text with backslashes for what is not UTF-8: bytes of a file's name, halves of a character out of JSON."""
    return text.encode(errors="backslashreplace").decode()


@dataclass(frozen=True)
class Shard:
    """A part of a data set that is read from its beginning, the same records in the same order each time.

    Attributes:
        name: of the file.
        records: reads them.
    """

    name: str
    records: Callable[[], Iterator[Record]]


class Rows(ABC):
    """Records by number."""

    keys: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def record(self, row: int) -> Record: ...

    @abstractmethod
    def captions(self, row: int) -> tuple[str, ...]:
        """Those of a record, without touching its image."""


class Source(ABC):
    """A data set, wherever it lies."""

    @abstractmethod
    def rows(self) -> Rows: ...

    @abstractmethod
    def shards(self, images: bool = True) -> list[Shard]:
        """The same records for reading in order; their images may be left out where only captions are wanted."""


class Index(Rows):
    """Captions, and the places of images that stay where they are; lean in memory, shared by forked processes."""

    def __init__(self, records: Iterable[Record]):
        from datasets import Dataset  # takes a second to import

        self.keys = []
        columns: dict[str, list[Any]] = {name: [] for name in ("captions", "file", "offset", "size", "fault")}
        for record in records:
            place = record.image if isinstance(record.image, FileSpan) else FileSpan("")
            self.keys.append(record.key)
            values = (list(record.captions), place.file, place.offset, place.size, record.fault)
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
        self.table = Dataset.from_dict(columns)

    def record(self, row: int) -> Record:
        found = self.table[row]
        place = FileSpan(found["file"], found["offset"], found["size"])
        return Record(self.keys[row], tuple(found["captions"]), place, found["fault"])

    def captions(self, row: int) -> tuple[str, ...]:
        return tuple(self.table[row]["captions"])


def held_out(key: str, share: float) -> bool:
    """Whether a record is one of the `share` that validates: a matter of its key alone, whatever else there is."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def sample_caption(key: str, captions: Sequence[str], seed: int) -> tuple[int, str]:
    """All that is left to chance in one showing of a record: the seed of its crop, and one of its captions."""
    rng = random.Random(f"{seed}/{key}")
    return rng.getrandbits(32), rng.choice(captions)


def captions_of(value: Any, lines: bool = False) -> tuple[str, ...]:
    """The captions that a record's text is, of whatever source: the only place where they are cleaned.

    Bytes are UTF-8, or what a mark at their beginning says. A number is its digits. What is no text, and blank ones, do
    not count; marks of byte order are taken off, and spaces and line ends of all kinds become single spaces.

    Args:
        value: a caption, or a list of them.
        lines: each line of a text is one; lines end with line feeds and carriage returns, and nothing else.

    Raises:
        UnicodeDecodeError: bytes are not text.
    """
    values = value if isinstance(value, (list, tuple)) else [value]
    texts = [text for each in values if (text := _text(each)) is not None]
    if lines:
        texts = [line for text in texts for line in re.split(r"[\r\n]+", text)]
    cleaned = (" ".join(text.replace("\ufeff", "").split()) for text in texts)
    return tuple(dict.fromkeys(text for text in cleaned if text))


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        marked = value.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return value.decode("utf-16" if marked else "utf-8")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value:  # no nan: a cell without one
        return str(value)
    return value if isinstance(value, str) else None


CAPTIONS = ("caption", "captions", "text", "texts", "txt")
IMAGES = ("image", "jpg", "jpeg", "png", "webp", "img", "image")


def caption_column(wanted: str | None, names: Iterable[str], where: str) -> str:
    """The column that holds captions: the one that was asked for, or the first of the usual names.

    Raises:
        ValueError: there is no such column.
    """
    return _column("caption", "captions", wanted, names, CAPTIONS, where)


def has_captions(wanted: str | None, names: Iterable[str]) -> bool:
    """Whether a column of captions was asked for, or one of the usual names is there."""
    return wanted is not None or not set(CAPTIONS).isdisjoint(names)


def image_column(wanted: str | None, names: Iterable[str], where: str) -> str:
    """The column that holds images, likewise."""
    return _column("image", "images", wanted, names, IMAGES, where)


def _column(
    option: str, what: str, wanted: str | None, names: Iterable[str], usual: tuple[str, ...], where: str
) -> str:
    names = list(names)
    there = f"there are {', '.join(names)}" if names else "there are no columns at all"
    if wanted is not None:
        if wanted not in names:
            raise ValueError(f"{where} has no column {wanted!r}: {there}; set data.{option} to one of them")
        return wanted
    found = [name for name in usual if name in names]
    if not found:
        raise ValueError(
            f"{where}: none of its columns is called as one with {what} would be: {there}; set data.{option}"
        )
    return found[0]
