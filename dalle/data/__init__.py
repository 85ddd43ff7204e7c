"""Data sets of captioned images: embedded drawings, synthetic shapes, your own images, and pre-encoded shards."""

from __future__ import annotations

from pathlib import Path

from dalle.data.base import BadRecord, Pair, PairDataset, PairStream
from dalle.data.custom.config import CustomConfig
from dalle.data.custom.dataset import CustomDataset
from dalle.data.custom.stream import CustomStream, StreamValidation
from dalle.data.drawings import DrawingsConfig, DrawingsDataset
from dalle.data.drawings.dataset import TESTS
from dalle.data.drawings.sets import DRAWINGS
from dalle.data.shapes import ShapesConfig, ShapesDataset
from dalle.data.token_shards.dataset import (
    EmbeddedImageShardsConfig,
    EmbeddingShardsConfig,
    ShardsConfig,
    ShardsDataset,
    TokenShardsConfig,
)
from dalle.files import expand_home

DataConfig = DrawingsConfig | ShapesConfig | CustomConfig
TokenDataConfig = DataConfig | TokenShardsConfig  # for models of image codes
EmbeddedImageDataConfig = DataConfig | EmbeddedImageShardsConfig  # for models of embeddings and images
EmbeddingDataConfig = EmbeddedImageDataConfig | EmbeddingShardsConfig  # for models of image embeddings
AnyDataConfig = EmbeddingDataConfig | TokenShardsConfig


def open_data(config: AnyDataConfig, split: str, image_size: int) -> PairDataset:
    """Open one split of a data set for random access.

    Images are uint8 [image_size, image_size, 3]; shards yield codes or embeddings instead. The validation split of a
    streamed set is a fixed sample of its records.

    Raises:
        ValueError: the data does not exist, has no such split, or does not match its options.
    """
    if isinstance(config, ShardsConfig):
        return ShardsDataset(config, split)
    if isinstance(config, ShapesConfig):
        return ShapesDataset(config, split, image_size)
    if isinstance(config, CustomConfig):
        return (StreamValidation if config.stream else CustomDataset)(config, split, image_size)
    return DrawingsDataset(config, split, image_size)


def open_training(config: AnyDataConfig, image_size: int) -> PairDataset | PairStream:
    """Open the training split: a stream if the config says `stream: true`, else a random-access data set."""
    if isinstance(config, CustomConfig) and config.stream:
        return CustomStream(config, image_size)
    return open_data(config, "train", image_size)


def reporting_splits(config: AnyDataConfig) -> tuple[str, ...]:
    """The disjoint splits for which metrics are reported."""
    return ("known", "validation", *TESTS) if isinstance(config, DrawingsConfig) else ("train", "validation")


def location(config: AnyDataConfig) -> Path | None:
    """The local file or folder that holds the data; None for synthetic shapes, a hub id or a glob pattern."""
    if isinstance(config, ShardsConfig):
        return config.path
    if isinstance(config, DrawingsConfig):
        return config.root or DRAWINGS
    if isinstance(config, CustomConfig) and (local := expand_home(config.path)).exists():
        return local
    return None


__all__ = [
    "AnyDataConfig",
    "BadRecord",
    "DataConfig",
    "DrawingsConfig",
    "EmbeddedImageDataConfig",
    "EmbeddingDataConfig",
    "Pair",
    "PairDataset",
    "PairStream",
    "TokenDataConfig",
    "location",
    "open_data",
    "open_training",
    "reporting_splits",
]
