"""Undecoded records of your own data: by index (`IndexedRecords`), or streamed shard by shard (`Shard`)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from dalle.data.base import BadRecord
from dalle.files import expand_home, url_of
from dalle.files.remote import failures

EMPTY = "its caption is empty"  # the fault of a record without captions, if no other is known
_COLUMNS = ("captions", "file", "offset", "size", "fault", "caption_fault")  # of `RecordIndex`
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # what PNG holds without loss

ImageLike = str | Path | bytes | Image.Image
"""An image as it may be given: the path or the bytes of a file, a data: URL in base64, or one of Pillow's."""


@dataclass(frozen=True)
class FileSpan:
    """A byte range of a file, so that records can be listed and skipped without reading their images."""

    file: str
    offset: int = 0
    size: int = -1  # -1: to the end of the file

    def read(self) -> bytes:
        """Read the bytes.

        Raises:
            OSError: the file has gone, or the connection to it.
        """
        if "://" in self.file:  # single images in a repository of the hub
            import fsspec  # a dependency of `datasets`

            try:
                with fsspec.open(self.file, "rb") as remote:
                    content: bytes = remote.read()
            except failures() as error:  # not all are OSErrors
                raise OSError(f"{self.file}: {(str(error) or type(error).__name__).splitlines()[0]}") from error
            return content
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class Record:
    """An undecoded image with its captions.

    Attributes:
        key: name of the record, which determines its split and identifies it in the log.
        captions: its captions, cleaned by `clean_captions`.
        image: the image file's bytes, or where they are.
        fault: why the record cannot be used; None if it can.
        caption_fault: why it has no caption, where that is known; its image can still be used.
    """

    key: str
    captions: tuple[str, ...] = ()
    image: bytes | FileSpan | None = None
    fault: str | None = None
    caption_fault: str | None = None


class Records(Protocol):
    """Records by number; they are read by several processes at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Record: ...


def as_record(image: ImageLike, name: str = "image") -> Record:
    """An image however it is given, as a record; `name` is what errors call one that is no file."""
    if isinstance(image, bytes):
        return Record(name, image=image)
    if isinstance(image, Image.Image):
        whole = image if image.mode in _PNG_MODES else image.convert("RGB")  # CMYK, YCbCr, floats
        buffer = io.BytesIO()
        whole.save(buffer, "PNG", compress_level=1)  # decoded again at once, so speed counts
        return Record(name, image=buffer.getvalue())
    if isinstance(image, str) and image.startswith("data:"):
        head, _, text = image.partition(",")
        try:
            if not head.endswith(";base64"):
                raise ValueError
            return Record(name, image=base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError):
            return Record(name, fault="it is no data: URL in base64, such as data:image/png;base64,iVBORw0...")
    if isinstance(image, str) and url_of(image) is not None:
        return Record(image, fault="URLs are not fetched: download it and give the file, or a data: URL in base64")
    return Record(str(image), image=FileSpan(str(expand_home(image))))


def image_bytes(record: Record) -> bytes:
    """Read the bytes of a record's image file.

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


def require_utf8(record: Record) -> Record:
    """The record, or one with a fault if a name is not UTF-8, and without captions that are not.

    Logs and tables could not store them.
    """
    file = record.image.file if isinstance(record.image, FileSpan) else ""
    key, fault = _escaped(record.key), record.fault
    if key != record.key:
        fault = "its name is not UTF-8: rename it"
    elif _escaped(file) != file:
        fault = "the name of its folder is not UTF-8: rename the folder"
    elif any(_escaped(caption) != caption for caption in record.captions):
        reason = "a caption is not UTF-8: it contains an unpaired surrogate"
        return Record(key, (), record.image, fault, reason)
    return record if fault is None else Record(key, fault=_escaped(fault))


def _escaped(text: str) -> str:
    """The text with backslash escapes for what UTF-8 cannot encode: raw bytes of file names, lone surrogates."""
    return text.encode(errors="backslashreplace").decode()


@dataclass(frozen=True)
class Shard:
    """A part of a data set that is read sequentially, with the same records in the same order each time.

    Attributes:
        name: name of its file.
        records: starts reading the shard from its beginning.
    """

    name: str
    records: Callable[[], Iterator[Record]]


class IndexedRecords(ABC):
    """Records by index.

    Attributes:
        keys: name of each record.
    """

    keys: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def record(self, row: int) -> Record:
        """The record at index `row`."""

    @abstractmethod
    def captions(self, row: int) -> tuple[str, ...]:
        """The captions of a record, without reading its image."""


class Source(ABC):
    """Your own data in any layout, local or remote."""

    @abstractmethod
    def rows(self) -> IndexedRecords:
        """All records by index."""

    @abstractmethod
    def shards(self, images: bool = True) -> list[Shard]:
        """The same records for sequential reading.

        Args:
            images: False may leave out the images, if only captions are needed.
        """


class RecordIndex(IndexedRecords):
    """Captions and image locations in an Arrow table, which is compact and is shared with forked worker processes."""

    def __init__(self, records: Iterable[Record]):
        from datasets import Dataset  # here, as importing it takes a second

        self.keys = []
        columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        for record in records:
            place = record.image if isinstance(record.image, FileSpan) else FileSpan("")
            self.keys.append(record.key)
            values = (
                *(list(record.captions), place.file, place.offset, place.size),
                *(record.fault, record.caption_fault),
            )
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
        self.table = Dataset.from_dict(columns)

    def record(self, row: int) -> Record:
        """The record at index `row`."""
        found = self.table[row]
        place = FileSpan(found["file"], found["offset"], found["size"])
        return Record(self.keys[row], tuple(found["captions"]), place, found["fault"], found["caption_fault"])

    def captions(self, row: int) -> tuple[str, ...]:
        """The captions of a record, without reading its image."""
        return tuple(self.table[row]["captions"])


def in_validation_split(key: str, share: float) -> bool:
    """Whether the record `key` is held out for validation, from a hash of the key alone.

    Adding or removing other records never moves a record to the other split.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()  # Python's own hash differs from run to run
    return int.from_bytes(digest, "big") < share * 2**64


def sample_caption(key: str, captions: Sequence[str], seed: int) -> tuple[int, str]:
    """The random choices for one sample of a record: a seed for its crop, and one of its captions."""
    rng = random.Random(f"{seed}/{key}")  # with the key: a seed may serve several records, as a stream's views
    return rng.getrandbits(32), rng.choice(captions)
