"""The splits of your own data: their names, where their records lie, and a warning if both are the same."""

from __future__ import annotations

import logging
import re
from typing import Literal

from dalle.data.custom.config import CustomConfig
from dalle.data.custom.open_source import open_source
from dalle.data.custom.records import Source

log = logging.getLogger(__name__)

SPLITS = ("train", "validation")


def source_of_split(config: CustomConfig, split: str) -> Source:
    """Open the source that contains the records of a split, possibly along with those of the other split."""
    if split == "train" or not config.separate_validation:
        return open_source(config, config.path, config.split)
    # Either may be given alone: another path with the same split, or another split of the same path
    path, split = config.validation_path or config.path, config.validation_split or config.split
    try:
        return open_source(config, path, split)
    except ValueError as error:  # it names the options of the training split
        message = re.sub(r"\b(set|matches) data\.(path|split) ", r"\1 data.validation_\2 ", str(error))
        raise ValueError(message) from error


def check_split(split: str) -> str:
    """Return the name of a split.

    Raises:
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown data split {split!r}: choose from {', '.join(SPLITS)}")
    return split


def warn_splits_are_one(config: CustomConfig, held_out: Literal["no", "every"]) -> None:
    """Warn that validation will use training images, since the hashes of the names hold out no record, or every one."""
    log.warning(
        "%s: %s record is held out (data.validation_share=%g), so validation uses training images",
        config.path,
        held_out,
        config.validation_share,
    )
