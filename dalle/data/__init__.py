"""Captioned pictures: the embedded emoji, synthetic shapes, and the user's own."""

from __future__ import annotations

from dalle.data.emoji import EmojiData, EmojiPairs
from dalle.data.pair import BadPair, Pair, PairDataset
from dalle.data.shapes import ShapesData, ShapesPairs

DataConfig = EmojiData | ShapesData


def open_data(config: DataConfig, split: str, image_size: int) -> PairDataset:
    """The split of a data set, its pictures [image_size, image_size, 3]."""
    if isinstance(config, ShapesData):
        return ShapesPairs(config, split, image_size)
    return EmojiPairs(config, split, image_size)


__all__ = ["BadPair", "DataConfig", "Pair", "PairDataset", "open_data"]
