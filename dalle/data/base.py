"""The interfaces of data sets: image-caption pairs, each a function of an index and a seed, or a stream of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from dalle.files import printable
from dalle.images.read import Crop, UnreadableImage, square_image


@dataclass(frozen=True)
class Pair:
    """An image and one of its captions.

    Attributes:
        image: uint8 [H, W, 3]; from shards, the image's codes, int64 [h, w], or its embedding, float32 [D].
        caption: the caption chosen for this sample.
        captions: all captions of the image; empty if the data set generates captions on the fly.
        key: name of the record, if it has one.
        embedding: float32 [D], the CLIP embedding of the image, from shards that hold both; None: there is none.
    """

    image: np.ndarray
    caption: str
    captions: tuple[str, ...] = ()
    key: str | None = None
    embedding: np.ndarray | None = None


class BadRecord(ValueError):
    """A record that cannot be used. The loader skips it, counts it and logs its name."""

    def __init__(self, name: str, reason: str):
        super().__init__(printable(f"{name}: {reason}"))
        self.name, self.reason = name, reason

    def __reduce__(self) -> tuple[type[BadRecord], tuple[str, str]]:
        # Exceptions unpickle by calling the class with `args` (one string here), but the constructor takes two, and
        # worker processes send bad records to the loader.
        return BadRecord, (self.name, self.reason)


def read_image(
    data: bytes, name: str, size: int, crop: Crop = "center", share: float = 1.0, seed: int = 0
) -> np.ndarray:
    """Decode a record's image file to a square uint8 [size, size, 3] (`dalle.images.read.square_image`).

    Raises:
        BadRecord: the image cannot be read. The error carries `name`, the name of the record.
    """
    try:
        return square_image(data, size, crop, share, seed)
    except UnreadableImage as error:
        raise BadRecord(name, str(error)) from error


class PairDataset(Protocol):
    """A finite set of pairs with random access."""

    def __len__(self) -> int: ...

    def pair(self, index: int, seed: int) -> Pair:
        """The pair `index`. Everything random (template, background, crop) depends on `seed` alone.

        Raises:
            BadRecord: the record is broken.
        """
        ...

    def captions(self) -> Iterator[str]:
        """Captions that together show all words: what a BPE is learned from."""
        ...


class Order(Protocol):
    """The order of an epoch: maps a position in the epoch to the index of a pair."""

    def __getitem__(self, place: int, /) -> int: ...


@runtime_checkable
class HasSampler(Protocol):
    """A data set with its own shuffling, because a global shuffle would read its files in random order."""

    def order(self, seed: int, epoch: int) -> Order:
        """The order of an epoch, each index once. It depends on (seed, epoch) only and can be indexed anywhere."""
        ...


@runtime_checkable
class PairStream(Protocol):
    """Pairs that can only be read sequentially, one pass per epoch; every pass holds the same records."""

    def records(self, seed: int, epoch: int) -> Iterator[Any]:
        """The records of one pass, undecoded, in an order that is a function of (seed, epoch)."""
        ...

    def pair(self, record: Any, seed: int) -> Pair:
        """Decode a record. Everything random depends on `seed` alone.

        Raises:
            BadRecord: the record is broken.
        """
        ...

    def captions(self) -> Iterator[str]:
        """Captions that together show all words: what a BPE is learned from."""
        ...
