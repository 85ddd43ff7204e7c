"""Drawings of one split with captions: training composes them anew each time, evaluation shows each as it is."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from dalle.config import config
from dalle.data.base import Pair
from dalle.data.drawings import captions
from dalle.data.drawings.captions import COLORS, FAMILIES, RELATIONS, ROWS, STYLES, Concept
from dalle.data.drawings.composition import (
    WHITE,
    Composition,
    choose_background,
    choose_ink,
    kept_inside,
    lay,
    place,
    rotated,
    scene_boxes,
)
from dalle.data.drawings.render import BLACK, Color
from dalle.data.drawings.sets import DRAWINGS, Drawing, SetName, read_set
from dalle.ranges import NonNegativeInt, Probability, Range

TESTS = ("test_pair", "test_block", "test_concept")
SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "known": ("train",),
    "validation": ("validation",),
    **{name: (name,) for name in TESTS},
    "held_out": TESTS,
    "all": ("train", "validation", *TESTS, "excluded"),
}
Language = Literal["en", "hi", "ne"]


@config
class DrawingsData:
    """How captions and images are composed; data/emoji/README.md and data/icons/README.md tell what there is."""

    kind: Literal["drawings"] = "drawings"
    """The embedded drawings: emoji and vector icons."""
    sets: tuple[SetName, ...] = ("emoji", "icons")
    """Which of the embedded sets."""
    weights: tuple[Annotated[float, Range(0, 1000, above=True)], ...] | None = None
    """How often each set is shown, relative to the others; null: by the square roots of its concepts' drawings."""
    root: Path | None = None
    """Folder that holds emoji/ and icons/; null is the repository's data."""
    styles: tuple[str, ...] | None = None
    """Art styles to use; null: all of the sets'."""
    languages: tuple[Language, ...] = ("en", "hi", "ne")
    """Languages of the captions; the first is the most frequent."""
    first_language: Probability = 0.7
    """Share of captions in the first language, of what has names in all; the others share the rest."""
    style_named: Probability = 0.75
    """Share of captions that name the style."""
    keywords: Probability = 0.08
    """Share of captions of one object that go on with some of its keywords."""
    inks: Probability = 0.5
    """Share of the drawings of one color that have another than black, which the caption names."""
    backgrounds: Probability = 0.35
    """Share of images on a colored background, which the caption names."""
    scenes: Probability = 0.12
    """Share of images that show two or three objects and how they lie."""
    shift: Annotated[float, Range(0, 0.25, hint="a share of the side")] = 0.06
    """How far an object may lie off the center, as a share of the image's side; none is cut."""
    scale: Annotated[float, Range(0.25, 1)] = 0.75
    """Smallest size an object is shown at, as a share of the whole image."""
    rotation: Annotated[float, Range(0, 45, hint="degrees")] = 0.0
    """Degrees by which an object may be turned, at most."""
    flips: Probability = 0.0
    """Share of objects that are mirrored, where they have no right way round; captions swap left and right."""
    composed: bool = True
    """Whether training images are composed; false shows each drawing as evaluation does."""
    include_test: bool = False
    """Let the split train hold all others too: for a judge of drawings (docs/evaluation.md), never for a model."""
    max_bad: NonNegativeInt = 0
    """Broken records that are skipped before it is an error."""

    def __post_init__(self) -> None:
        if not self.sets or len(set(self.sets)) != len(self.sets):
            raise ValueError(f"sets {list(self.sets)}: one or both of emoji, icons, each once")
        known = [*(STYLES if "emoji" in self.sets else ()), *(FAMILIES if "icons" in self.sets else ())]
        if self.styles is not None:
            unknown = [style for style in self.styles if style not in known]
            if unknown or not self.styles:
                raise ValueError(f"styles {unknown or '[]'}: choose from {', '.join(known)}")
        if self.weights is not None and len(self.weights) != len(self.sets):
            raise ValueError(f"weights {list(self.weights)}: one for each of sets, {', '.join(self.sets)}")
        if not self.languages:
            raise ValueError("languages is empty: choose from en, hi, ne")


class Drawings:
    """Drawings of one split with captions.

    In "train" an index stands for a concept, about as often as the square root of the number of its drawings (349
    concepts are drawn 20 times or more, 2,288 once), and everything else comes from the pair's seed: which drawing,
    template, language, ink, background, place and size, other objects. The other splits ("validation", "test_pair",
    "test_block", "test_concept", "held_out" for the three tests, "known" for what is trained on, "all") show each
    drawing once, black or in its own colors, as large as the image, on white, with its canonical caption
    ("a red heart, 3d style"), whatever the seed, so that figures measured on them can be repeated. Other objects of a
    scene come from the same style and split.

    Attributes:
        drawings: what the split holds.
        styles: style of each.
        concepts: what each shows.
        groups: group of each, an emoji's one of `captions.GROUPS`, an icon's its category.
        one_color: whether each is of one color that a caption may name.

    Raises:
        ValueError: the folder, a file, or the split is not there.
    """

    def __init__(self, config: DrawingsData, split: str, image_size: int):
        if split not in SPLITS:
            raise ValueError(f"data split {split!r} is unknown: choose from {', '.join(SPLITS)}")
        if image_size < 8:
            raise ValueError(f"drawings of {image_size} pixels cannot be told apart: image_size must be 8 or more")
        self.config, self.split, self.image_size = config, split, image_size
        self.composed = split == "train" and config.composed
        root = config.root or DRAWINGS
        if config.root is None and not root.is_dir():
            raise ValueError(
                "the embedded drawings are in the repository's data folder and not in the wheel: give "
                "data.root=CHECKOUT/data, or images of your own by 'data={kind: pairs, path: FOLDER}'"
            )
        if not root.is_dir():
            raise ValueError(f"there is no folder {root}: data.root must be the repository's data or a copy of it")
        wanted = SPLITS["all" if split == "train" and config.include_test else split]
        by_set = [[d for d in read_set(name, root, config.styles) if d.split in wanted] for name in config.sets]
        self.drawings: list[Drawing] = [drawing for own in by_set for drawing in own]
        if not self.drawings:
            raise ValueError(f"the split {split!r} has no drawing of these sets and styles")
        self.styles = [drawing.style for drawing in self.drawings]
        self.concepts = [drawing.concept for drawing in self.drawings]
        self.groups = [drawing.group for drawing in self.drawings]
        self.one_color = [drawing.mono and drawing.concept.colorable for drawing in self.drawings]
        self.of_style: dict[str, list[int]] = defaultdict(list)
        for number, style in enumerate(self.styles):
            self.of_style[style].append(number)
        self._slots = self._concept_slots() if self.composed else []

    def __len__(self) -> int:
        return len(self._slots) if self.composed else len(self.drawings)

    def pair(self, index: int, seed: int) -> Pair:
        """Pair `index`, its image uint8 [image_size, image_size, 3]."""
        made = self.compose(index, seed)
        return Pair(made.paint(), made.caption)

    def canonical_caption(self, index: int) -> str:
        """The caption that drawing `index` is measured with: "a red heart, 3d style"."""
        return captions.canonical(self.concepts[index], self.drawings[index].style_words)

    def caption_in(self, index: int, language: str) -> str | None:
        """The canonical caption of drawing `index` in a language; None where its concept has no name in it."""
        concept = self.concepts[index]
        if language not in concept.names:
            return None
        return captions.canonical(concept, self.drawings[index].style_words, language)

    def compose(self, index: int, seed: int) -> Composition:
        """What `pair` paints, and how it came about."""
        if not self.composed:
            layer = self.drawings[index].art.render(self.image_size)
            whole = ((0, 0, self.image_size),)
            return Composition(layer, WHITE, self.canonical_caption(index), (index,), whole, (None,))
        rng = random.Random(f"{seed}/{index}")
        drawing = rng.choice(self._slots[index])
        if rng.random() < self.config.scenes:
            return self._scene(rng, drawing)
        return self._single(rng, drawing)

    def captions(self) -> Iterator[str]:
        """Captions of every concept in every language that show all words and templates; the same each time."""
        words: dict[Concept, list[captions.Words]] = {}
        for drawing in self.drawings:
            own = words.setdefault(drawing.concept, [])
            if drawing.style_words not in own:
                own.append(drawing.style_words)
        for concept, own in words.items():
            yield from captions.every_form(concept, own, self.config.languages)
        rng = random.Random(0)
        for number in range(0, len(self.drawings), 3):
            yield self._scene(rng, number, drawn=False).caption

    def _concept_slots(self) -> list[list[int]]:
        """For each index of training the drawings that it may show: those of one concept in one set."""
        slots: list[list[list[int]]] = []
        for name in self.config.sets:
            own: dict[Concept, list[int]] = defaultdict(list)
            for number, drawing in enumerate(self.drawings):
                if drawing.set == name:
                    own[drawing.concept].append(number)
            slots.append([numbers for numbers in own.values() for _ in range(math.ceil(math.sqrt(len(numbers))))])
        if self.config.weights is not None:
            # The set that is too rare is repeated, so that no concept is ever left out.
            rates = [weight / max(1, len(own)) for weight, own in zip(self.config.weights, slots, strict=True)]
            slots = [
                [own[i % len(own)] for i in range(round(len(own) * rate / min(rates)))]
                for own, rate in zip(slots, rates, strict=True)
            ]
        return [slot for own in slots for slot in own]

    def _language(self, rng: random.Random, concepts: list[Concept]) -> str:
        """A language that all of these concepts have names in."""
        first, *others = self.config.languages
        language = first if not others or rng.random() < self.config.first_language else rng.choice(others)
        return language if all(language in concept.names for concept in concepts) else "en"

    def _object(self, rng: random.Random, number: int, side: int) -> tuple[np.ndarray, Concept, str | None, Color]:
        """A drawing rendered with chance: RGBA [side, side, 4], what it shows, its named and its own color.

        With a side of 0 nothing is rendered.
        """
        drawing = self.drawings[number]
        concept, ink, color = drawing.concept, None, BLACK
        if drawing.mono and concept.colorable and rng.random() < self.config.inks:
            ink = choose_ink(rng)
            color = COLORS[ink].rgb
        mirror = None
        if rng.random() < self.config.flips and not drawing.symbol:
            mirror = captions.mirrored(concept)
        pixels = drawing.art.render(side, color) if side else np.zeros((0, 0, 4), dtype=np.uint8)
        if mirror is not None:
            concept, pixels = mirror, pixels[:, ::-1]
        if self.config.rotation and side:
            pixels = rotated(pixels, rng.uniform(-self.config.rotation, self.config.rotation))
        return pixels, concept, ink, color if drawing.mono else ()

    def _single(self, rng: random.Random, number: int) -> Composition:
        side = self.image_size
        own = round(side * rng.uniform(self.config.scale, 1))
        pixels, concept, ink, color = self._object(rng, number, own)
        most = round(self.config.shift * side)
        free = (side - own) // 2
        top, left = kept_inside(pixels, side, free + rng.randint(-most, most), free + rng.randint(-most, most))
        layer = lay(pixels, side, top, left)
        language = self._language(rng, [concept])
        named = self.drawings[number].style_words if rng.random() < self.config.style_named else None
        caption = captions.single(rng, language, concept, named, self.config.keywords, ink)
        return self._on_background(
            rng, language, Composition(layer, WHITE, caption, (number,), ((top, left, own),), (ink,)), [color]
        )

    def _scene(self, rng: random.Random, number: int, drawn: bool = True) -> Composition:
        """Two or three objects; `drawn` False makes the caption alone."""
        relation = rng.choice(RELATIONS if rng.random() < 0.8 else ROWS)
        others = rng.choices(self.of_style[self.styles[number]], k=2 if relation in ROWS else 1)
        sources = (number, *others)
        boxes = scene_boxes(relation, self.image_size, rng, self.config.shift)
        layer = np.zeros((self.image_size, self.image_size, 4), dtype=np.uint8)
        things, colors = [], []
        for source, (top, left, own) in zip(sources, boxes, strict=True):
            pixels, concept, ink, color = self._object(rng, source, own if drawn else 0)
            if drawn:
                place(layer, pixels, top, left)
            things.append((concept, ink))
            colors.append(color)
        language = self._language(rng, [concept for concept, _ in things])
        named = self.drawings[number].style_words if rng.random() < self.config.style_named else None
        caption = captions.scene(language, relation, things, named)
        inks = tuple(ink for _, ink in things)
        return self._on_background(
            rng, language, Composition(layer, WHITE, caption, sources, boxes, inks, relation), colors
        )

    def _on_background(self, rng: random.Random, language: str, made: Composition, colors: list[Color]) -> Composition:
        """The composition on a color that its caption names, or on white; never on a color in which it vanishes."""
        own = [color for color in colors if color]
        needed = any(min(color) > 200 for color in own)  # white ink
        if not needed and rng.random() >= self.config.backgrounds:
            return made
        background = choose_background(rng, made.layer, own)
        caption = captions.on_background(rng, language, made.caption, background)
        color = COLORS[background].rgb
        return Composition(made.layer, color, caption, made.sources, made.boxes, made.inks, made.relation, background)
