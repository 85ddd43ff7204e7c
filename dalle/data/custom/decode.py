"""A record of your own data to a pair: its image decoded and cropped, one of its captions chosen."""

from __future__ import annotations

from dalle.data.base import BadRecord, Pair, read_image
from dalle.data.custom.config import CustomConfig
from dalle.data.custom.records import EMPTY, Record, image_bytes, sample_caption
from dalle.images.read import Crop


def decode_record(record: Record, config: CustomConfig, image_size: int, seed: int | None) -> Pair:
    """Decode a record's image and choose a caption. Without a seed: the first caption, and no random crop.

    Raises:
        BadRecord: the record cannot be used.
    """
    if record.fault is None and not record.captions:
        raise BadRecord(record.key, record.caption_fault or EMPTY)
    # A fault of the record itself is raised here, with a better reason than that it has no caption
    content = image_bytes(record)
    if seed is None:
        # Validation compares checkpoints with each other: its images must be the same each time
        crop: Crop = "center" if config.crop == "random" else config.crop
        image, caption = read_image(content, record.key, image_size, crop), record.captions[0]
    else:
        crop_seed, caption = sample_caption(record.key, record.captions, seed)
        image = read_image(content, record.key, image_size, config.crop, config.crop_share, crop_seed)
    return Pair(image, caption, record.captions, record.key)
