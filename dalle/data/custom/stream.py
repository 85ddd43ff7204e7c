"""Your own captioned images as a stream: shard by shard through a shuffle buffer, and a sample to validate on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np

from dalle.data.base import Pair
from dalle.data.custom.config import CustomConfig
from dalle.data.custom.decode import decode_record
from dalle.data.custom.records import Record, Shard
from dalle.data.custom.splits import check_split, source_of_split, warn_splits_are_one
from dalle.data.shuffle import stratified_indices

_OPEN_SHARDS = 32  # shards read in turn for the validation sample of a stream


class CustomStream:
    """The training pairs of your own data, read sequentially shard by shard.

    Args:
        config: where the data is and how to read it.
        image_size: height and width of the images, in pixels.
    """

    def __init__(self, config: CustomConfig, image_size: int):
        self.config, self.image_size = config, image_size
        self.source = source_of_split(config, "train")
        self.shards = self.source.shards()

    def records(self, seed: int, epoch: int) -> Iterator[Record]:
        """One pass over the data: shards in random order, records mixed by a shuffle buffer.

        The order is a function of (seed, epoch), so that a resumed run continues with the records that the
        uninterrupted run would have seen.
        """
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(len(self.shards))
        records = (record for number in order for record in self.shards[number].records())
        # Before the buffer: what is held out must not take places in it
        training = (record for record in records if not self.config.holds_out(record.key))
        buffer = list(islice(training, self.config.shuffle_buffer))
        for record in training:  # each new record replaces a random one of the buffer, which is emitted
            slot = int(rng.integers(len(buffer)))
            yield buffer[slot]
            buffer[slot] = record
        for slot in rng.permutation(len(buffer)):  # what is left at the end, in random order
            yield buffer[slot]

    def pair(self, record: Record, seed: int) -> Pair:
        """Decode a record; its image is uint8 [image_size, image_size, 3]."""
        return decode_record(record, self.config, self.image_size, seed)

    def captions(self) -> Iterator[str]:
        """Every caption of the training split, shard by shard."""
        for shard in self.source.shards(images=False):
            for record in shard.records():
                if not self.config.holds_out(record.key):
                    yield from record.captions


class StreamValidation:
    """A fixed sample of a streamed split, read at first use and kept undecoded in memory.

    The sample takes the first records of shards spread evenly over the set, one of each in turn: streams are often
    sorted, and the first records alone would be of one kind.
    """

    def __init__(self, config: CustomConfig, split: str, image_size: int):
        self.config, self.split, self.image_size = config, check_split(split), image_size
        self._cache: list[Record] | None = None

    def __len__(self) -> int:
        return len(self._records())

    def pair(self, index: int, seed: int) -> Pair:
        """Pair `index`, with its first caption and no random crop."""
        return decode_record(self._records()[index], self.config, self.image_size, None)

    def captions(self) -> Iterator[str]:
        """All captions of these records."""
        for record in self._records():
            yield from record.captions

    def _records(self) -> list[Record]:
        if self._cache is None:
            config, most = self.config, self.config.stream_validation
            # A separate validation set is used as it is; else the records that the hash of their name holds out
            shards = source_of_split(config, self.split).shards()
            wanted = self.split == "validation" and not config.separate_validation
            found = _round_robin(shards, lambda record: config.holds_out(record.key) == wanted)
            # A search for what cannot be there would read the whole stream
            self._cache = [] if wanted and not config.holds_out_any else list(islice(found, most))
            if not self._cache:
                warn_splits_are_one(config, "no")
                self._cache = list(islice(_round_robin(shards, lambda _: True), most))
        return self._cache


def _round_robin(shards: Sequence[Shard], wanted: Callable[[Record], bool]) -> Iterator[Record]:
    """Yield matching records from up to `_OPEN_SHARDS` shards in turn; an exhausted shard is replaced by the next."""
    # Neighboring shards are often alike: those that are open at first are spread over the set
    first = set(stratified_indices(len(shards), _OPEN_SHARDS))
    others = deque(shard for number, shard in enumerate(shards) if number not in first)
    turns = deque(filter(wanted, shards[number].records()) for number in sorted(first))
    while turns:
        records = turns.popleft()
        record = next(records, None)
        if record is not None:
            yield record
            turns.append(records)
        elif others:
            turns.append(filter(wanted, others.popleft().records()))
