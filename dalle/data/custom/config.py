"""The options of a data set of your own: where it is, how to read it, what is held out for validation."""

from __future__ import annotations

from typing import Annotated, Literal

from dalle.config import config
from dalle.config.ranges import Decay, NonNegativeInt, PositiveInt, Range
from dalle.data.custom.records import in_validation_split
from dalle.images.read import Crop


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
    crop: Crop = "center"
    """center: the largest central square. random: a random square. pad: the whole image, padded with white."""
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

    @property
    def holds_out_any(self) -> bool:
        """Whether some records may be held out for validation."""
        return not self.separate_validation and self.validation_share > 0

    def holds_out(self, key: str) -> bool:
        """Whether the record named `key` belongs to the validation split."""
        return not self.separate_validation and in_validation_split(key, self.validation_share)
