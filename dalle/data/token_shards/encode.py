"""Encodes the images of any data set to shards, divided among processes; an interrupted job can be resumed."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from dalle.config import to_dict
from dalle.data import DataConfig, open_data
from dalle.data.bad_records import BadRecordCounter
from dalle.data.base import BadRecord, Pair
from dalle.data.custom.config import CustomConfig
from dalle.data.token_shards.dataset import SPLITS
from dalle.data.token_shards.encoders import ImageEncoder
from dalle.data.token_shards.files import (
    ShardFile,
    ShardIndex,
    existing_shard,
    read_index,
    write_index,
    write_shard,
)
from dalle.data.token_shards.jobs import IndexedSplit, ShardJob, StreamedSplit
from dalle.data.token_shards.provenance import Provenance
from dalle.files import FileLock, remove_parts

T = TypeVar("T")
R = TypeVar("R")
ShardsBySplit = dict[str, list[ShardFile]]  # by split
# Options that do not affect the contents of shards. The path is one of them, as a folder may be moved between runs of a
# job: what is in it is compared by the names of its records
_NOT_CONTENT = ("path", "max_bad", "shuffle_buffer", "stream_validation")
_LOCK = ".lock"
_SIDES = (False, True)  # whether mirrored
_BATCHES_AHEAD = 4  # batches of images to read ahead of the encoder


@dataclass(frozen=True)
class EncodeOptions:
    """How images are encoded."""

    seed: int = 0
    """Random seed; view v of an image is its sample in epoch v of a training run with this seed, unless streamed."""
    views: int = 1
    """Number of views of each training image: random crops, or other variations of its data set."""
    mirror: bool = False
    """Add a mirrored copy of each view. Captions that say left or right become wrong."""
    shard_images: int = 8192
    """Images per shard, which is also how many an interruption can lose."""
    batch_size: int = 64
    """Images encoded at a time."""
    workers: int = 2
    """Number of threads that read images."""

    def __post_init__(self) -> None:
        for name in ("views", "shard_images", "batch_size", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name.replace('_', '-')} is {getattr(self, name)}: give at least 1")


class Encoding:
    """Encodes one data set into one folder. Every process creates one with the same arguments.

    Call `begin` in one process, then `run` in all, then `finish` in one with the results of all.

    Args:
        config: the data set; its splits are kept.
        encoder: what to encode the images with.
        folder: where to write the shards.
        options: how to encode.

    Raises:
        ValueError: the data does not exist.
    """

    def __init__(self, config: DataConfig, encoder: ImageEncoder, folder: Path, options: EncodeOptions):
        self.encoder, self.folder, self.options = encoder, folder, options
        self.max_bad = config.max_bad
        self._lock: FileLock | None = None  # of the process that began
        self.splits: dict[str, IndexedSplit | StreamedSplit] = {}
        for split in SPLITS:
            if isinstance(config, CustomConfig) and config.stream:
                self.splits[split] = StreamedSplit(config, split, encoder.image_size)
            else:
                self.splits[split] = IndexedSplit(open_data(config, split, encoder.image_size), split)
        # Kept as a hash: resuming compares it, and the names may be millions
        contents = {split: source.contents() for split, source in self.splits.items()}
        self.provenance = encoder.provenance(
            data={key: value for key, value in to_dict(config).items() if key not in _NOT_CONTENT},
            records=hashlib.sha256(json.dumps(contents).encode()).hexdigest(),
            seed=options.seed,
            views=options.views,
            mirror=options.mirror,
            shard_images=options.shard_images,
        )

    def begin(self) -> None:
        """Write the index without shards, or check that an interrupted job can be resumed.

        Raises:
            ValueError: the folder holds something else, was encoded with other options, or is being written by
                another process.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        kind = type(self.provenance)
        if (self.folder / kind.index).exists():
            _require_same(read_index(self.folder, kind).provenance, self.provenance, self.folder)
        elif any(not path.name.startswith(".") for path in self.folder.iterdir()):
            raise ValueError(f"{self.folder} is not empty and holds no {kind.index}: choose an empty folder")
        try:  # two of them would remove each other's unfinished shards
            self._lock = FileLock(self.folder / _LOCK)
        except BlockingIOError as error:
            raise ValueError(f"{error} is encoding into {self.folder}: wait for it, or choose another folder") from None
        remove_parts(self.folder)
        write_index(self.folder, ShardIndex(self.provenance, None))

    def run(self, rank: int, world: int, on_progress: Callable[[int, bool], None]) -> ShardsBySplit:
        """Encode the shards of process `rank` of `world`, except those that exist.

        Args:
            rank: index of this process.
            world: number of processes.
            on_progress: called with a number of images and whether they were encoded before.

        Returns:
            The shards of this process, by split.

        Raises:
            ValueError: more records are broken than `max_bad` allows, or the disk is full.
        """
        try:
            return self._run(rank, world, on_progress)
        except BaseException:
            self._unlock()  # so that another one can go on, also in this process
            raise

    def _run(self, rank: int, world: int, on_progress: Callable[[int, bool], None]) -> ShardsBySplit:
        bad = BadRecordCounter(self.max_bad)
        found: ShardsBySplit = {split: [] for split in self.splits}
        with ThreadPoolExecutor(self.options.workers) as pool:  # decoding releases the GIL, so threads are enough
            for split, source in self.splits.items():
                for job in source.jobs(self.options.shard_images, rank, world):
                    there = existing_shard(self.folder / job.name, self.provenance)
                    if there is None:
                        there = self._encode_shard(split, job, pool, bad, on_progress)
                    else:
                        views, sides = self._variants(split)
                        images = there.rows // (views * len(sides)) + len(there.bad)
                        on_progress(job.images or images, True)
                        bad.merge(there.bad)
                    found[split].append(there)
        return found

    def images(self, rank: int, world: int) -> int | None:
        """The number of images of a process; None for a stream, whose length is unknown."""
        size, total = self.options.shard_images, 0
        for source in self.splits.values():
            if isinstance(source, StreamedSplit):
                return None
            total += sum(job.images or 0 for job in source.jobs(size, rank, world))
        return total

    def finish(self, found: Iterable[ShardsBySplit]) -> ShardIndex:
        """Write the final index, which marks the folder as complete.

        Raises:
            ValueError: all processes together found too many broken records, or only such in a split, or there are
                foreign shards.
        """
        found = list(found)
        shards = {
            split: sorted((shard for own in found for shard in own[split]), key=lambda shard: shard.name)
            for split in self.splits
        }
        self._require_rows(shards)
        # Each process has counted its own only: the limit is for all of them
        BadRecordCounter(self.max_bad).merge(name for own in shards.values() for shard in own for name in shard.bad)
        known = {shard.name for own in shards.values() for shard in own}
        if others := sorted(file.name for file in self.folder.glob("*.parquet") if file.name not in known):
            raise ValueError(f"{self.folder} holds {others[0]}, which is not of this data set: delete it and run again")
        index = ShardIndex(self.provenance, shards)
        write_index(self.folder, index)
        self._unlock()
        return index

    def _require_rows(self, shards: ShardsBySplit) -> None:
        """Refuse splits whose records are all broken, and remove their shards: mended images are then read again."""
        errors = []
        for split, own in shards.items():
            broken = list(dict.fromkeys(name for shard in own for name in shard.bad))
            if broken and not any(shard.rows for shard in own):
                errors.append(f"all {len(broken)} records of {split} are broken, for example {broken[0]}")
                for shard in own:
                    (self.folder / shard.name).unlink()
        if errors:
            self._unlock()
            raise ValueError(errors[0])

    def _unlock(self) -> None:
        if self._lock is not None:
            (self.folder / _LOCK).unlink(missing_ok=True)
            self._lock.close()

    def _variants(self, split: str) -> tuple[int, tuple[bool, ...]]:
        """The number of views of each image, and the sides of each view."""
        # Validation images once, as they are
        options = self.options
        return (1, (False,)) if split == "validation" else (options.views, _SIDES[: 1 + options.mirror])

    def _encode_shard(
        self,
        split: str,
        job: ShardJob,
        pool: ThreadPoolExecutor,
        bad: BadRecordCounter,
        on_progress: Callable[[int, bool], None],
    ) -> ShardFile:
        """Encode and write one shard."""
        options, source = self.options, self.splits[split]
        views, sides = self._variants(split)
        rows: dict[str, list[Any]] = {"key": [], "view": [], "mirrored": [], "captions": []}
        values = [np.empty((0, self.provenance.width), dtype=self.provenance.dtype)]
        broken: dict[str, None] = {}
        jobs = ((item, view) for item in job.items for view in range(views))
        pairs = _prefetch(pool, partial(_pair, source, options.seed), jobs, _BATCHES_AHEAD * options.batch_size)
        while batch := list(islice(pairs, options.batch_size)):
            good = []
            for item, view, pair in batch:
                if isinstance(pair, BadRecord):  # a dict as an ordered set
                    broken[str(pair)] = None
                    continue
                good.append(pair.image)
                # Rows in the order of the codes: `_codes` puts each image's mirror right behind it
                for mirrored in sides:
                    rows["key"].append(pair.key or str(item))
                    rows["view"].append(view)
                    rows["mirrored"].append(mirrored)
                    rows["captions"].append(pair.captions or (pair.caption,))
            bad.add(broken)
            if good:
                values.append(self._encoded(np.stack(good), len(sides) > 1))
            on_progress(sum(view == 0 for _, view, _ in batch), False)  # images, however many views
        return write_shard(self.folder / job.name, rows, np.concatenate(values), self.provenance, list(broken))

    @torch.no_grad()
    def _encoded(self, pixels: np.ndarray, mirror: bool) -> np.ndarray:
        """Encode uint8 [B, H, W, 3] to [B, width]; with `mirror` to [2 * B, width], each image and its mirror."""
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        if mirror:
            # Shaped [2 B, 3, H, W], mirrors behind their images
            images = torch.stack([images, images.flip(-1)], 1).flatten(0, 1)
        return self.encoder.encode(images.to(self.encoder.device).float().div_(255)).flatten(1).cpu().numpy()


def _pair(source: IndexedSplit | StreamedSplit, seed: int, job: tuple[Any, int]) -> tuple[Any, int, Pair | BadRecord]:
    """Read one view of an item: (item, view, pair or the reason why there is none)."""
    item, view = job
    try:
        return item, view, source.pair(item, seed, view)
    except BadRecord as error:
        return item, view, error


def _prefetch(pool: ThreadPoolExecutor, work: Callable[[T], R], jobs: Iterable[T], most: int) -> Iterator[R]:
    """Map `work` over jobs in threads; yields results in order, with at most `most` pending."""
    waiting: deque[Future[R]] = deque()
    for job in jobs:
        waiting.append(pool.submit(work, job))
        if len(waiting) == most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _require_same(there: Provenance, wanted: Provenance, folder: Path) -> None:
    old, new = asdict(there), asdict(wanted)
    differ = [key for key in new if old[key] != new[key]]
    if differ:
        changes = "; ".join(f"{key.replace('_', ' ')} was {old[key]}, is now {new[key]}" for key in differ)
        raise ValueError(
            f"{folder} holds shards with other options ({changes}): choose another folder, or the same options"
        )
