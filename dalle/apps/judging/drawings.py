"""The data that generated images are compared with: annotated with concept, style and canonical caption.

Images are plain: each drawing alone, in the center of a white background, without the augmentation of training.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from dalle.data import AnyDataConfig, DrawingsConfig, Pair, open_data
from dalle.data.drawings.captions import Concept

_PLAIN_SPLITS = {"train": "known"}  # training images are composed into scenes; "known" has the same ones plain


@runtime_checkable
class Drawings(Protocol):
    """A data set with annotations.

    Attributes:
        concepts: what each image shows.
        styles: the style of each image.
    """

    concepts: Sequence[Concept]
    styles: Sequence[str]

    def __len__(self) -> int: ...

    def pair(self, index: int, seed: int) -> Pair:
        """Image and caption; plain images do not depend on the seed."""
        ...

    def canonical_caption(self, index: int) -> str:
        """The caption in English without variation, such as "a red heart, 3d style"."""
        ...

    def caption_in(self, index: int, language: str) -> str | None:
        """The canonical caption in another language; None if the concept has no name in it."""
        ...


def open_plain(data: AnyDataConfig, split: str, image_size: int) -> Drawings:
    """Open a split with plain images.

    Raises:
        ValueError: the data set has no annotations, or no such split.
    """
    check_annotated(data)
    return cast(Drawings, open_data(data, _PLAIN_SPLITS.get(split, split), image_size))


def check_annotated(data: AnyDataConfig) -> None:
    """Refuse data without annotations, before any of it is opened.

    Raises:
        ValueError: it has none.
    """
    if not isinstance(data, DrawingsConfig):
        raise ValueError(f"data of kind {data.kind} names no concepts and styles: give kind=drawings, or no kind")


def choose_images(drawings: Drawings, count: int, seed: int) -> list[int]:
    """Indices of at most `count` random images with distinct canonical captions, in ascending order."""
    first_with: dict[str, int] = {}
    for index in range(len(drawings)):
        first_with.setdefault(drawings.canonical_caption(index), index)
    indices = list(first_with.values())
    return sorted(random.Random(seed).sample(indices, min(count, len(indices))))


def load_images(drawings: Drawings, indices: Sequence[int]) -> Tensor:
    """The images of some indices, float32 [N, 3, H, W] in [0, 1]."""
    stacked = np.stack([drawings.pair(index, 0).image for index in indices])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float().div_(255)


@dataclass(frozen=True)
class Baselines:
    """For each chosen image, indices of training images to compare with.

    Attributes:
        other_style: the same concept in another style; None where there is none.
        random: any image.
    """

    other_style: list[int | None]
    random: list[int]


def choose_baselines(drawings: Drawings, indices: Sequence[int], training: Drawings, seed: int) -> Baselines:
    """Choose baselines for the images `indices` of `drawings` at random among the images of `training`."""
    rng = random.Random(seed)
    by_concept: dict[str, list[int]] = {}
    for index, concept in enumerate(training.concepts):
        by_concept.setdefault(concept.phrase, []).append(index)
    other_style: list[int | None] = []
    for index in indices:
        same_concept = by_concept.get(drawings.concepts[index].phrase, [])
        possible = [other for other in same_concept if training.styles[other] != drawings.styles[index]]
        other_style.append(rng.choice(possible) if possible else None)
    return Baselines(other_style, [rng.randrange(len(training)) for _ in indices])
