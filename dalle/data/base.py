"""What every data set is to the rest: pairs of an image and a caption, each determined by an index and a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from dalle.images.read import Crop, UnreadableImage, square_image


@dataclass(frozen=True)
class Pair:
    """An image and one of its captions.

    Attributes:
        image: uint8 [H, W, 3]; of token shards the image's codes, int64 [h, w].
        caption: the one that is shown.
        captions: those that it was drawn from; none where a set makes captions up as it goes.
        key: name of the record, where it has one.
    """

    image: np.ndarray
    caption: str
    captions: tuple[str, ...] = ()
    key: str | None = None


class BadRecord(ValueError):
    """A record that cannot be used: the loader skips it, counts it and names it."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason

    def __reduce__(self) -> tuple[type[BadRecord], tuple[str, str]]:
        return BadRecord, (self.name, self.reason)  # worker processes send it to the loader


def read_image(
    data: bytes, name: str, size: int, crop: Crop = "centre", share: float = 1.0, seed: int = 0
) -> np.ndarray:
    """A record's image file as a square image, uint8 [size, size, 3], as `dalle.images.read.square_image` makes it.

    Raises:
        BadRecord: it cannot be read; `name` is what the record is called.
    """
    try:
        return square_image(data, size, crop, share, seed)
    except UnreadableImage as error:
        raise BadRecord(name, str(error)) from error


class PairDataset(Protocol):
    """A finite set of pairs with random access."""

    def __len__(self) -> int: ...

    def pair(self, index: int, seed: int) -> Pair:
        """The pair `index`; whatever is left to chance (template, background, crop) comes from `seed` alone.

        Raises:
            BadRecord: the record is broken.
        """
        ...

    def captions(self) -> Iterator[str]:
        """Captions that together show all words: what a BPE is learnt from."""
        ...


class Order(Protocol):
    """Numbers of pairs by their place in an epoch."""

    def __getitem__(self, place: int, /) -> int: ...


@runtime_checkable
class HasSampler(Protocol):
    """A finite set that is too large to be shuffled whole: it says itself in which order an epoch shows it."""

    def order(self, seed: int, epoch: int) -> Order:
        """Each number once; a function of (seed, epoch), of which any place can be asked for at once."""
        ...


@runtime_checkable
class PairStream(Protocol):
    """Pairs that can only be read in order, pass after pass; every pass holds the same records."""

    def records(self, seed: int, epoch: int) -> Iterator[Any]:
        """The records of one pass, undecoded, in an order that is a function of (seed, epoch)."""
        ...

    def pair(self, record: Any, seed: int) -> Pair:
        """Decode a record; whatever is left to chance comes from `seed` alone.

        Raises:
            BadRecord: the record is broken.
        """
        ...

    def captions(self) -> Iterator[str]:
        """Captions that together show all words: what a BPE is learnt from."""
        ...
