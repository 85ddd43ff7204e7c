"""Batches of image-caption pairs: endless, shuffled and resumable for training; one ordered pass for evaluation."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

from torch.utils.data import Dataset, IterableDataset, get_worker_info

from dalle.data.base import BadRecord, HasSampler, Order, PairDataset, PairStream
from dalle.data.batch import Batch, Sample, stack
from dalle.data.shuffle import permutation, stratified_indices
from dalle.data.workers import data_loader

log = logging.getLogger(__name__)

_LOOKAHEAD = 64  # consecutive records of a stream that may be broken
_MAX_TRIED = 10_000  # and of an indexed data set: of one that has vanished, all would be tried for each sample

Key = tuple[int, int]  # index, seed


def batches(
    dataset: PairDataset | PairStream,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """Yield batch `start`, `start + 1`, ... of an endless sequence of shuffled epochs.

    The sequence is a function of (dataset, seed): it does not depend on workers, on the number of processes, or on
    resuming. Batch b holds samples b * batch_size onward, and process `rank` of `world` gets its slice of each batch,
    so that together the processes see what a single one would. A broken record is replaced by the next good one.

    Resuming is free with random access. A stream is read again from the beginning of its epoch, without decoding: two
    passes at most, the first to learn the length of an epoch.

    Args:
        dataset: the training data.
        batch_size: samples per batch over all processes; divisible by `world`.
        seed: random seed of the order and of the samples.
        start: number of the first batch.
        rank: index of this process.
        world: number of processes.
        workers: number of worker processes that decode images; 0 decodes in this one.

    Yields:
        This process's slice of each batch.

    Raises:
        ValueError: (at the first batch) there are no records, or none that can be used.
    """
    share = batch_size // world  # the same for all processes
    local = slice(rank * share, (rank + 1) * share)
    if isinstance(dataset, PairStream):
        streamed = _BatchStream(dataset, batch_size, seed, start, local)
        loader = data_loader(streamed, seed, workers, batch_size=None)
    else:
        if not len(dataset):
            raise ValueError("the data set holds no records to train on: check data.path")
        keys = _BatchSampler(dataset, batch_size, seed, start, local)
        loader = data_loader(_MapDataset(dataset), seed, workers, batch_sampler=keys, collate_fn=_collate)
    for batch in loader:
        if isinstance(batch, ValueError):  # raised here: an exception raised in a worker comes with its traceback
            raise batch
        yield batch


class _BatchSampler:
    """Endless batches of (index, seed) keys for one process."""

    def __init__(self, dataset: PairDataset, batch_size: int, seed: int, start: int, local: slice):
        self.dataset, self.batch_size, self.seed, self.start, self.local = dataset, batch_size, seed, start, local

    def __iter__(self) -> Iterator[list[Key]]:
        batch, known, length = self.start, -1, len(self.dataset)
        order: Order = ()
        while True:
            # The keys of the full batch, of which this process takes its slice: so all agree whatever their number
            keys = []
            for position in range(batch * self.batch_size, (batch + 1) * self.batch_size):
                epoch, place = divmod(position, length)
                if epoch != known:
                    known, order = epoch, self._order(epoch)
                index = int(order[place])
                keys.append((index, pair_seed(self.seed, epoch, index)))
            yield keys[self.local]
            batch += 1

    def _order(self, epoch: int) -> Order:
        if isinstance(self.dataset, HasSampler):
            return self.dataset.order(self.seed, epoch)
        return permutation(len(self.dataset), self.seed, epoch)


def pair_seed(seed: int, epoch: int, index: int) -> int:
    """The random seed of pair `index` in one epoch, below 2^32."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


class _MapDataset(Dataset[Sample | ValueError]):
    """Pairs by (index, seed); a broken record is replaced by the next good one."""

    def __init__(self, dataset: PairDataset):
        self.dataset = dataset

    def __getitems__(self, keys: list[Key]) -> list[Sample | ValueError]:
        """The samples of a batch, up to the first error: each of the others may try the whole data set before it."""
        samples = []
        for key in keys:
            samples.append(self[key])
            if isinstance(samples[-1], ValueError):
                break
        return samples

    def __getitem__(self, key: Key) -> Sample | ValueError:
        index, seed = key
        bad: list[str] = []
        # The replacement depends on the index alone, so that a resumed run and other numbers of workers find the same
        tried = min(len(self.dataset), _MAX_TRIED)
        for step in range(tried):
            try:
                pair = self.dataset.pair((index + step) % len(self.dataset), seed)
            except BadRecord as error:
                bad.append(str(error))
            except (ValueError, OSError) as error:
                return _as_value_error(error)
            else:
                return Sample(pair.image, pair.caption, seed, bad, pair.embedding)
        where = "in the data set" if tried == len(self.dataset) else f"among {tried:,} records in a row"
        return ValueError(f"no usable image {where}; the first fails with: {bad[0]}")


class _BatchStream(IterableDataset[Batch | ValueError]):
    """Batches of one process from a stream. Each of W workers reads the whole stream and decodes every W-th batch."""

    def __init__(self, stream: PairStream, batch_size: int, seed: int, start: int, local: slice):
        self.stream, self.batch_size, self.seed, self.start, self.local = stream, batch_size, seed, start, local

    def __iter__(self) -> Iterator[Batch | ValueError]:
        worker = get_worker_info()
        # Batches are dealt to the workers in turn
        first, every = (0, 1) if worker is None else (worker.id, worker.num_workers)
        try:
            records = self._endless(self.start * self.batch_size)
            lookahead: deque[tuple[Any, int]] = deque()
            for batch in count():
                decoded = []
                for place in range(self.batch_size):
                    # Fill up the lookahead: `_decode_next` replaces a broken record by the next good one in it.
                    lookahead.extend(islice(records, _LOOKAHEAD + 1 - len(lookahead)))
                    if batch % every == first and self.local.start <= place < self.local.stop:
                        decoded.append(self._decode_next(lookahead))
                    lookahead.popleft()  # also where another process decodes it
                if decoded:
                    yield stack(decoded)
        except (ValueError, OSError) as error:  # `batches` raises it in the main process
            yield _as_value_error(error)

    def _endless(self, skip: int) -> Iterator[tuple[Any, int]]:
        """Records of epoch after epoch, each with the seed of its sample, without the first `skip`."""
        epoch = 0
        while True:
            length = 0
            for length, record in enumerate(self.stream.records(self.seed, epoch), 1):
                if skip:
                    skip -= 1
                else:
                    yield record, pair_seed(self.seed, epoch, length - 1)  # numbers of records count from 0
            if not length:
                raise ValueError("the stream holds no records to train on: check data.path")
            # The first pass has shown the length of an epoch, so that the rest of `skip` needs no reading.
            epoch += 1 + skip // length
            skip %= length

    def _decode_next(self, lookahead: deque[tuple[Any, int]]) -> Sample:
        bad: list[str] = []
        seed = lookahead[0][1]  # that of the place in the batch, whichever record fills it
        for record, _ in lookahead:
            try:
                pair = self.stream.pair(record, seed)
            except BadRecord as error:
                bad.append(str(error))
            else:
                return Sample(pair.image, pair.caption, seed, bad, pair.embedding)
        raise ValueError(f"no usable image among {len(lookahead)} records in a row: {bad[0]}")


def _as_value_error(error: ValueError | OSError) -> ValueError:
    """An error whose message is one line; torch would add its traceback to that of one which a worker raised."""
    line = ValueError((str(error) or type(error).__name__).splitlines()[0])
    line.__cause__ = error  # which may be a lack of memory
    return line


def _collate(records: list[Sample | ValueError]) -> Batch | ValueError:
    """Collate samples to a batch; an error among them is passed on."""
    good = []
    for record in records:
        if isinstance(record, ValueError):
            return record
        good.append(record)
    return stack(good)


def evaluation_batches(
    dataset: PairDataset,
    batch_size: int,
    *,
    seed: int = 0,
    limit: int | None = None,
    report: Callable[[list[str]], None] | None = None,
) -> Iterator[Batch]:
    """Yield every pair once, in order; the last batch may be smaller.

    Args:
        dataset: the data to evaluate on.
        batch_size: largest number of samples per batch.
        seed: random seed of every sample.
        limit: largest number of pairs, chosen by `stratified_indices`; None takes all.
        report: called with the names of skipped broken records; None logs them.

    Raises:
        ValueError: no record can be used.
    """
    indices = range(len(dataset)) if limit is None else stratified_indices(len(dataset), limit)
    good: list[Sample] = []
    bad: list[str] = []
    for index in indices:
        try:
            pair = dataset.pair(index, seed)
        except BadRecord as error:
            bad.append(str(error))
            (report or _log_skipped)([str(error)])
        else:
            good.append(Sample(pair.image, pair.caption, seed, [], pair.embedding))
        # Also if the last record is broken: then what came before it is a batch
        if good and (len(good) == batch_size or index == indices[-1]):
            yield stack(good)
            good = []
    if len(bad) == len(indices):
        raise ValueError(f"no usable image to evaluate on: {bad[0] if bad else 'the data set is empty'}")


def _log_skipped(names: list[str]) -> None:
    for name in names:
        log.warning("skipped %s", name)
