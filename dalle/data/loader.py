"""Batches of pairs: endless and resumable for training, in order and finite for evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dalle.data.pair import BadPair, PairDataset


@dataclass
class Batch:
    """Pictures and captions of one step.

    Attributes:
        images: uint8 [B, 3, H, W].
        captions: B of them.
        seeds: each pair's own, from (run seed, epoch, index).
        bad: names and reasons of records that were skipped on the way.
    """

    images: Tensor
    captions: list[str]
    seeds: list[int]
    bad: list[str]

    def split(self, parts: int) -> list[Batch]:
        """Equal parts, in order; the bad records stay with the first."""
        size = len(self.captions) // parts
        cuts = [slice(i * size, (i + 1) * size) for i in range(parts)]
        return [
            Batch(self.images[c], self.captions[c], self.seeds[c], self.bad if i == 0 else []) for i, c in enumerate(cuts)
        ]


Key = tuple[int, int]  # index, seed


def batches(
    dataset: PairDataset,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """Batch `start`, `start + 1`, ... of the endless stream of shuffled epochs.

    The stream is a function of (dataset, seed): neither workers nor processes nor resuming change it. Batch b is made
    of its samples b * batch_size and on; process `rank` of `world` gets its share of each batch, so that together they
    see what one process would.
    """
    keys = _Keys(len(dataset), batch_size, seed, start, rank, world)
    loader = DataLoader(
        _Records(dataset),
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=_collate,
        generator=torch.Generator().manual_seed(seed),  # or it would draw from the global one
        multiprocessing_context="fork" if workers else None,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)


def evaluation_batches(dataset: PairDataset, batch_size: int, *, seed: int = 0, limit: int | None = None) -> Iterator[Batch]:
    """Every pair once, in order, the last batch perhaps smaller; at most `limit` pairs."""
    count = len(dataset) if limit is None else min(limit, len(dataset))
    records = _Records(dataset)
    for first in range(0, count, batch_size):
        indices = range(first, min(first + batch_size, count))
        yield _collate([records[index, seed] for index in indices])


class _Keys:
    """Batches of keys of one process; iterating never ends."""

    def __init__(self, length: int, batch_size: int, seed: int, start: int, rank: int, world: int):
        self.length, self.batch_size, self.seed, self.start = length, batch_size, seed, start
        share = batch_size // world
        self.share = slice(rank * share, (rank + 1) * share)

    def __iter__(self) -> Iterator[list[Key]]:
        batch, known, order = self.start, -1, np.empty(0, dtype=np.int64)
        while True:
            keys = []
            for position in range(batch * self.batch_size, (batch + 1) * self.batch_size):
                epoch, place = divmod(position, self.length)
                if epoch != known:
                    known, order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.length)
                index = int(order[place])
                keys.append((index, _pair_seed(self.seed, epoch, index)))
            yield keys[self.share]
            batch += 1


def _pair_seed(seed: int, epoch: int, index: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


class _Records(Dataset[tuple[np.ndarray, str, int, list[str]]]):
    """Pairs by key; in place of a broken one the next good one, with the broken ones' names."""

    def __init__(self, dataset: PairDataset):
        self.dataset = dataset

    def __getitem__(self, key: Key) -> tuple[np.ndarray, str, int, list[str]]:
        index, seed = key
        bad: list[str] = []
        for step in range(len(self.dataset)):
            try:
                pair = self.dataset.pair((index + step) % len(self.dataset), seed)
            except BadPair as error:
                bad.append(str(error))
            else:
                return pair.image, pair.caption, seed, bad
        raise ValueError(f"no usable picture in the data set: {bad[0]}")


def _collate(records: list[tuple[np.ndarray, str, int, list[str]]]) -> Batch:
    images = torch.from_numpy(np.stack([image for image, _, _, _ in records])).permute(0, 3, 1, 2).contiguous()
    bad = [name for _, _, _, names in records for name in names]
    return Batch(images, [caption for _, caption, _, _ in records], [seed for _, _, seed, _ in records], bad)
