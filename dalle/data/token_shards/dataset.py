"""Training from shards (made by `python -m dalle encode`): captions with codes or embeddings in place of images."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from dalle.config import config
from dalle.config.ranges import NonNegativeInt, PositiveInt
from dalle.data.base import BadRecord, Order, Pair
from dalle.data.custom.records import sample_caption
from dalle.data.shuffle import WindowShuffle, permutation
from dalle.data.token_shards.files import GROUP_ROWS, Group, ShardFile, ShardIndex, read_group, read_index
from dalle.data.token_shards.provenance import (
    EmbeddedImageProvenance,
    EmbeddingProvenance,
    Provenance,
    TokenProvenance,
)

log = logging.getLogger(__name__)

SPLITS = ("train", "validation")


@config
class ShardsConfig:
    """Options of shards of both kinds."""

    kind: Literal["tokens", "embeddings", "embedded_images"]
    """What they hold in place of images."""
    path: Path
    """Folder with the shards."""
    shuffle_buffer: PositiveInt = 2**17
    """Rows shuffled together and kept in memory; a set that is no larger is shuffled globally."""
    max_bad: NonNegativeInt = 0
    """Number of damaged row groups (1,024 rows each) to skip before raising an error."""

    @property
    def provenance(self) -> type[Provenance]:
        """What the index of such shards records."""
        kinds: dict[str, type[Provenance]] = {
            "tokens": TokenProvenance,
            "embeddings": EmbeddingProvenance,
            "embedded_images": EmbeddedImageProvenance,
        }
        return kinds[self.kind]

    def _check_made_with(self, contents: str, maker: str, sha256: str, name: str) -> None:
        made_with = read_index(self.path, self.provenance).provenance.sha256
        if made_with != sha256:
            raise ValueError(
                f"the {contents} in {self.path} were made with the {maker} with sha256 {made_with}, but {name} has "
                f"{sha256}: use the {maker.removeprefix('image ')} they were made with, or encode the images again"
            )


@config
class TokenShardsConfig(ShardsConfig):
    """Token shards, which `python -m dalle encode` makes from any other data set."""

    kind: Literal["tokens"] = "tokens"
    """Token shards: codes in place of images."""

    def check_tokenizer(self, sha256: str, name: str) -> None:
        """Check that these codes were made with the given image tokenizer.

        Args:
            sha256: hash of the tokenizer's folder.
            name: what to call it in the error message.

        Raises:
            ValueError: they were made with another one, or there are no shards.
        """
        self._check_made_with("codes", "image tokenizer", sha256, name)


@config
class EmbeddingShardsConfig(ShardsConfig):
    """Embedding shards, which `python -m dalle encode` makes from any other data set, for priors."""

    kind: Literal["embeddings"] = "embeddings"
    """Embedding shards: a CLIP's embeddings in place of images."""

    def check_clip(self, sha256: str, name: str) -> None:
        """Check that these embeddings were made with the given CLIP.

        Args:
            sha256: hash of the CLIP's folder.
            name: what to call it in the error message.

        Raises:
            ValueError: they were made with another one, or there are no shards.
        """
        self._check_made_with("embeddings", "CLIP", sha256, name)


@config
class EmbeddedImageShardsConfig(ShardsConfig):
    """Shards of embeddings and images, which `python -m dalle encode` makes for decoders; priors take them too."""

    kind: Literal["embedded_images"] = "embedded_images"
    """A CLIP's embeddings, and the images in a decoder's size."""

    def check_clip(self, sha256: str, name: str, side: int | None = None) -> None:
        """Check that these embeddings were made with the given CLIP, and the size of the images.

        Args:
            sha256: hash of the CLIP's folder.
            name: what to call it in the error message.
            side: height and width of the decoder's images in pixels; None: images are not used.

        Raises:
            ValueError: they were made with another one, images have another size, or there are no shards.
        """
        self._check_made_with("embeddings", "CLIP", sha256, name)
        made = read_index(self.path, EmbeddedImageProvenance).provenance
        assert isinstance(made, EmbeddedImageProvenance)
        if side is not None and made.side != side:
            raise ValueError(
                f"the images in {self.path} have {made.side} pixels a side, and model.image_size is {side}: "
                "encode them again with this recipe"
            )


class ShardsDataset:
    """One split of a folder of shards, with random access; fast if read in the order of `order`.

    In "train", the seed chooses one of several captions, as it does for images. In "validation", the caption is always
    the first.

    Args:
        config: the folder and its shuffle buffer.
        split: "train" or "validation".

    Attributes:
        shards: the files of the split.
        sizes: number of rows of each row group, int64 [G].

    Raises:
        ValueError: there is no such split, encoding has not finished, or a shard is missing or truncated.
    """

    def __init__(self, config: ShardsConfig, split: str):
        if split not in SPLITS:
            raise ValueError(f"unknown data split {split!r}: choose from {', '.join(SPLITS)}")
        self.config, self.split = config, split
        index = read_index(config.path, config.provenance)
        self.provenance = index.provenance
        self.shards = _checked_shards(config.path, index, split)
        if split == "validation" and not any(shard.rows for shard in self.shards):
            log.warning("%s holds no validation shards, so validation uses training images", config.path)
            self.shards = _checked_shards(config.path, index, "train")
        counts = [-(-shard.rows // GROUP_ROWS) for shard in self.shards]
        self.files = np.repeat(np.arange(len(counts)), counts)  # index of each group's shard, [G]
        # Number of each group within its shard, [G]
        self.within = np.concatenate([np.arange(count) for count in counts] or [np.empty(0, dtype=np.int64)])
        rows = np.array([shard.rows for shard in self.shards], dtype=np.int64)
        # Shaped [G]; the last of a shard is smaller
        self.sizes = np.minimum(rows[self.files] - self.within * GROUP_ROWS, GROUP_ROWS)
        self.ends = np.cumsum(self.sizes)
        self._cache: OrderedDict[int, Group | BadRecord] = OrderedDict()

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def order(self, seed: int, epoch: int) -> Order:
        """The order of an epoch: global if the set fits the buffer (the same as for images), else a window shuffle."""
        if len(self) <= self.config.shuffle_buffer:
            return permutation(len(self), seed, epoch)
        return WindowShuffle(self.sizes, self.config.shuffle_buffer, seed, epoch)

    def pair(self, index: int, seed: int) -> Pair:
        """Row `index`: its codes, int64 [h, w], its embedding, float32 [D], or both image and embedding; and a caption.

        Raises:
            BadRecord: its row group is damaged.
        """
        number = int(np.searchsorted(self.ends, index, side="right"))
        row = index - int(self.ends[number] - self.sizes[number])
        group = self._group(number)
        if isinstance(group, BadRecord):
            raise group.with_traceback(None)  # it is raised for each row, and would keep all of their tracebacks
        captions = tuple(group.captions[row].as_py())
        caption = sample_caption(group.keys[row], captions, seed)[1] if self.split == "train" else captions[0]
        image, embedding = self.provenance.unpack(group.values[row])
        return Pair(image, caption, captions, group.keys[row], embedding)

    def captions(self) -> Iterator[str]:
        """Every caption of the split, once per view of its image."""
        for number in range(len(self.sizes)):
            group = self._group(number)
            if not isinstance(group, BadRecord):
                for captions in group.captions.to_pylist():
                    yield from captions

    def _group(self, number: int) -> Group | BadRecord:
        """A row group through an LRU cache; or a `BadRecord` if it is damaged."""
        if number not in self._cache:
            self._cache[number] = self._read(number)
            # A window of the shuffle in memory, or each of its rows would read a row group from disk again
            while len(self._cache) > 1 and sum(self.sizes[n] for n in self._cache) > self._cache_rows:
                self._cache.popitem(last=False)
        self._cache.move_to_end(number)
        return self._cache[number]

    @property
    def _cache_rows(self) -> int:
        return self.config.shuffle_buffer + GROUP_ROWS  # a window ends with the group that crosses its size

    def _read(self, number: int) -> Group | BadRecord:
        shard, within, rows = self.shards[self.files[number]], int(self.within[number]), int(self.sizes[number])
        file = self.config.path / shard.name
        try:
            return read_group(file, within, rows, self.provenance)
        except ValueError as error:
            first = within * GROUP_ROWS
            return BadRecord(
                f"{file}, rows {first} to {first + rows - 1}",
                f"{error}; delete the file and run `python -m dalle encode` again, which writes only missing shards",
            )


def _checked_shards(folder: Path, index: ShardIndex, split: str) -> list[ShardFile]:
    """The shards of a split, after checking that every file exists with its full size."""
    again = "run the same `python -m dalle encode` again, which writes only missing shards"
    if index.shards is None:
        raise ValueError(f"{folder} is not finished ({index.provenance.index} lists no shards): {again}")
    shards = index.shards.get(split, [])
    for shard in shards:
        file = folder / shard.name
        if not file.is_file():
            raise ValueError(f"the shard {file} is missing: restore it, or {again}")
        if (size := file.stat().st_size) != shard.size:
            raise ValueError(
                f"the shard {file} is truncated: {size:,} bytes of {shard.size:,}; delete it, then {again}"
            )
    return shards
