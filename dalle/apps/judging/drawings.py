"""What drawings are judged against: images with a concept, a style and a canonical caption each, plain on white."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from dalle.data import AnyDataConfig, Pair, open_data
from dalle.data.drawings.captions import Concept

_PLAIN = {"train": "known"}  # the split that shows the images of another one uncomposed


@runtime_checkable
class Drawings(Protocol):
    """A data set that knows what each of its images shows.

    Attributes:
        concepts: What each image shows.
        styles: The style of each image.
    """

    concepts: Sequence[Concept]
    styles: Sequence[str]

    def __len__(self) -> int: ...

    def pair(self, index: int, seed: int) -> Pair:
        """Image `index` in the middle of white, whatever the seed."""
        ...

    def canonical_caption(self, index: int) -> str:
        """ "a red heart, 3d style"."""
        ...

    def caption_in(self, index: int, language: str) -> str | None:
        """The same in another language; None where there is no name in it."""
        ...


def open_plain(data: AnyDataConfig, split: str, image_size: int) -> Drawings:
    """A split with its images uncomposed: each alone, in the middle of white.

    Raises:
        ValueError: The data set does not say what its images show, or has no such split.
    """
    opened = open_data(data, _PLAIN.get(split, split), image_size)
    if not isinstance(opened, Drawings):
        raise ValueError(f"data of kind {data.kind} names no concepts and styles: drawings can be judged on emoji only")
    return cast(Drawings, opened)


def chosen(drawings: Drawings, count: int, seed: int) -> list[int]:
    """At most `count` images, each caption once, drawn with a fixed seed."""
    first: dict[str, int] = {}
    for index in range(len(drawings)):
        first.setdefault(drawings.canonical_caption(index), index)
    indices = list(first.values())
    return sorted(random.Random(seed).sample(indices, min(count, len(indices))))


def images_of(drawings: Drawings, indices: Sequence[int]) -> Tensor:
    """Some images, float32 [N, 3, H, W] in [0, 1]."""
    stacked = np.stack([drawings.pair(index, 0).image for index in indices])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float().div_(255)


@dataclass(frozen=True)
class Beside:
    """For each chosen image others of a data set that it is compared with.

    Attributes:
        other_style: The same concept in another style; None where there is none.
        random: Any image.
    """

    other_style: list[int | None]
    random: list[int]


def beside(drawings: Drawings, indices: Sequence[int], known: Drawings, seed: int) -> Beside:
    """What stands beside the chosen images in the table, drawn with a fixed seed from the images of `known`."""
    rng = random.Random(seed)
    of_concept: dict[str, list[int]] = {}
    for index, concept in enumerate(known.concepts):
        of_concept.setdefault(concept.phrase, []).append(index)
    others: list[int | None] = []
    for index in indices:
        same = of_concept.get(drawings.concepts[index].phrase, [])
        possible = [other for other in same if known.styles[other] != drawings.styles[index]]
        others.append(rng.choice(possible) if possible else None)
    return Beside(others, [rng.randrange(len(known)) for _ in indices])
