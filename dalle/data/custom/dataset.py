"""The user's own captioned images: a folder, parquet files, tar shards, or a data set of the hub."""

from __future__ import annotations

import glob
import logging
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from dalle.config import config
from dalle.data.base import BadRecord, Pair, read_image
from dalle.data.custom.folder import FolderSource
from dalle.data.custom.layouts import layout_of
from dalle.data.custom.parquet import hub_source, parquet_source, saved_source
from dalle.data.custom.records import Record, Rows, Shard, Source, content_of, held_out, sample_caption
from dalle.data.custom.walk import described
from dalle.data.custom.webdataset import TarSource
from dalle.data.shuffle import spread
from dalle.images.read import Crop
from dalle.ranges import Decay, NonNegativeInt, PositiveInt, Range
from dalle.remote import may_be_an_id

log = logging.getLogger(__name__)

SPLITS = ("train", "validation")
_OPEN_SHARDS = 32  # of a stream, in validation
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_BRACES = re.compile(r"\{([^{}]*)\}")


@config
class PairsData:
    """Your own images with captions; docs/data.md shows every layout."""

    kind: Literal["pairs"] = "pairs"
    """Captioned images of your own."""
    path: str
    """A folder of captioned images; parquet or tar files (a file, a folder, a pattern); or a hub id, owner/name."""
    stream: bool = False
    """Read in order through a shuffle buffer, for sets that are too large to index or to copy to this machine."""
    split: str = "train"
    """Split to train on, where a hub data set or a folder in its layout has splits."""
    image: str | None = None
    """Column with images (tar: the ending of their names); null takes image, jpg, png, webp, ..."""
    caption: str | None = None
    """Column with captions (tar: an ending, or json.ENTRY); null takes caption, captions, text, texts or txt."""
    key: str | None = None
    """Column with a name of each record (parquet, hub), by which some are held out; null takes file and row."""
    validation_share: Decay = 0.02
    """Share of records that is held out for validation, by a hash of each record's name."""
    validation_split: str | None = None
    """Another split of the same data set to validate on; nothing is held out then."""
    validation_path: str | None = None
    """Another path to validate on; nothing is held out then."""
    stream_validation: PositiveInt = 256
    """Records that a streamed set is validated on, at most; they are read ahead and kept in memory."""
    shuffle_buffer: PositiveInt = 2000
    """Records that a stream mixes at a time."""
    crop: Crop = "centre"
    """centre: the largest square in the middle. random: any square. pad: all of the image, with white beside it."""
    crop_share: Annotated[float, Range(0, 1, above=True)] = 0.7
    """Smallest share of the largest square's area that a random crop takes."""
    max_bad: NonNegativeInt = 100
    """Broken records (an unreadable image, no caption) that are skipped before it is an error."""

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise ValueError("path is empty: expected a folder, a file, a pattern or a hub id")

    @property
    def separate_validation(self) -> bool:
        return self.validation_path is not None or self.validation_split is not None

    def holds_out(self, key: str) -> bool:
        """Whether the record of that name validates."""
        return not self.separate_validation and held_out(key, self.validation_share)

    def source(self, split: str) -> Source:
        """Where the records of a split are, those of the other split perhaps among them."""
        if split == "train" or not self.separate_validation:
            return open_source(self, self.path, self.split)
        return open_source(self, self.validation_path or self.path, self.validation_split or self.split)


class Pairs:
    """Pairs of one split, in any order.

    In "train" the caption (of several) and a random crop come from the pair's seed; in "validation" it is always the
    first caption, and no crop is random.

    Attributes:
        rows: all records.
        members: numbers of this split's.

    Raises:
        ValueError: there is no such split, or nothing usable at the path.
    """

    def __init__(self, config: PairsData, split: str, image_size: int):
        self.config, self.split, self.image_size = config, _known(split), image_size
        self.rows: Rows = config.source(split).rows()
        apart = np.array([config.holds_out(key) for key in self.rows.keys])
        if split == "validation" and not config.separate_validation and not apart.any():
            _tell_none_held_out(config)
        self.members = np.flatnonzero(apart == (split == "validation"))
        if config.separate_validation or apart.all() or not apart.any():
            self.members = np.arange(len(self.rows))  # too few to have two splits: both are the whole

    def __len__(self) -> int:
        return len(self.members)

    def pair(self, index: int, seed: int) -> Pair:
        """Pair `index`, its image uint8 [image_size, image_size, 3]."""
        record = self.rows.record(int(self.members[index]))
        return decoded(record, self.config, self.image_size, seed if self.split == "train" else None)

    def captions(self) -> Iterator[str]:
        """Every caption of the split: what a BPE is learnt from."""
        for row in self.members:
            yield from self.rows.captions(int(row))


class PairsStream:
    """The training pairs of a set that is read in order, shard after shard."""

    def __init__(self, config: PairsData, image_size: int):
        self.config, self.image_size = config, image_size
        self.source = config.source("train")
        self.shards = self.source.shards()

    def records(self, seed: int, epoch: int) -> Iterator[Record]:
        """One pass, in an order that is a function of (seed, epoch): shards shuffled, records mixed by a buffer."""
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(len(self.shards))
        everything = (record for number in order for record in self.shards[number].records())
        ours = (record for record in everything if not self.config.holds_out(record.key))
        buffer = list(islice(ours, self.config.shuffle_buffer))
        for record in ours:
            slot = int(rng.integers(len(buffer)))
            yield buffer[slot]
            buffer[slot] = record
        for slot in rng.permutation(len(buffer)):
            yield buffer[slot]

    def pair(self, record: Record, seed: int) -> Pair:
        """A record's pair, its image uint8 [image_size, image_size, 3]."""
        return decoded(record, self.config, self.image_size, seed)

    def captions(self) -> Iterator[str]:
        """Every caption of the training split, in the order of the shards."""
        for shard in self.source.shards(images=False):
            for record in shard.records():
                if not self.config.holds_out(record.key):
                    yield from record.captions


class StreamValidation:
    """A few records of a streamed split, read when they are first needed, and kept undecoded in memory.

    They are the first ones of some shards that lie evenly among all, one of each in turn.
    """

    def __init__(self, config: PairsData, split: str, image_size: int):
        self.config, self.split, self.image_size = config, _known(split), image_size
        self._kept: list[Record] | None = None

    def __len__(self) -> int:
        return len(self._records())

    def pair(self, index: int, seed: int) -> Pair:
        """Pair `index`, with its first caption and no random crop."""
        return decoded(self._records()[index], self.config, self.image_size, None)

    def captions(self) -> Iterator[str]:
        """All captions of these records."""
        for record in self._records():
            yield from record.captions

    def _records(self) -> list[Record]:
        if self._kept is None:
            config, most = self.config, self.config.stream_validation
            shards = config.source(self.split).shards()
            wanted = self.split == "validation" and not config.separate_validation
            self._kept = list(islice(_in_turn(shards, lambda record: config.holds_out(record.key) == wanted), most))
            if not self._kept:
                _tell_none_held_out(config)
                self._kept = list(islice(_in_turn(shards, lambda _: True), most))
        return self._kept


def _in_turn(shards: Sequence[Shard], wanted: Callable[[Record], bool]) -> Iterator[Record]:
    """Records one by one of as many shards as are open at a time; where one ends, another is opened."""
    first = set(spread(len(shards), _OPEN_SHARDS))
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


def open_source(config: PairsData, path: str, split: str) -> Source:
    """What lies at a path, by what it looks like.

    Raises:
        ValueError: nothing that could be used.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        return _of_folder(config, local, split)
    found = matching(local)
    if found:
        if split != "train":
            raise ValueError(f"{path} has no split {split!r}: files that are named are all of one split")
        return _of_files(config, found)
    if set(path) & set("*?[{"):
        raise ValueError(f"no file matches data.path {path}")
    if not is_hub_id(path):
        raise ValueError(f"there is no folder or file {path}: set data.path to your images")
    return hub_source(path, split, config.image, config.caption, config.key)


def _of_folder(config: PairsData, root: Path, split: str) -> Source:
    layout = layout_of(root, split, config.image, config.caption)
    if layout.kind == "saved":
        return saved_source(root, split, config.image, config.caption, config.key)
    if layout.kind != "images":
        _tell_once(str(root), described(layout.passed))
        return _of_files(config, layout.files)
    for name in ("image", "key"):
        if getattr(config, name) is not None:
            raise ValueError(
                f"data.{name}={getattr(config, name)} is for tables and tar files, and {root} is of images"
            )
    source = FolderSource(root, layout.files, config.caption)
    _tell_once(str(root), described(layout.passed + source.passed))
    return source


@cache
def _tell_once(where: str, passed: str) -> None:
    if passed:
        log.warning("%s: not used: %s", where, passed)


def _of_files(config: PairsData, files: list[Path]) -> Source:
    endings = {file.suffix.lower() for file in files}
    if endings == {".parquet"}:
        return parquet_source(files, config.image, config.caption, config.key)
    if endings == {".tar"} and config.key is not None:
        raise ValueError(f"data.key={config.key} is for tables, and {files[0]} is a tar file, whose records have names")
    if endings == {".tar"}:
        return TarSource(files, config.image, config.caption)
    raise ValueError(f"{files[0]}: expected a folder, or files that end in .parquet or in .tar")


def matching(path: Path) -> list[Path]:
    """A file, or those that a pattern matches."""
    return [path] if path.is_file() else [Path(f) for one in braces(str(path)) for f in sorted(glob.glob(one))]


def is_hub_id(path: str) -> bool:
    """Whether `owner/name` can be meant for the hub, rather than for something that is not there."""
    local = Path(path).expanduser()
    alike = _HUB_ID.fullmatch(path) is not None and may_be_an_id(path.split("/"))
    return alike and not local.parent.is_dir() and local.suffix not in (".parquet", ".tar")


def braces(pattern: str) -> list[str]:
    """Shell braces written out: a-{000..002}.tar, {left,right}/*.tar."""
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    first, dots, last = found[1].partition("..")
    if dots and first.isdigit() and last.isdigit():
        choices = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    else:
        choices = found[1].split(",")
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [one for choice in choices for one in braces(before + choice + after)]


def decoded(record: Record, config: PairsData, image_size: int, seed: int | None) -> Pair:
    """A record's image and caption; without a seed the first caption and no random crop.

    Raises:
        BadRecord: the record cannot be used.
    """
    if record.fault is None and not record.captions:
        raise BadRecord(record.key, "its caption is empty")
    content = content_of(record)
    if seed is None:
        crop: Crop = "centre" if config.crop == "random" else config.crop
        image, caption = read_image(content, record.key, image_size, crop), record.captions[0]
    else:
        crop_seed, caption = sample_caption(record.key, record.captions, seed)
        image = read_image(content, record.key, image_size, config.crop, config.crop_share, crop_seed)
    return Pair(image, caption, record.captions, record.key)


def _known(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"data split {split!r} is unknown: choose from {', '.join(SPLITS)}")
    return split


def _tell_none_held_out(config: PairsData) -> None:
    log.warning(
        "%s: no record is held out (data.validation_share=%g), so validation looks at training images",
        config.path,
        config.validation_share,
    )
