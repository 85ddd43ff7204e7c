"""Your own captioned images with random access: every record has an index."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dalle.data.base import Pair
from dalle.data.custom.config import CustomConfig
from dalle.data.custom.decode import decode_record
from dalle.data.custom.records import IndexedRecords
from dalle.data.custom.splits import check_split, source_of_split, warn_splits_are_one


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
        self.config, self.split, self.image_size = config, check_split(split), image_size
        self.rows: IndexedRecords = source_of_split(config, split).rows()
        in_validation_split = np.array([config.holds_out(key) for key in self.rows.keys])
        self.members = np.flatnonzero(in_validation_split == (split == "validation"))
        if config.separate_validation or in_validation_split.all() or not in_validation_split.any():
            # A set so small that one split would be empty is used whole for both
            self.members = np.arange(len(self.rows))
            if split == "validation" and not config.separate_validation:
                warn_splits_are_one(config, "every" if in_validation_split.any() else "no")

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
