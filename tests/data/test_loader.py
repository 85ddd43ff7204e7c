"""Batches against a slow recomputation of the endless sequence; broken records, shares, workers, resuming."""

from __future__ import annotations

import hashlib
import itertools
import logging
import multiprocessing
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from dalle.data import open_data
from dalle.data import workers as workers_module
from dalle.data.bad_records import BadRecordCounter
from dalle.data.base import BadRecord, Pair, PairDataset, PairStream
from dalle.data.batch import Batch
from dalle.data.drawings import DrawingsConfig, DrawingsDataset
from dalle.data.loader import batches, evaluation_batches
from dalle.data.shapes import ShapesConfig, ShapesDataset
from dalle.training.checkpoint.latest import load_latest


class Numbers:
    """Pair i is a gray image of i; some are broken."""

    def __init__(self, length: int, broken: tuple[int, ...] = ()):
        self.length, self.broken = length, broken

    def __len__(self) -> int:
        return self.length

    def pair(self, index: int, seed: int) -> Pair:
        if index in self.broken:
            raise BadRecord(f"number {index}", "broken")
        return Pair(np.full((2, 2, 3), index % 256, dtype=np.uint8), f"{index} {seed}")

    def captions(self) -> Iterator[str]:
        return map(str, range(self.length))


class Stream(Numbers):
    """The same numbers, only in the order of a pass."""

    def __init__(self, length: int, broken: tuple[int, ...] = ()):
        super().__init__(length, broken)
        self.read = 0

    def records(self, seed: int, epoch: int) -> Iterator[int]:
        for number in np.random.default_rng((seed, epoch, 7)).permutation(self.length):
            self.read += 1
            yield int(number)


def digest(seed: int, epoch: int, index: int) -> int:
    return int(hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=4).hexdigest(), 16)


def slow_numbers(length: int, broken: tuple[int, ...], seed: int) -> Iterator[str]:
    """Captions sample after sample: an epoch is a permutation, and a broken record gives way to the next by number."""
    for epoch in itertools.count():
        for index in np.random.default_rng((seed, epoch)).permutation(length):
            shown = int(index)
            while shown in broken:
                shown = (shown + 1) % length
            yield f"{shown} {digest(seed, epoch, int(index))}"


def slow_stream(length: int, broken: tuple[int, ...], seed: int) -> Iterator[str]:
    """The same for a stream, where the next one is the next to come."""
    samples = [
        (int(number), digest(seed, epoch, place))
        for epoch in range(60)
        for place, number in enumerate(np.random.default_rng((seed, epoch, 7)).permutation(length))
    ]
    for at, (_, own) in enumerate(samples):
        yield f"{next(n for n, _ in samples[at:] if n not in broken)} {own}"


KINDS = pytest.mark.parametrize("kind, slow", [(Numbers, slow_numbers), (Stream, slow_stream)])
Kind = Callable[..., PairDataset | PairStream]


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.images, b.images) and a.captions == b.captions and a.seeds == b.seeds and a.bad == b.bad


@KINDS
@pytest.mark.parametrize("length, broken", [(10, ()), (10, (3, 4)), (3, (1,)), (1, ())])
def test_batches_equal_a_slow_loop(kind: Kind, slow: Callable, length: int, broken: tuple[int, ...]) -> None:
    expected = slow(length, broken, 5)
    for batch in itertools.islice(batches(kind(length, broken), batch_size=4, seed=5), 9):
        captions = list(itertools.islice(expected, 4))
        assert batch.captions == captions
        assert batch.seeds == [int(caption.split()[1]) for caption in captions]
        numbers = [int(caption.split()[0]) for caption in captions]
        assert batch.images.tolist() == [[[[number] * 2] * 2] * 3 for number in numbers]
        assert batch.images.dtype == torch.uint8
        assert all(name in [f"number {number}: broken" for number in broken] for name in batch.bad)


@KINDS
def test_each_epoch_has_every_record_once(kind: Kind, slow: Callable) -> None:
    sequence = batches(kind(10), batch_size=5, seed=0)
    epochs = [
        [int(c.split()[0]) for batch in (next(sequence), next(sequence)) for c in batch.captions] for _ in range(4)
    ]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


@KINDS
def test_order_differs_between_seeds(kind: Kind, slow: Callable) -> None:
    assert (
        next(batches(kind(50), batch_size=9, seed=0)).captions != next(batches(kind(50), batch_size=9, seed=1)).captions
    )


@KINDS
@pytest.mark.parametrize("start", [0, 1, 2, 3, 7, 12])
def test_resumed_batches_equal_uninterrupted(kind: Kind, slow: Callable, start: int) -> None:
    """Also where an epoch ends in the middle of a batch, or with one."""
    whole = list(itertools.islice(batches(kind(10, (2,)), batch_size=4, seed=1), start + 3))
    resumed = batches(kind(10, (2,)), batch_size=4, seed=1, start=start)
    assert all(same(next(resumed), batch) for batch in whole[start:])


def test_resuming_a_stream_reads_less_than_two_passes() -> None:
    stream = Stream(1000)
    next(batches(stream, batch_size=10, seed=0, start=70_050))
    assert stream.read <= 2000 + 10 + 64


@KINDS
@pytest.mark.parametrize("world", [2, 3, 6])
def test_batches_of_all_ranks_join_to_the_global_batch(kind: Kind, slow: Callable, world: int) -> None:
    whole = batches(kind(11, (5, 6)), batch_size=6, seed=2)
    shares = [batches(kind(11, (5, 6)), batch_size=6, seed=2, rank=rank, world=world) for rank in range(world)]
    for _ in range(5):
        batch, parts = next(whole), [next(share) for share in shares]
        assert torch.equal(batch.images, torch.cat([part.images for part in parts]))
        for name in ("captions", "seeds", "bad"):
            assert getattr(batch, name) == [x for part in parts for x in getattr(part, name)]


@KINDS
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers, start", [(1, 0), (3, 4)])
def test_batches_do_not_depend_on_workers(kind: Kind, slow: Callable, workers: int, start: int) -> None:
    options = {"batch_size": 4, "seed": 3, "start": start}
    apart = batches(kind(10, (1,)), workers=workers, **options)
    for batch in itertools.islice(batches(kind(10, (1,)), **options), 8):
        assert same(next(apart), batch)


@KINDS
def test_loader_leaves_global_randomness_untouched(kind: Kind, slow: Callable) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(batches(kind(10), batch_size=4, seed=3))
    assert torch.equal(torch.get_rng_state(), before)


@KINDS
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1])
def test_no_usable_image_is_refused(kind: Kind, slow: Callable, workers: int) -> None:
    with pytest.raises(ValueError, match=r"^no usable image [^\n]*: number \d: broken$"):
        next(batches(kind(4, (0, 1, 2, 3)), batch_size=2, seed=0, workers=workers))


class Gone(Numbers):
    """Whose files are on a disk that is gone: the error of a library, of several lines."""

    def pair(self, index: int, seed: int) -> Pair:
        raise OSError(f"number {index}: no such device\nin read(2)")


class GoneStream(Gone, Stream):
    """The same as a stream."""


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("kind", [Gone, GoneStream])
@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_the_system_are_one_line(kind: Kind, workers: int) -> None:
    """From a worker, too, where torch would add its traceback to the message."""
    with pytest.raises(ValueError, match=r"^number \d: no such device$"):
        next(batches(kind(4), batch_size=2, seed=0, workers=workers))


def test_few_records_are_tried_where_a_large_set_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dalle.data.loader._MAX_TRIED", 3)
    with pytest.raises(ValueError, match=r"^no usable image among 3 records in a row; the first fails with: number"):
        next(batches(Numbers(100, tuple(range(100))), batch_size=2, seed=0))
    assert len(next(batches(Numbers(100, (4, 5)), batch_size=100, seed=0)).captions) == 100


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_data_set_is_tried_once_for_a_batch(workers: int) -> None:
    """And not once for each of its samples: 400 of them took 20 seconds for 1,170 rows."""
    tried = multiprocessing.Value("i", 0)

    class Counted(Numbers):
        def pair(self, index: int, seed: int) -> Pair:
            tried.value += 1
            return super().pair(index, seed)

    data = Counted(30, tuple(range(30)))
    with pytest.raises(ValueError, match="no usable image in the data set"):
        next(batches(data, batch_size=20, seed=0, workers=workers))
    assert tried.value <= 30 * (1 + 4 * workers)  # a worker is four batches ahead of the one that is taken


def test_empty_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no records to train on: check data.path"):
        next(batches(Stream(0), batch_size=2, seed=0))


def test_empty_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no records to train on: check data.path"):
        next(batches(Numbers(0), batch_size=2, seed=0))


def test_split_keeps_order_and_names_bad_records_once() -> None:
    batch = next(batches(Numbers(12, (0, 4)), batch_size=12, seed=0))
    parts = batch.split(3)
    assert [c for part in parts for c in part.captions] == batch.captions
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert [name for part in parts for name in part.bad] == batch.bad != []


def test_evaluation_batches_are_in_order_without_broken_records(caplog: pytest.LogCaptureFixture) -> None:
    shown = [batch.captions for batch in evaluation_batches(Numbers(8, (1, 7)), 4)]
    assert shown == [["0 0", "2 0", "3 0", "4 0"], ["5 0", "6 0"]]
    assert [r.getMessage() for r in caplog.records] == ["skipped number 1: broken", "skipped number 7: broken"]


def test_evaluation_reports_broken_records_to_its_callback() -> None:
    told: list[str] = []
    list(evaluation_batches(Numbers(8, (1, 7)), 4, limit=8, report=told.extend))
    assert told == ["number 1: broken", "number 7: broken"]


@pytest.mark.parametrize("limit, sizes", [(None, [4, 4, 2]), (4, [4]), (5, [4, 1]), (99, [4, 4, 2])])
def test_evaluation_limit_bounds_the_batches(limit: int | None, sizes: list[int]) -> None:
    assert [len(b.captions) for b in evaluation_batches(Numbers(10), 4, limit=limit)] == sizes


def test_limited_evaluation_is_spread_over_a_sorted_set() -> None:
    shown = [int(c.split()[0]) for b in evaluation_batches(Numbers(70), 4, limit=14) for c in b.captions]
    assert [number // 10 for number in shown] == [kind for kind in range(7) for _ in range(2)]
    emoji = open_data(DrawingsConfig(sets=("emoji",)), "validation", 64)
    assert isinstance(emoji, DrawingsDataset)
    styles_of = {emoji.canonical_caption(i): emoji.styles[i] for i in range(len(emoji))}
    seen = [styles_of[c] for b in evaluation_batches(emoji, 32, limit=56) for c in b.captions]
    share = Counter(emoji.styles)
    assert all(abs(seen.count(style) - 56 * share[style] / len(emoji)) < 2 for style in share)


def test_evaluation_without_a_usable_image_is_refused() -> None:
    with pytest.raises(ValueError, match="no usable image to evaluate on: number 0: broken"):
        list(evaluation_batches(Numbers(2, (0, 1)), 4))


def test_bad_records_count_once(caplog: pytest.LogCaptureFixture) -> None:
    bad = BadRecordCounter(limit=2)
    for _ in range(5):
        bad.add(["a: broken", "b: empty"])
    bad.merge(["a: broken"])
    assert [r.getMessage() for r in caplog.records] == ["skipped a: broken", "skipped b: empty"]
    assert bad.report() == "broken records skipped: 2 (a: broken; b: empty)"
    with pytest.raises(ValueError, match=r"broken records: 3 \(a: broken; b: empty; c: cut\), and data.max_bad is 2;"):
        bad.add(["c: cut"])


def test_training_counts_broken_records_of_all_epochs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Through train.py: named once, kept by checkpoints, reported at the end, and an error beyond max_bad."""

    def breaking(self: ShapesDataset, index: int, seed: int) -> Pair:
        if index in (3, 5):
            raise BadRecord(f"shape {index}", "broken")
        return whole(self, index, seed)

    whole = ShapesDataset.pair
    monkeypatch.setattr(ShapesDataset, "pair", breaking)
    recipe = str(Path(__file__).parents[2] / "configs/shapes/vqgan.yaml")
    run = [recipe, f"run.dir={tmp_path}", "run.batch_size=4", "run.device=cpu", "data.size=8", "model.channels=16"]
    assert train.main([*run, "run.steps=3", "data.max_bad=2"]) == 0
    names = ["shape 3: broken", "shape 5: broken"]
    assert sorted(r.getMessage() for r in caplog.records if "skipped" in r.getMessage()) == [
        f"skipped {n}" for n in names
    ]
    assert "broken records skipped: 2 (shape" in capsys.readouterr().out
    assert sorted(load_latest(tmp_path).bad) == names
    assert train.main([*run, "run.steps=4", "resume=true", "data.max_bad=1"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len([line for line in error if line.startswith("train.py: too many broken records: 2 (shape")]) == 1


def test_shapes_have_no_broken_records(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert next(batches(ShapesDataset(ShapesConfig(), "train", 8), batch_size=64, seed=0)).bad == []


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="needs sigwaitinfo")
def test_workers_ignore_signals_but_end_with_their_parent() -> None:
    stream = batches(Numbers(20), batch_size=4, seed=0, workers=1)
    next(stream)
    worker = multiprocessing.active_children()[0]
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    subprocess.run(["kill", "-USR1", str(worker.pid)], check=True)
    for _ in range(12):  # more than were prepared before
        next(stream)
    assert worker.is_alive()
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 0


def test_too_many_workers_are_refused_before_any_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module.os, "cpu_count", lambda: 2)
    with pytest.raises(ValueError, match="run.workers is 17; on 2 cores it must be at most 16"):
        workers_module.data_loader(None, 0, 17)  # type: ignore[arg-type]
