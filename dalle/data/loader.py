"""Batches of pairs: endless and resumable for training, in order and finite for evaluation."""

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
from dalle.data.shuffle import shuffled, spread
from dalle.device import to_device
from dalle.image_tokenizers import ImageTokenizer

log = logging.getLogger(__name__)

_AHEAD = 64  # records of a stream that may be broken in a row


@dataclass
class Batch:
    """Images and captions of one step.

    Attributes:
        images: uint8 [B, 3, H, W]; of token shards their codes, int64 [B, h, w].
        captions: B of them.
        seeds: each pair's own, from (run seed, epoch, index).
        bad: names and reasons of records that were skipped on the way.
    """

    images: Tensor
    captions: list[str]
    seeds: list[int]
    bad: list[str]

    def unit_images(self, device: torch.device) -> Tensor:
        """The images on a device, float32 [B, 3, H, W] in [0, 1]."""
        return to_device(device, self.images).float().div_(255)

    def codes(self, tokenizer: ImageTokenizer, device: torch.device) -> Tensor:
        """Image codes on a device, int64 [B, h * w]: those of token shards, else the images encoded."""
        encoded = self.images.ndim == 3
        codes = to_device(device, self.images) if encoded else tokenizer.encode(self.unit_images(device))
        return codes.flatten(1)

    def split(self, parts: int) -> list[Batch]:
        """Equal parts, in order; the bad records stay with the first."""
        size = len(self.captions) // parts
        cuts = [slice(i * size, (i + 1) * size) for i in range(parts)]
        return [
            Batch(self.images[c], self.captions[c], self.seeds[c], self.bad if i == 0 else [])
            for i, c in enumerate(cuts)
        ]


Key = tuple[int, int]  # index, seed
Decoded = tuple[np.ndarray, str, int, list[str]]  # image, caption, seed, broken records met on the way


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
    """Batch `start`, `start + 1`, ... of the endless sequence of shuffled epochs.

    The sequence is a function of (dataset, seed): neither workers nor processes nor resuming change it. Batch b is
    made of its samples b * batch_size and on; process `rank` of `world` gets its share of each batch, so that together
    they see what one process would. In place of a broken record stands the next good one.

    Starting late costs nothing where records can be had by number. A stream is read from the beginning of an epoch,
    without decoding its images: at most two passes, the first to learn how long a pass is.

    Raises:
        ValueError: (at the first batch) there are no records, or none that can be used.
    """
    share = batch_size // world
    mine = slice(rank * share, (rank + 1) * share)
    if isinstance(dataset, PairStream):
        streamed = _StreamBatches(dataset, batch_size, seed, start, mine)
        loader = _loader(streamed, seed, workers, batch_size=None)
    else:
        if not len(dataset):
            raise ValueError("the data set holds no records to train on: look at what data.path names")
        keys = _Keys(dataset, batch_size, seed, start, mine)
        loader = _loader(_Records(dataset), seed, workers, batch_sampler=keys, collate_fn=_collate)
    for batch in loader:
        if isinstance(batch, ValueError):  # raised here, as one raised by a worker is buried in a traceback
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
    """Every pair once, in order, the last batch perhaps smaller; of more than `limit` pairs those of `spread`.

    Broken records are left out, and `report` is told of them (None: the log is).

    Raises:
        ValueError: none can be used.
    """
    indices = range(len(dataset)) if limit is None else spread(len(dataset), limit)
    good: list[Decoded] = []
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
            yield _stacked(good)
            good = []
    if len(bad) == len(indices):
        raise ValueError(f"no usable image to evaluate on: {bad[0] if bad else 'the data set is empty'}")


def _log_skipped(names: list[str]) -> None:
    for name in names:
        log.warning("skipped %s", name)


def lost_worker(error: RuntimeError) -> str | None:
    """A line on an error that torch raises, anywhere, when a worker has died; None: it is another error."""
    if not str(error).startswith("DataLoader worker"):
        return None
    reason = str(error).partition("\n")[0].rstrip(".")
    return (
        f"a process that prepares data is gone ({reason}); short of memory, take fewer run.workers or give /dev/shm "
        "more room; checkpoints are whole, go on with resume=true"
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
        generator=torch.Generator().manual_seed(seed),  # or it would draw from the global one
        multiprocessing_context="fork" if workers else None,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_end_by_parent_only,
        **options,
    )


def _end_by_parent_only(_: int) -> None:
    """In a worker: SIGTERM and SIGUSR1 count only if the parent sends them.

    Schedulers and launchers signal all processes of a run; its main one then finishes a step, and needs its workers.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    asked = {signal.SIGTERM, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, asked)
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo(asked).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


class _Keys:
    """Batches of keys of one process; iterating never ends."""

    def __init__(self, dataset: PairDataset, batch_size: int, seed: int, start: int, mine: slice):
        self.dataset, self.batch_size, self.seed, self.start, self.mine = dataset, batch_size, seed, start, mine

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
            yield keys[self.mine]
            batch += 1

    def _order(self, epoch: int) -> Order:
        if isinstance(self.dataset, HasSampler):
            return self.dataset.order(self.seed, epoch)
        return shuffled(len(self.dataset), self.seed, epoch)


def pair_seed(seed: int, epoch: int, index: int) -> int:
    """What the chances of one showing of a pair come from."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


class _Records(Dataset[Decoded | ValueError]):
    """Pairs by key; in place of a broken one the next good one, with the broken ones' names."""

    def __init__(self, dataset: PairDataset):
        self.dataset = dataset

    def __getitem__(self, key: Key) -> Decoded | ValueError:
        index, seed = key
        bad: list[str] = []
        for step in range(len(self.dataset)):
            try:
                pair = self.dataset.pair((index + step) % len(self.dataset), seed)
            except BadRecord as error:
                bad.append(str(error))
            else:
                return pair.image, pair.caption, seed, bad
        return ValueError(f"no usable image in the data set: {bad[0]}")


class _StreamBatches(IterableDataset[Batch | ValueError]):
    """Batches of one process from a stream. Each worker reads all of it, and decodes every so-manieth batch."""

    def __init__(self, stream: PairStream, batch_size: int, seed: int, start: int, mine: slice):
        self.stream, self.batch_size, self.seed, self.start, self.mine = stream, batch_size, seed, start, mine

    def __iter__(self) -> Iterator[Batch | ValueError]:
        worker = get_worker_info()
        first, every = (0, 1) if worker is None else (worker.id, worker.num_workers)
        try:
            records = self._endless(self.start * self.batch_size)
            ahead: deque[tuple[Any, int]] = deque()
            for batch in count():
                decoded = []
                for place in range(self.batch_size):
                    ahead.extend(islice(records, _AHEAD + 1 - len(ahead)))
                    if batch % every == first and self.mine.start <= place < self.mine.stop:
                        decoded.append(self._decoded(ahead))
                    ahead.popleft()
                if decoded:
                    yield _stacked(decoded)
        except ValueError as error:
            yield ValueError(str(error))

    def _endless(self, skip: int) -> Iterator[tuple[Any, int]]:
        """Records of epoch after epoch, each with its pair's seed, without the first `skip`."""
        epoch = 0
        while True:
            length = 0
            for length, record in enumerate(self.stream.records(self.seed, epoch), 1):
                if skip:
                    skip -= 1
                else:
                    yield record, pair_seed(self.seed, epoch, length - 1)
            if not length:
                raise ValueError("the stream holds no records to train on: look at what data.path names")
            epoch += 1 + skip // length
            skip %= length

    def _decoded(self, ahead: deque[tuple[Any, int]]) -> Decoded:
        bad: list[str] = []
        seed = ahead[0][1]
        for record, _ in ahead:
            try:
                pair = self.stream.pair(record, seed)
            except BadRecord as error:
                bad.append(str(error))
            else:
                return pair.image, pair.caption, seed, bad
        raise ValueError(f"no usable image among {len(ahead)} records in a row: {bad[0]}")


def _collate(records: list[Decoded | ValueError]) -> Batch | ValueError:
    """A batch, or what went wrong."""
    good = []
    for record in records:
        if isinstance(record, ValueError):
            return record
        good.append(record)
    return _stacked(good)


def _stacked(records: list[Decoded]) -> Batch:
    images = torch.from_numpy(np.stack([image for image, _, _, _ in records]))
    if images.ndim == 4:  # images [B, H, W, 3], not codes [B, h, w]
        images = images.permute(0, 3, 1, 2).contiguous()
    bad = [name for _, _, _, names in records for name in names]
    return Batch(images, [caption for _, caption, _, _ in records], [seed for _, _, seed, _ in records], bad)
