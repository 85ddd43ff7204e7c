"""The images of a split divided into jobs, one for each token shard, and among processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, NamedTuple

from dalle.data.base import Pair, PairDataset
from dalle.data.custom.config import CustomConfig
from dalle.data.custom.dataset import CustomDataset
from dalle.data.custom.decode import decode_record
from dalle.data.custom.records import Record, Shard
from dalle.data.custom.splits import source_of_split
from dalle.data.loader import pair_seed


class ShardJob(NamedTuple):
    """The images to encode into one shard."""

    name: str
    images: int | None  # None if unknown before reading them
    items: Iterator[Any]


class IndexedSplit:
    """A random-access split: shard n holds the images [n * size, (n + 1) * size)."""

    def __init__(self, data: PairDataset, split: str):
        self.data, self.split = data, split

    def jobs(self, size: int, rank: int, world: int) -> Iterator[ShardJob]:
        """Yield this process's jobs, each of at most `size` images."""
        # Every world-th shard: processes come to the end together
        for number in range(rank, -(-len(self.data) // size), world):
            own = range(number * size, min((number + 1) * size, len(self.data)))
            yield ShardJob(f"{self.split}-{number:05}.parquet", len(own), iter(own))

    def pair(self, index: int, seed: int, view: int) -> Pair:
        """A view of the image `index`, as epoch `view` of a training run with this seed has it."""
        return self.data.pair(index, pair_seed(seed, view, index))

    def contents(self) -> list[str]:
        """Names of the records (or shards) of the split, whose hash tells whether existing shards fit the data."""
        if isinstance(self.data, CustomDataset):
            return [self.data.rows.keys[row] for row in self.data.members]
        return [str(len(self.data))]


class StreamedSplit:
    """A streamed split: each shard of the source becomes one or more token shards, all made by one process."""

    def __init__(self, config: CustomConfig, split: str, image_size: int):
        self.config, self.split, self.image_size = config, split, image_size
        self.apart = split == "validation" and not config.separate_validation
        self.shards: list[Shard] = source_of_split(config, split).shards()

    def jobs(self, size: int, rank: int, world: int) -> Iterator[ShardJob]:
        """Yield this process's jobs, each of at most `size` images."""
        if self.apart and not self.config.holds_out_any:  # a search for them would read the whole stream
            return
        for number in range(rank, len(self.shards), world):
            records = self.shards[number].records()
            own = (record for record in records if self.config.holds_out(record.key) == self.apart)
            for part, first in enumerate(own):  # `islice` below takes the rest of each part from `own`
                items = chain([first], islice(own, size - 1))
                yield ShardJob(f"{self.split}-{number:05}-{part:05}.parquet", None, items)
                deque(items, maxlen=0)  # skip what the caller left unread because the shard exists

    def pair(self, record: Record, seed: int, view: int) -> Pair:
        """A view of a record: a choice such as training makes, but of no epoch of it.

        In training, the seed depends on the record's place in the epoch, which each epoch shuffles anew.
        """
        training = self.split == "train"
        # The key makes the choices of records differ (`sample_caption`)
        return decode_record(record, self.config, self.image_size, pair_seed(seed, view, 0) if training else None)

    def contents(self) -> list[str]:
        """Names of the records (or shards) of the split, whose hash tells whether existing shards fit the data."""
        return [shard.name for shard in self.shards]
