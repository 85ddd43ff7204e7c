"""The order of windows against a slow recomputation: every row once, groups kept near, entered anywhere."""

from __future__ import annotations

import numpy as np
import pytest

from dalle.data.shuffle import WindowShuffle, permutation, stratified_indices

SIZES = np.array([5, 5, 3, 5, 1, 5, 5, 2])
TOTAL = int(SIZES.sum())


def whole(order: WindowShuffle) -> list[int]:
    return [order[place] for place in range(TOTAL)]


def slow(window: int, seed: int, epoch: int) -> list[int]:
    """Groups one by one in random order; those that begin within the same `window` places are mixed."""
    rows = [list(range(sum(SIZES[:g]), sum(SIZES[: g + 1]))) for g in range(len(SIZES))]
    windows: dict[int, list[int]] = {}
    place = 0
    for group in permutation(len(SIZES), seed, epoch):
        windows.setdefault(place // window, []).extend(rows[group])
        place += len(rows[group])
    mixed = [np.random.default_rng((seed, epoch, n)).permutation(own) for n, own in enumerate(windows.values())]
    return [int(row) for own in mixed for row in own]


@pytest.mark.parametrize("window", [1, 4, 10, 1000])
@pytest.mark.parametrize("seed, epoch", [(0, 0), (0, 1), (3, 0)])
def test_window_shuffle_equals_a_slow_loop(window: int, seed: int, epoch: int) -> None:
    order = whole(WindowShuffle(SIZES, window, seed, epoch))
    assert order == slow(window, seed, epoch)
    assert sorted(order) == list(range(TOTAL))


def test_window_shuffle_has_random_access() -> None:
    order = whole(WindowShuffle(SIZES, 8, 1, 2))
    for place in (0, 7, 19, TOTAL - 1):
        assert WindowShuffle(SIZES, 8, 1, 2)[place] == order[place]
    backwards = WindowShuffle(SIZES, 8, 1, 2)
    assert [backwards[place] for place in reversed(range(TOTAL))] == order[::-1]


def test_window_shuffle_differs_by_seed_and_epoch_and_reads_few_groups_at_a_time() -> None:
    assert len({tuple(whole(WindowShuffle(SIZES, 8, seed, epoch))) for seed in range(3) for epoch in range(3)}) == 9
    sizes = np.full(1000, 100)
    order = WindowShuffle(sizes, 1000, 0, 0)
    seen = [order[place] // 100 for place in range(2000)]
    assert len(set(seen[:1000])) == 10 and len(set(seen)) == 20  # 10 groups of a window at a time
    assert seen[:1000] != sorted(seen[:1000], key=seen.index)  # and mixed


@pytest.mark.parametrize("length, count", [(10, 10), (10, 11), (0, 3), (1, 1), (8846, 256), (10, 7), (10**9 + 7, 256)])
def test_spread_takes_one_index_per_stratum(length: int, count: int) -> None:
    found = list(stratified_indices(length, count))
    assert len(found) == min(length, count) and found == sorted(set(found))
    for number, index in enumerate(found):
        assert number * length // len(found) <= index < (number + 1) * length // len(found)


@pytest.mark.parametrize("period", [2, 3, 4, 7, 32])
def test_spread_does_not_alias_with_a_periodic_set(period: int) -> None:
    kinds = np.bincount(np.array(stratified_indices(256 * period * 4, 256)) % period, minlength=period)
    assert kinds.min() >= 256 / period / 2
