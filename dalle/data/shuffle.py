"""In which order an epoch shows the pairs of a set: a function of (seed, epoch) that can be entered anywhere.

And which few stand for all where not all are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

_GOLDEN = (5**0.5 - 1) / 2


def shuffled(length: int, seed: int, epoch: int) -> np.ndarray:
    """The numbers below `length`, all of them shuffled, int64 [length]."""
    return np.random.default_rng((seed, epoch)).permutation(length)


def spread(length: int, count: int) -> Sequence[int]:
    """Numbers below `length` that stand for all, in order: one of each of `count` equal stretches.

    Sets are sorted, by style or by folder, so that the first ones are all of a kind. Where in its stretch a number lies
    moves on by the golden ratio: at an even distance they might all be, say, the second of two views.
    """
    if count >= length:
        return range(length)
    edges = [number * length // count for number in range(count + 1)]
    return [low + int(number * _GOLDEN % 1 * (high - low)) for number, (low, high) in enumerate(pairwise(edges))]


class WindowShuffle:
    """The rows of many groups, shuffled group by group and, within a window of groups, row by row.

    What one shuffles where not everything can be at hand: groups of neighbouring rows come in random order, and as many
    as fill a window are mixed. No state runs from one window to the next, so an epoch can begin at any place.

    Args:
        sizes: rows of each group, int64 [G]; group g holds the rows from sizes[:g].sum() on.
        window: rows that are mixed at a time, about: whole groups are.
        seed: of the run.
        epoch: the order of each is another.
    """

    def __init__(self, sizes: np.ndarray, window: int, seed: int, epoch: int):
        self.seed, self.epoch = seed, epoch
        self.sizes = sizes
        self.first_rows = np.cumsum(sizes) - sizes
        self.groups = shuffled(len(sizes), seed, epoch)
        places = np.cumsum(sizes[self.groups]) - sizes[self.groups]  # where each group would begin, unmixed
        _, self.first_groups = np.unique(places // window, return_index=True)  # of each window
        self.first_places = places[self.first_groups]
        self._known, self._rows = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, place: int, /) -> int:
        """The row that is shown at `place` of the epoch."""
        window = int(np.searchsorted(self.first_places, place, side="right")) - 1
        if window != self._known:
            self._known, self._rows = window, self._mixed(window)
        return int(self._rows[place - self.first_places[window]])

    def _mixed(self, window: int) -> np.ndarray:
        groups = self.groups[slice(*np.append(self.first_groups, len(self.groups))[window : window + 2])]
        rows = np.concatenate([np.arange(self.sizes[g]) + self.first_rows[g] for g in groups])
        return np.random.default_rng((self.seed, self.epoch, window)).permutation(rows)
