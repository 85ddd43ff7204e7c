"""Captioned images: the embedded drawings, synthetic shapes, the user's own; and the token shards made of them."""

from __future__ import annotations

from pathlib import Path

from dalle.data.base import BadRecord, Pair, PairDataset, PairStream
from dalle.data.custom.dataset import Pairs, PairsData, PairsStream, StreamValidation
from dalle.data.drawings import Drawings, DrawingsData
from dalle.data.drawings.dataset import TESTS
from dalle.data.drawings.sets import DRAWINGS
from dalle.data.shapes import ShapesData, ShapesPairs
from dalle.data.token_shards.dataset import TokenPairs, TokensData

DataConfig = DrawingsData | ShapesData | PairsData
EncodedConfig = DataConfig | TokensData  # of what takes codes in place of images too


def open_data(config: EncodedConfig, split: str, image_size: int) -> PairDataset:
    """A split of a data set, its images [image_size, image_size, 3]; of a streamed set the first records.

    Token shards have codes in their place.

    Raises:
        ValueError: the data is not there, has no such split, or is not what its options say.
    """
    if isinstance(config, TokensData):
        return TokenPairs(config, split)
    if isinstance(config, ShapesData):
        return ShapesPairs(config, split, image_size)
    if isinstance(config, PairsData):
        return (StreamValidation if config.stream else Pairs)(config, split, image_size)
    return Drawings(config, split, image_size)


def open_training(config: EncodedConfig, image_size: int) -> PairDataset | PairStream:
    """The training split, as a stream where the options ask for one."""
    if isinstance(config, PairsData) and config.stream:
        return PairsStream(config, image_size)
    return open_data(config, "train", image_size)


def splits_of(config: EncodedConfig) -> tuple[str, ...]:
    """The splits of a data set that figures are stated of, none of them the same as another."""
    return ("known", "validation", *TESTS) if isinstance(config, DrawingsData) else ("train", "validation")


def location(config: EncodedConfig) -> Path | None:
    """The file or folder on this machine that holds the data; None for shapes, a hub id or a pattern."""
    if isinstance(config, TokensData):
        return config.path
    if isinstance(config, DrawingsData):
        return config.root or DRAWINGS
    if isinstance(config, PairsData) and Path(config.path).expanduser().exists():
        return Path(config.path).expanduser()
    return None


__all__ = [
    "BadRecord",
    "DataConfig",
    "DrawingsData",
    "EncodedConfig",
    "Pair",
    "PairDataset",
    "PairStream",
    "location",
    "open_data",
    "open_training",
    "splits_of",
]
