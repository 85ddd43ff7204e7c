"""Batches of image-caption pairs: endless, shuffled and resumable for training; one ordered pass for evaluation."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from dalle.data.base import BadRecord, HasSampler, Order, PairDataset, PairStream
from dalle.data.shuffle import permutation, stratified_indices
from dalle.device import to_device
from dalle.image_tokenizers import ImageTokenizer

log = logging.getLogger(__name__)

_LOOKAHEAD = 64  # consecutive records of a stream that may be broken


@dataclass
class Batch:
    """Images and captions of one step.

    Attributes:
        images: uint8 [B, 3, H, W]; from token shards, codes int64 [B, h, w].
        captions: B captions.
        seeds: random seed of each sample, derived from (run seed, epoch, index).
        bad: names of the records that were skipped for this batch, with reasons.
    """

    images: Tensor
    captions: list[str]
    seeds: list[int]
    bad: list[str]

    def unit_images(self, device: torch.device) -> Tensor:
        """Move the images to a device as float32 [B, 3, H, W] in [0, 1]."""
        return to_device(device, self.images).float().div_(255)

    def codes(self, tokenizer: ImageTokenizer, device: torch.device) -> Tensor:
        """Image codes on a device, int64 [B, h * w]: from the batch if pre-encoded, else by encoding its images."""
        encoded = self.images.ndim == 3
        codes = to_device(device, self.images) if encoded else tokenizer.encode(self.unit_images(device))
        return codes.flatten(1)

    def split(self, parts: int) -> list[Batch]:
        """Split into equal micro-batches, in order; the first keeps the list of bad records."""
        size = len(self.captions) // parts
        cuts = [slice(i * size, (i + 1) * size) for i in range(parts)]
        return [
            Batch(self.images[c], self.captions[c], self.seeds[c], self.bad if i == 0 else [])
            for i, c in enumerate(cuts)
        ]


Key = tuple[int, int]  # index, seed
Sample = tuple[np.ndarray, str, int, list[str]]  # image, caption, seed, broken records skipped for it


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
    share = batch_size // world
    local = slice(rank * share, (rank + 1) * share)
    if isinstance(dataset, PairStream):
        streamed = _BatchStream(dataset, batch_size, seed, start, local)
        loader = _loader(streamed, seed, workers, batch_size=None)
    else:
        if not len(dataset):
            raise ValueError("the data set holds no records to train on: check data.path")
        keys = _BatchSampler(dataset, batch_size, seed, start, local)
        loader = _loader(_MapDataset(dataset), seed, workers, batch_sampler=keys, collate_fn=_collate)
    for batch in loader:
        if isinstance(batch, ValueError):  # raised here: an exception raised in a worker comes with its traceback
            raise batch
        yield batch


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
            good.append((pair.image, pair.caption, seed, []))
        if good and (len(good) == batch_size or index == indices[-1]):
            yield _stack(good)
            good = []
    if len(bad) == len(indices):
        raise ValueError(f"no usable image to evaluate on: {bad[0] if bad else 'the data set is empty'}")


def _log_skipped(names: list[str]) -> None:
    for name in names:
        log.warning("skipped %s", name)


def describe_lost_worker(error: RuntimeError) -> str | None:
    """An explanation of torch's error about a worker process that has died; None for any other error.

    Torch raises it from a signal handler, so it may surface at any line of the program.
    """
    if not str(error).startswith("DataLoader worker"):
        return None
    reason = str(error).partition("\n")[0].rstrip(".")
    return (
        f"a data loader worker has died ({reason}): if memory ran out, lower run.workers or enlarge /dev/shm; "
        "checkpoints are intact, continue with resume=true"
    )


def _loader(dataset: Dataset, seed: int, workers: int, **options: Any) -> DataLoader:
    most = max(16, 4 * (os.cpu_count() or 1))
    if (
        workers > most
    ):  # each is a copy of this process: hundreds take all of a machine's memory, from other programs too
        raise ValueError(f"run.workers is {workers}; on {os.cpu_count()} cores it must be at most {most}")
    return DataLoader(
        dataset,
        num_workers=workers,
        generator=torch.Generator().manual_seed(seed),  # or it would advance the global generator
        multiprocessing_context="fork" if workers else None,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_end_by_parent_only,
        **options,
    )


def _end_by_parent_only(_: int) -> None:
    """In a worker: obey SIGTERM and SIGUSR1 only if the parent process sent them.

    Schedulers and launchers signal all processes of a run. The main one then finishes its step and saves a checkpoint,
    for which it needs its workers.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    stop_signals = {signal.SIGTERM, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)
    parent = os.getppid()

    # A blocked signal stays pending until `sigwaitinfo` takes it, along with the process that sent it.
    def wait() -> None:
        while signal.sigwaitinfo(stop_signals).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


class _BatchSampler:
    """Endless batches of (index, seed) keys for one process."""

    def __init__(self, dataset: PairDataset, batch_size: int, seed: int, start: int, local: slice):
        self.dataset, self.batch_size, self.seed, self.start, self.local = dataset, batch_size, seed, start, local

    def __iter__(self) -> Iterator[list[Key]]:
        batch, known, length = self.start, -1, len(self.dataset)
        order: Order = ()
        while True:
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

    def __getitem__(self, key: Key) -> Sample | ValueError:
        index, seed = key
        bad: list[str] = []
        for step in range(len(self.dataset)):
            try:
                pair = self.dataset.pair((index + step) % len(self.dataset), seed)
            except BadRecord as error:
                bad.append(str(error))
            else:
                return pair.image, pair.caption, seed, bad
        return ValueError(f"no usable image in the data set; the first fails with: {bad[0]}")


class _BatchStream(IterableDataset[Batch | ValueError]):
    """Batches of one process from a stream. Each of W workers reads the whole stream and decodes every W-th batch."""

    def __init__(self, stream: PairStream, batch_size: int, seed: int, start: int, local: slice):
        self.stream, self.batch_size, self.seed, self.start, self.local = stream, batch_size, seed, start, local

    def __iter__(self) -> Iterator[Batch | ValueError]:
        worker = get_worker_info()
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
                    lookahead.popleft()
                if decoded:
                    yield _stack(decoded)
        except ValueError as error:
            yield ValueError(str(error))

    def _endless(self, skip: int) -> Iterator[tuple[Any, int]]:
        """Records of epoch after epoch, each with the seed of its sample, without the first `skip`."""
        epoch = 0
        while True:
            length = 0
            for length, record in enumerate(self.stream.records(self.seed, epoch), 1):
                if skip:
                    skip -= 1
                else:
                    yield record, pair_seed(self.seed, epoch, length - 1)
            if not length:
                raise ValueError("the stream holds no records to train on: check data.path")
            # The first pass has shown the length of an epoch, so that the rest of `skip` needs no reading.
            epoch += 1 + skip // length
            skip %= length

    def _decode_next(self, lookahead: deque[tuple[Any, int]]) -> Sample:
        bad: list[str] = []
        seed = lookahead[0][1]
        for record, _ in lookahead:
            try:
                pair = self.stream.pair(record, seed)
            except BadRecord as error:
                bad.append(str(error))
            else:
                return pair.image, pair.caption, seed, bad
        raise ValueError(f"no usable image among {len(lookahead)} records in a row: {bad[0]}")


def _collate(records: list[Sample | ValueError]) -> Batch | ValueError:
    """Collate samples to a batch; an error among them is passed on."""
    good = []
    for record in records:
        if isinstance(record, ValueError):
            return record
        good.append(record)
    return _stack(good)


def _stack(records: list[Sample]) -> Batch:
    images = torch.from_numpy(np.stack([image for image, _, _, _ in records]))
    if images.ndim == 4:  # images [B, H, W, 3], as opposed to codes [B, h, w]
        images = images.permute(0, 3, 1, 2).contiguous()
    bad = [name for _, _, _, names in records for name in names]
    return Batch(images, [caption for _, caption, _, _ in records], [seed for _, _, seed, _ in records], bad)
