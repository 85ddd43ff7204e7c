"""Writing token shards: the images of any data set through an image tokenizer, once, shared among processes."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from dalle.config import to_dict
from dalle.data import DataConfig, open_data
from dalle.data.bad_records import BadRecordCounter
from dalle.data.base import BadRecord, Pair, PairDataset
from dalle.data.custom.dataset import Pairs, PairsData, decoded
from dalle.data.custom.records import Record, Shard
from dalle.data.loader import pair_seed
from dalle.data.token_shards.dataset import SPLITS
from dalle.data.token_shards.files import (
    INDEX,
    Index,
    Provenance,
    ShardFile,
    found_shard,
    read_index,
    write_index,
    write_shard,
)
from dalle.files import remove_parts
from dalle.image_tokenizers import ImageTokenizer

T = TypeVar("T")
R = TypeVar("R")
Found = dict[str, list[ShardFile]]  # by split
_NOT_CONTENT = ("path", "max_bad", "shuffle_buffer", "stream_validation")  # options that change nothing in a shard
_SIDES = (False, True)  # as it is, mirrored
_BATCHES_AHEAD = 4


@dataclass(frozen=True)
class EncodeOptions:
    """What is made of each image, and by how much at a time."""

    seed: int = 0
    """Of what is left to chance in an image: view v is what epoch v of a training with this seed begins with."""
    views: int = 1
    """Views of each image: random crops of it, or whatever its data set varies."""
    mirror: bool = False
    """Each view is there a second time, mirrored; captions that tell left from right turn false."""
    shard_images: int = 8192
    """Images of one shard: what a kill can lose."""
    batch_size: int = 64
    """Images that go through the tokenizer at a time."""
    workers: int = 2
    """Threads that read images."""

    def __post_init__(self) -> None:
        for name in ("views", "shard_images", "batch_size", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name.replace('_', '-')} is {getattr(self, name)}: at least 1")


class _Piece(NamedTuple):
    """Images that become one shard."""

    name: str
    images: int | None  # where that is known before they are read
    items: Iterator[Any]


class _Numbered:
    """A split by number: shard n is of images [n * size, (n + 1) * size)."""

    def __init__(self, data: PairDataset, split: str):
        self.data, self.split = data, split

    def pieces(self, size: int, rank: int, world: int) -> Iterator[_Piece]:
        for number in range(rank, -(-len(self.data) // size), world):
            own = range(number * size, min((number + 1) * size, len(self.data)))
            yield _Piece(f"{self.split}-{number:05}.parquet", len(own), iter(own))

    def pair(self, index: int, seed: int, view: int) -> Pair:
        return self.data.pair(index, pair_seed(seed, view, index))

    def contents(self) -> list[str]:
        if isinstance(self.data, Pairs):
            return [self.data.rows.keys[row] for row in self.data.members]
        return [str(len(self.data))]


class _Streamed:
    """A split in the order of its source's shards: each becomes shards of its own, all by one process."""

    def __init__(self, config: PairsData, split: str, image_size: int):
        self.config, self.split, self.image_size = config, split, image_size
        self.apart = split == "validation" and not config.separate_validation
        self.shards: list[Shard] = config.source(split).shards()

    def pieces(self, size: int, rank: int, world: int) -> Iterator[_Piece]:
        for number in range(rank, len(self.shards), world):
            records = self.shards[number].records()
            own = (record for record in records if self.config.holds_out(record.key) == self.apart)
            for part, first in enumerate(own):  # the rest of each part is taken from `own` below
                items = chain([first], islice(own, size - 1))
                yield _Piece(f"{self.split}-{number:05}-{part:05}.parquet", None, items)
                deque(items, maxlen=0)  # what was not read, as the shard is there already

    def pair(self, record: Record, seed: int, view: int) -> Pair:
        training = self.split == "train"
        return decoded(record, self.config, self.image_size, pair_seed(seed, view, 0) if training else None)

    def contents(self) -> list[str]:
        return [shard.name for shard in self.shards]


class Encoding:
    """The encoding of one data set into one folder; every process has its own, with the same arguments.

    First `begin` in one process, then `run` in all, then `finish` in one, with what all have found.

    Args:
        config: the data set; its splits stay what they are.
        tokenizer: in evaluation mode, on the device that it is to run on.
        sha256: hash of the tokenizer's folder.
        folder: where the shards go.
        options: see `EncodeOptions`.

    Raises:
        ValueError: the data is not there.
    """

    def __init__(
        self, config: DataConfig, tokenizer: ImageTokenizer, sha256: str, folder: Path, options: EncodeOptions
    ):
        self.tokenizer, self.folder, self.options = tokenizer, folder, options
        self.max_bad = config.max_bad
        self.splits: dict[str, _Numbered | _Streamed] = {}
        for split in SPLITS:
            if isinstance(config, PairsData) and config.stream:
                self.splits[split] = _Streamed(config, split, tokenizer.image_size)
            else:
                self.splits[split] = _Numbered(open_data(config, split, tokenizer.image_size), split)
        contents = {split: source.contents() for split, source in self.splits.items()}
        self.making = Provenance(
            image_tokenizer=sha256,
            codebook_size=tokenizer.codebook_size,
            grid=tokenizer.grid,
            data={key: value for key, value in to_dict(config).items() if key not in _NOT_CONTENT},
            records=hashlib.sha256(json.dumps(contents).encode()).hexdigest(),
            seed=options.seed,
            views=options.views,
            mirror=options.mirror,
            shard_images=options.shard_images,
        )

    def begin(self) -> None:
        """Say in the folder what is being made, or go on where another run has stopped.

        Raises:
            ValueError: the folder holds something else.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_parts(self.folder)
        if (self.folder / INDEX).exists():
            _refuse_other(read_index(self.folder).making, self.making, self.folder)
        elif any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} is not empty and holds no token shards: choose another folder")
        write_index(self.folder, Index(self.making, None))

    def run(self, rank: int, world: int, told: Callable[[int, bool], None]) -> Found:
        """Make the shards of process `rank` of `world`, but for those that are there.

        Args:
            rank: this process.
            world: how many there are.
            told: is called with a number of images, and whether they were there already.

        Raises:
            ValueError: more records are broken than the data set allows, or there is no room.
        """
        bad = BadRecordCounter(self.max_bad)
        found: Found = {split: [] for split in self.splits}
        with ThreadPoolExecutor(self.options.workers) as pool:
            for split, source in self.splits.items():
                for piece in source.pieces(self.options.shard_images, rank, world):
                    there = found_shard(self.folder / piece.name, self.making)
                    if there is None:
                        there = self._made(split, piece, pool, bad, told)
                    else:
                        told(piece.images or there.rows, True)
                        bad.merge(there.bad)
                    found[split].append(there)
        return found

    def images(self, rank: int, world: int) -> int | None:
        """Images of a process, where that is known before they are read."""
        size, total = self.options.shard_images, 0
        for source in self.splits.values():
            if isinstance(source, _Streamed):
                return None
            total += sum(piece.images or 0 for piece in source.pieces(size, rank, world))
        return total

    def finish(self, found: Iterable[Found]) -> Index:
        """Write tokens.json, with which the folder is complete.

        Raises:
            ValueError: the processes have met too many broken records together, or there are other shards.
        """
        found = list(found)
        shards = {
            split: sorted((shard for own in found for shard in own[split]), key=lambda shard: shard.name)
            for split in self.splits
        }
        BadRecordCounter(self.max_bad).merge(name for own in shards.values() for shard in own for name in shard.bad)
        known = {shard.name for own in shards.values() for shard in own}
        if others := sorted(file.name for file in self.folder.glob("*.parquet") if file.name not in known):
            raise ValueError(f"{self.folder} holds {others[0]}, which is not of this data: delete it, then go on")
        index = Index(self.making, shards)
        write_index(self.folder, index)
        return index

    def _made(
        self,
        split: str,
        piece: _Piece,
        pool: ThreadPoolExecutor,
        bad: BadRecordCounter,
        told: Callable[[int, bool], None],
    ) -> ShardFile:
        """Encode the images of one shard, and write it."""
        options, source = self.options, self.splits[split]
        views, sides = (1, (False,)) if split == "validation" else (options.views, _SIDES[: 1 + options.mirror])
        rows: dict[str, list[Any]] = {"key": [], "view": [], "mirrored": [], "captions": []}
        codes = [np.empty((0, self.making.codes), dtype=np.int64)]
        broken: dict[str, None] = {}
        jobs = ((item, view) for item in piece.items for view in range(views))
        pairs = _ahead(pool, partial(_pair, source, options.seed), jobs, _BATCHES_AHEAD * options.batch_size)
        while batch := list(islice(pairs, options.batch_size)):
            good = []
            for item, view, pair in batch:
                if isinstance(pair, BadRecord):
                    broken[str(pair)] = None
                    continue
                good.append(pair.image)
                for mirrored in sides:
                    rows["key"].append(pair.key or str(item))
                    rows["view"].append(view)
                    rows["mirrored"].append(mirrored)
                    rows["captions"].append(pair.captions or (pair.caption,))
            bad.add(broken)
            if good:
                codes.append(self._codes(np.stack(good), len(sides) > 1))
            told(sum(view == 0 for _, view, _ in batch), False)
        return write_shard(self.folder / piece.name, rows, np.concatenate(codes), self.making, list(broken))

    def _codes(self, pixels: np.ndarray, mirror: bool) -> np.ndarray:
        """uint8 [B, H, W, 3] to int64 [B, h * w]; with `mirror` [2 * B, h * w], each image and its mirror image."""
        device = next(self.tokenizer.parameters()).device
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        if mirror:
            images = torch.stack([images, images.flip(-1)], 1).flatten(0, 1)
        return self.tokenizer.encode(images.to(device).float().div_(255)).flatten(1).cpu().numpy()


def _pair(source: _Numbered | _Streamed, seed: int, job: tuple[Any, int]) -> tuple[Any, int, Pair | BadRecord]:
    """Item and number of the view, and the pair or why there is none."""
    item, view = job
    try:
        return item, view, source.pair(item, seed, view)
    except BadRecord as error:
        return item, view, error


def _ahead(pool: ThreadPoolExecutor, work: Callable[[T], R], jobs: Iterable[T], most: int) -> Iterator[R]:
    """Results in order, at most so many of them ahead of what was asked for."""
    waiting: deque[Future[R]] = deque()
    for job in jobs:
        waiting.append(pool.submit(work, job))
        if len(waiting) == most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _refuse_other(there: Provenance, wanted: Provenance, folder: Path) -> None:
    old, new = asdict(there), asdict(wanted)
    differ = [key for key in new if old[key] != new[key]]
    if differ:
        told = "; ".join(f"{key.replace('_', ' ')} was {old[key]}, is now {new[key]}" for key in differ)
        raise ValueError(f"{folder} holds token shards that were made otherwise: {told}. Choose another folder")
