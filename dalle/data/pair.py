"""What every data set is to the rest: pairs of a picture and a caption, each determined by an index and a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True)
class Pair:
    """A picture and one of its captions."""

    image: np.ndarray  # uint8 [H, W, 3]
    caption: str


class BadPair(ValueError):
    """A record that cannot be used: the loader skips it, counts it and names it."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason

    def __reduce__(self) -> tuple[type[BadPair], tuple[str, str]]:
        return BadPair, (self.name, self.reason)  # worker processes send it to the loader


class PairDataset(Protocol):
    """A finite set of pairs with random access."""

    def __len__(self) -> int: ...

    def pair(self, index: int, seed: int) -> Pair:
        """The pair `index`; whatever is left to chance (template, background, crop) comes from `seed` alone.

        Raises:
            BadPair: the record is broken.
        """
        ...

    def captions(self) -> Iterator[str]:
        """Captions that together show all words: what a BPE is learnt from."""
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
            BadPair: the record is broken.
        """
        ...

    def captions(self) -> Iterator[str]:
        """Captions that together show all words: what a BPE is learnt from."""
        ...
