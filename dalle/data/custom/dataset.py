"""Your own captioned images, as a random-access data set or a stream: a folder, Parquet, tar shards, or a hub id."""

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
from dalle.config.ranges import Decay, NonNegativeInt, PositiveInt, Range
from dalle.data.base import BadRecord, Pair, read_image
from dalle.data.custom.folder import FolderSource
from dalle.data.custom.layouts import layout_of
from dalle.data.custom.parquet import hub_source, parquet_source, saved_source
from dalle.data.custom.records import (
    IndexedRecords,
    Record,
    Shard,
    Source,
    image_bytes,
    in_validation_split,
    sample_caption,
)
from dalle.data.custom.walk import describe_ignored
from dalle.data.custom.webdataset import TarSource
from dalle.data.shuffle import stratified_indices
from dalle.files.remote import may_be_an_id
from dalle.images.read import Crop

log = logging.getLogger(__name__)

SPLITS = ("train", "validation")
_OPEN_SHARDS = 32  # shards read in turn for the validation sample of a stream
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_BRACES = re.compile(r"\{([^{}]*)\}")


@config
class CustomConfig:
    """Your own images with captions; docs/data.md shows every layout."""

    kind: Literal["pairs"] = "pairs"
    """Captioned images of your own."""
    path: str
    """A folder of captioned images; Parquet or tar files (one, a folder, a glob pattern); or a hub id, owner/name."""
    stream: bool = False
    """Read sequentially through a shuffle buffer, for data sets too large to index or to download."""
    split: str = "train"
    """Split to train on, if the data set has named splits."""
    image: str | None = None
    """Column with images (tar: their file extension); null tries image, jpg, png, webp, ..."""
    caption: str | None = None
    """Column with captions (tar: a file extension, or json.ENTRY); null tries caption, captions, text, texts, txt."""
    key: str | None = None
    """Column with unique record names (Parquet, hub), which decide the validation split; null uses file and row."""
    validation_share: Decay = 0.02
    """Fraction of records held out for validation, chosen by a hash of each record's name."""
    validation_split: str | None = None
    """Another split of the same data set to validate on; then nothing is held out."""
    validation_path: str | None = None
    """Another path to validate on; then nothing is held out."""
    stream_validation: PositiveInt = 256
    """Largest number of records to validate a stream on; they are kept in memory."""
    shuffle_buffer: PositiveInt = 2000
    """Size of a stream's shuffle buffer, in records."""
    crop: Crop = "centre"
    """centre: the largest central square. random: a random square. pad: the whole image, padded with white."""
    crop_share: Annotated[float, Range(0, 1, above=True)] = 0.7
    """Smallest area of a random crop, as a fraction of the largest square's."""
    max_bad: NonNegativeInt = 100
    """Number of broken records (unreadable image, no caption) to skip before raising an error."""

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise ValueError("path is empty: give a folder, a file, a glob pattern or a hub id")

    @property
    def separate_validation(self) -> bool:
        """Whether validation records come from another split or path, so that none is held out of this one."""
        return self.validation_path is not None or self.validation_split is not None

    def holds_out(self, key: str) -> bool:
        """Whether the record named `key` belongs to the validation split."""
        return not self.separate_validation and in_validation_split(key, self.validation_share)

    def source(self, split: str) -> Source:
        """Open the source that contains the records of a split, possibly along with those of the other split."""
        if split == "train" or not self.separate_validation:
            return open_source(self, self.path, self.split)
        return open_source(self, self.validation_path or self.path, self.validation_split or self.split)


class CustomDataset:
    """One split of your own data, with random access.

    In "train", the seed chooses one of several captions and a random crop. In "validation", the caption is always the
    first, and no crop is random.

    Args:
        config: where the data is and how to read it.
        split: "train" or "validation".
        image_size: height and width of the images, in pixels.

    Attributes:
        rows: all records, of both splits.
        members: indices of the records of this split, int64 [N].

    Raises:
        ValueError: there is no such split, or no usable data at the path.
    """

    def __init__(self, config: CustomConfig, split: str, image_size: int):
        self.config, self.split, self.image_size = config, _check_split(split), image_size
        self.rows: IndexedRecords = config.source(split).rows()
        in_validation_split = np.array([config.holds_out(key) for key in self.rows.keys])
        if split == "validation" and not config.separate_validation and not in_validation_split.any():
            _warn_nothing_held_out(config)
        self.members = np.flatnonzero(in_validation_split == (split == "validation"))
        if config.separate_validation or in_validation_split.all() or not in_validation_split.any():
            # A set so small that one split would be empty is used whole for both.
            self.members = np.arange(len(self.rows))

    def __len__(self) -> int:
        return len(self.members)

    def pair(self, index: int, seed: int) -> Pair:
        """Pair `index`, its image uint8 [image_size, image_size, 3]."""
        record = self.rows.record(int(self.members[index]))
        return decode_record(record, self.config, self.image_size, seed if self.split == "train" else None)

    def captions(self) -> Iterator[str]:
        """Every caption of the split: the corpus for BPE training."""
        for row in self.members:
            yield from self.rows.captions(int(row))


class CustomStream:
    """The training pairs of your own data, read sequentially shard by shard.

    Args:
        config: where the data is and how to read it.
        image_size: height and width of the images, in pixels.
    """

    def __init__(self, config: CustomConfig, image_size: int):
        self.config, self.image_size = config, image_size
        self.source = config.source("train")
        self.shards = self.source.shards()

    def records(self, seed: int, epoch: int) -> Iterator[Record]:
        """One pass over the data: shards in random order, records mixed by a shuffle buffer.

        The order is a function of (seed, epoch), so that a resumed run continues with the records that the
        uninterrupted run would have seen.
        """
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(len(self.shards))
        everything = (record for number in order for record in self.shards[number].records())
        ours = (record for record in everything if not self.config.holds_out(record.key))
        buffer = list(islice(ours, self.config.shuffle_buffer))
        for record in ours:  # each new record replaces a random one of the buffer, which is emitted
            slot = int(rng.integers(len(buffer)))
            yield buffer[slot]
            buffer[slot] = record
        for slot in rng.permutation(len(buffer)):
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
        self.config, self.split, self.image_size = config, _check_split(split), image_size
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
            shards = config.source(self.split).shards()
            wanted = self.split == "validation" and not config.separate_validation
            self._cache = list(
                islice(_round_robin(shards, lambda record: config.holds_out(record.key) == wanted), most)
            )
            if not self._cache:
                _warn_nothing_held_out(config)
                self._cache = list(islice(_round_robin(shards, lambda _: True), most))
        return self._cache


def _round_robin(shards: Sequence[Shard], wanted: Callable[[Record], bool]) -> Iterator[Record]:
    """Yield matching records from up to `_OPEN_SHARDS` shards in turn; an exhausted shard is replaced by the next."""
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


def open_source(config: CustomConfig, path: str, split: str) -> Source:
    """Open the data at `path`, whose layout is detected: folder, Parquet or tar files, or a hub id.

    Raises:
        ValueError: there is no usable data.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        return _of_folder(config, local, split)
    found = expand_pattern(local)
    if found:
        if split != "train":
            raise ValueError(
                f"{path} has no split {split!r}: named files are all of split train; give a folder to use its splits"
            )
        return _of_files(config, found)
    if set(path) & set("*?[{"):
        raise ValueError(f"no file matches data.path {path}")
    if not is_hub_id(path):
        raise ValueError(f"no such file or folder: {path}; set data.path to your images")
    return hub_source(path, split, config.image, config.caption, config.key)


def _of_folder(config: CustomConfig, root: Path, split: str) -> Source:
    layout = layout_of(root, split, config.image, config.caption)
    if layout.kind == "saved":
        return saved_source(root, split, config.image, config.caption, config.key)
    if layout.kind != "images":
        _warn_once(str(root), describe_ignored(layout.ignored))
        return _of_files(config, layout.files)
    for name in ("image", "key"):
        if getattr(config, name) is not None:
            raise ValueError(
                f"data.{name}={getattr(config, name)} is for Parquet and tar files, {root} is an image folder: omit it"
            )
    source = FolderSource(root, layout.files, config.caption)
    _warn_once(str(root), describe_ignored(layout.ignored + source.ignored))
    return source


@cache
def _warn_once(where: str, ignored: str) -> None:
    if ignored:
        log.warning("%s: not used: %s", where, ignored)


def _of_files(config: CustomConfig, files: list[Path]) -> Source:
    endings = {file.suffix.lower() for file in files}
    if endings == {".parquet"}:
        return parquet_source(files, config.image, config.caption, config.key)
    if endings == {".tar"} and config.key is not None:
        raise ValueError(f"data.key={config.key} is for Parquet files, and {files[0]} is a tar file: omit it")
    if endings == {".tar"}:
        return TarSource(files, config.image, config.caption)
    raise ValueError(
        f"{files[0]} is not a data file that can be read: expected a folder, or files that end in .parquet or .tar"
    )


def expand_pattern(path: Path) -> list[Path]:
    """The file at `path`, or the files that match it as a glob pattern."""
    return [path] if path.is_file() else [Path(f) for one in expand_braces(str(path)) for f in sorted(glob.glob(one))]


def is_hub_id(path: str) -> bool:
    """Whether `path` looks like a hub id (`owner/name`) and not like a local path that does not exist."""
    local = Path(path).expanduser()
    alike = _HUB_ID.fullmatch(path) is not None and may_be_an_id(path.split("/"))
    return alike and not local.parent.is_dir() and local.suffix not in (".parquet", ".tar")


def expand_braces(pattern: str) -> list[str]:
    """Expand shell braces: a-{000..002}.tar, {left,right}/*.tar."""
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    first, dots, last = found[1].partition("..")
    if dots and first.isdigit() and last.isdigit():
        choices = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    else:
        choices = found[1].split(",")
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [one for choice in choices for one in expand_braces(before + choice + after)]


def decode_record(record: Record, config: CustomConfig, image_size: int, seed: int | None) -> Pair:
    """Decode a record's image and choose a caption. Without a seed: the first caption, and no random crop.

    Raises:
        BadRecord: the record cannot be used.
    """
    if record.fault is None and not record.captions:
        raise BadRecord(record.key, "its caption is empty")
    content = image_bytes(record)
    if seed is None:
        crop: Crop = "centre" if config.crop == "random" else config.crop
        image, caption = read_image(content, record.key, image_size, crop), record.captions[0]
    else:
        crop_seed, caption = sample_caption(record.key, record.captions, seed)
        image = read_image(content, record.key, image_size, config.crop, config.crop_share, crop_seed)
    return Pair(image, caption, record.captions, record.key)


def _check_split(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"unknown data split {split!r}: choose from {', '.join(SPLITS)}")
    return split


def _warn_nothing_held_out(config: CustomConfig) -> None:
    log.warning(
        "%s: no record is held out (data.validation_share=%g), so validation uses training images",
        config.path,
        config.validation_share,
    )
