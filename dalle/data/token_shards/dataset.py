"""Training from token shards (`python -m dalle encode`): captions, and codes in place of images."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from dalle.config import config
from dalle.data.base import BadRecord, Order, Pair
from dalle.data.custom.records import sample_caption
from dalle.data.shuffle import WindowShuffle, shuffled
from dalle.data.token_shards.files import GROUP_ROWS, INDEX, Group, Index, ShardFile, read_group, read_index
from dalle.ranges import NonNegativeInt, PositiveInt

log = logging.getLogger(__name__)

SPLITS = ("train", "validation")


@config
class TokensData:
    """Token shards, which `python -m dalle encode` makes of any other data set."""

    kind: Literal["tokens"] = "tokens"
    """Token shards: codes in place of images."""
    path: Path
    """Folder of the shards."""
    shuffle_buffer: PositiveInt = 2**17
    """Rows that are mixed and kept in memory at a time; a set that is no larger is shuffled whole."""
    max_bad: NonNegativeInt = 0
    """Damaged groups of rows (1,024 each) that are passed over before it is an error."""

    def check_tokenizer(self, sha256: str, name: str) -> None:
        """Refuse an image tokenizer that did not make these codes.

        Raises:
            ValueError: it is another; or there are no shards.
        """
        made_with = read_index(self.path).making.image_tokenizer
        if made_with != sha256:
            raise ValueError(
                f"the codes in {self.path} are of the image tokenizer with sha256 {made_with}, but {name} has "
                f"{sha256}: take the one that they were made with, or encode the images again"
            )


class TokenPairs:
    """Pairs of one split, in any order; cheap where one place is near the next in the order that it gives.

    In "train" the caption (of several) comes from the pair's seed, as it does with images; in "validation" it is
    always the first.

    Attributes:
        shards: the files of the split.
        sizes: rows of each group, int64 [G].

    Raises:
        ValueError: there is no such split; the shards are not finished, one is missing or not whole.
    """

    def __init__(self, config: TokensData, split: str):
        if split not in SPLITS:
            raise ValueError(f"data split {split!r} is unknown: choose from {', '.join(SPLITS)}")
        self.config, self.split = config, split
        index = read_index(config.path)
        self.making = index.making
        self.shards = _whole(config.path, index, split)
        if split == "validation" and not any(shard.rows for shard in self.shards):
            log.warning("%s holds no validation shards, so validation looks at training images", config.path)
            self.shards = _whole(config.path, index, "train")
        counts = [-(-shard.rows // GROUP_ROWS) for shard in self.shards]
        self.files = np.repeat(np.arange(len(counts)), counts)  # shard of each group, [G]
        self.within = np.concatenate([np.arange(count) for count in counts] or [np.empty(0, dtype=np.int64)])
        rows = np.array([shard.rows for shard in self.shards], dtype=np.int64)
        self.sizes = np.minimum(rows[self.files] - self.within * GROUP_ROWS, GROUP_ROWS)
        self.ends = np.cumsum(self.sizes)
        self._kept: OrderedDict[int, Group | BadRecord] = OrderedDict()

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def order(self, seed: int, epoch: int) -> Order:
        """The order of an epoch; of a set that fits the buffer that of images by number."""
        if len(self) <= self.config.shuffle_buffer:
            return shuffled(len(self), seed, epoch)
        return WindowShuffle(self.sizes, self.config.shuffle_buffer, seed, epoch)

    def pair(self, index: int, seed: int) -> Pair:
        """Row `index`: its codes int64 [h, w], and a caption.

        Raises:
            BadRecord: it cannot be read.
        """
        number = int(np.searchsorted(self.ends, index, side="right"))
        row = index - int(self.ends[number] - self.sizes[number])
        group = self._group(number)
        if isinstance(group, BadRecord):
            raise group
        captions = tuple(group.captions[row].as_py())
        caption = sample_caption(group.keys[row], captions, seed)[1] if self.split == "train" else captions[0]
        return Pair(group.codes[row].astype(np.int64).reshape(self.making.grid), caption, captions, group.keys[row])

    def captions(self) -> Iterator[str]:
        """Every caption of the split, once for each view."""
        for number in range(len(self.sizes)):
            group = self._group(number)
            if not isinstance(group, BadRecord):
                for captions in group.captions.to_pylist():
                    yield from captions

    def _group(self, number: int) -> Group | BadRecord:
        """A group of rows, from memory if it was wanted lately; or why it cannot be read."""
        if number not in self._kept:
            self._kept[number] = self._read(number)
            while len(self._kept) > 1 and sum(self.sizes[n] for n in self._kept) > self._room:
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        return self._kept[number]

    @property
    def _room(self) -> int:
        return self.config.shuffle_buffer + GROUP_ROWS  # a window ends with the group that fills it

    def _read(self, number: int) -> Group | BadRecord:
        shard, within, rows = self.shards[self.files[number]], int(self.within[number]), int(self.sizes[number])
        file = self.config.path / shard.name
        try:
            return read_group(file, within, rows, self.making)
        except ValueError as error:
            first = within * GROUP_ROWS
            return BadRecord(
                f"{file}, rows {first} to {first + rows - 1}",
                f"{error}; delete the file and run `python -m dalle encode` again, which makes only what is missing",
            )


def _whole(folder: Path, index: Index, split: str) -> list[ShardFile]:
    """The shards of a split, which are all there, with all of their bytes."""
    again = "run the `python -m dalle encode` that made it again, which makes only what is missing"
    if index.shards is None:
        raise ValueError(f"{folder} is not finished ({INDEX} lists no shards): {again}")
    shards = index.shards.get(split, [])
    for shard in shards:
        file = folder / shard.name
        if not file.is_file():
            raise ValueError(f"the shard {file} is missing: bring it back, or {again}")
        if (size := file.stat().st_size) != shard.size:
            raise ValueError(
                f"the shard {file} is not whole: {size:,} bytes of {shard.size:,}; delete it, then {again}"
            )
    return shards
