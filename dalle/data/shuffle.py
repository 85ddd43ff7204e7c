"""Shuffling as a function of (seed, epoch), so that training can resume at any position; and stratified subsets."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

_GOLDEN = (5**0.5 - 1) / 2  # of all numbers the worst to approximate by fractions, so its multiples fit no pattern


def permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    """A random permutation of range(length), int64 [length], determined by (seed, epoch)."""
    return np.random.default_rng((seed, epoch)).permutation(length)


def stratified_indices(length: int, count: int) -> Sequence[int]:
    """Up to `count` indices below `length`, in order: one from each of `count` equal intervals.

    Data sets are often sorted, by style or folder, so their first items are not representative. The position within
    an interval advances by the golden ratio: a constant stride might pick, say, only the second of every two views.
    """
    if count >= length:
        return range(length)
    edges = [number * length // count for number in range(count + 1)]
    return [low + int(number * _GOLDEN % 1 * (high - low)) for number, (low, high) in enumerate(pairwise(edges))]


class WindowShuffle:
    """Two-level shuffle for data that does not fit in memory.

    Groups of consecutive rows are permuted, then rows are permuted within windows of several groups. A window has its
    own generator, seeded by (seed, epoch, window), so that an epoch can be entered at any position.

    Args:
        sizes: number of rows of each group, int64 [G]; group g begins at row sizes[:g].sum().
        window: approximate number of rows shuffled together; windows consist of whole groups.
        seed: seed of the run.
        epoch: number of the epoch, each of which has its own order.
    """

    def __init__(self, sizes: np.ndarray, window: int, seed: int, epoch: int):
        self.seed, self.epoch = seed, epoch
        self.sizes = sizes
        self.first_rows = np.cumsum(sizes) - sizes
        self.groups = permutation(len(sizes), seed, epoch)
        # A group belongs to the window in which it begins, given the permuted order of groups.
        places = np.cumsum(sizes[self.groups]) - sizes[self.groups]  # position of each group's first row
        _, self.first_groups = np.unique(places // window, return_index=True)  # first group of each window
        self.first_places = places[self.first_groups]
        # Positions are read in order, so caching one window avoids shuffling it again for each row.
        self._known, self._rows = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, place: int, /) -> int:
        """The row at position `place` of the epoch."""
        window = int(np.searchsorted(self.first_places, place, side="right")) - 1
        if window != self._known:
            self._known, self._rows = window, self._shuffle_window(window)
        return int(self._rows[place - self.first_places[window]])

    def _shuffle_window(self, window: int) -> np.ndarray:
        groups = self.groups[slice(*np.append(self.first_groups, len(self.groups))[window : window + 2])]
        rows = np.concatenate([np.arange(self.sizes[g]) + self.first_rows[g] for g in groups])
        return np.random.default_rng((self.seed, self.epoch, window)).permutation(rows)
