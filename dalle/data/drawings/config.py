"""The options of the embedded drawings: which of them, and how they are varied and captioned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

from dalle.config import config
from dalle.config.ranges import NonNegativeInt, Probability, Range
from dalle.data.drawings.captions import FAMILIES, STYLES
from dalle.data.drawings.sets import SetName

Language = Literal["en", "hi", "ne"]
_MOST_UNEQUAL = 1000  # weights: the slots of the others are repeated as often, and all are shuffled in memory
_LANGUAGES = ", ".join(get_args(Language))


def check_languages(languages: Sequence[str]) -> None:
    """Refuse languages in which no drawing has a caption.

    Raises:
        ValueError: one of them is unknown.
    """
    if unknown := [language for language in languages if language not in get_args(Language)]:
        raise ValueError(f"language is {unknown[0]!r}: choose from {_LANGUAGES}")


@config
class DrawingsConfig:
    """How images and captions are composed; data/emoji/README.md and data/icons/README.md describe the drawings."""

    kind: Literal["drawings"] = "drawings"
    """The embedded drawings: emoji and vector icons."""
    sets: tuple[SetName, ...] = ("emoji", "icons")
    """The embedded sets to use."""
    weights: tuple[Annotated[float, Range(0, 1000, above=True)], ...] | None = None
    """Relative sampling weight of each set; null: each concept counts by the square root of its number of drawings."""
    root: Path | None = None
    """Folder with emoji/ and icons/; null is the repository's data/."""
    styles: tuple[str, ...] | None = None
    """Art styles to use; null uses all."""
    languages: tuple[Language, ...] = ("en", "hi", "ne")
    """Languages of the captions; the first is the most frequent."""
    first_language: Probability = 0.7
    """Fraction of captions in the first language, for concepts with names in all; the others share the rest equally."""
    style_named: Probability = 0.75
    """Fraction of captions that name the style."""
    keywords: Probability = 0.08
    """Fraction of single-object captions that add some of the concept's keywords."""
    inks: Probability = 0.5
    """Fraction of single-color drawings that are recolored; the caption names the color."""
    backgrounds: Probability = 0.35
    """Fraction of images with a colored background, which the caption names."""
    scenes: Probability = 0.12
    """Fraction of images with two or three objects, whose spatial relation the caption names."""
    shift: Annotated[float, Range(0, 0.25, hint="a share of the side")] = 0.06
    """Largest offset of an object from the center, as a fraction of the image's side; objects are never cut off."""
    scale: Annotated[float, Range(0.25, 1)] = 0.75
    """Smallest side of a single object, as a fraction of the image's side."""
    rotation: Annotated[float, Range(0, 45, hint="degrees")] = 0.0
    """Largest random rotation of an object, in degrees."""
    flips: Probability = 0.0
    """Fraction of objects that are mirrored, among those that may be; captions swap left and right."""
    composed: bool = True
    """Whether training images are composed; false shows each drawing as in evaluation."""
    include_test: bool = False
    """Include all other splits in train: for a judge of drawings (docs/evaluation.md), never for a generator."""
    max_bad: NonNegativeInt = 0
    """Number of broken records to skip before raising an error."""

    def __post_init__(self) -> None:
        if not self.sets or len(set(self.sets)) != len(self.sets):
            raise ValueError(f"sets is {list(self.sets)}: give one or both of emoji, icons, each once")
        known = [*(STYLES if "emoji" in self.sets else ()), *(FAMILIES if "icons" in self.sets else ())]
        if self.styles is not None:
            unknown = [style for style in self.styles if style not in known]
            if unknown or not self.styles:
                raise ValueError(f"styles {unknown or '[]'}: choose from {', '.join(known)}")
        if self.weights is not None and len(self.weights) != len(self.sets):
            raise ValueError(f"weights is {list(self.weights)}: give one per set, {', '.join(self.sets)}")
        if self.weights is not None and max(self.weights) > _MOST_UNEQUAL * min(self.weights):
            raise ValueError(
                f"weights is {list(self.weights)}: the largest may be {_MOST_UNEQUAL} times the smallest; to do "
                "without a set, leave it out of sets"
            )
        if not self.languages or len(set(self.languages)) != len(self.languages):
            raise ValueError(f"languages is {list(self.languages)}: choose from {_LANGUAGES}, each once")
