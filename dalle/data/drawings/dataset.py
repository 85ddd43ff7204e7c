"""The embedded drawings as a data set: training composes new images each epoch, evaluation shows each drawing once."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from dalle.data.base import Pair
from dalle.data.drawings import captions
from dalle.data.drawings.captions import COLORS, RELATIONS, ROWS, Concept
from dalle.data.drawings.composition import (
    WHITE,
    Composition,
    choose_background,
    choose_ink,
    clamp_inside,
    place,
    place_alone,
    rotate,
    scene_boxes,
)
from dalle.data.drawings.config import DrawingsConfig
from dalle.data.drawings.render import BLACK, Color
from dalle.data.drawings.sets import DRAWINGS, read_set
from dalle.data.drawings.tables import wrong_row

TESTS = ("test_pair", "test_block", "test_concept")
SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "known": ("train",),
    "validation": ("validation",),
    **{name: (name,) for name in TESTS},
    "held_out": TESTS,
    "all": ("train", "validation", *TESTS, "excluded"),
}


class DrawingsDataset:
    """One split of the embedded drawings, with captions.

    In "train", an index stands for a concept, repeated by the square root of its number of drawings: 349 concepts
    have 20 drawings or more and 2,288 only one, and neither should dominate. Everything else depends on the seed:
    drawing, caption template, language, color, background, position and size, other objects (from the same style).

    The other splits ("validation", "test_pair", "test_block", "test_concept"; "held_out" is the three tests, "known"
    the training drawings, "all" everything) show each drawing once, whatever the seed: black or in its own colors,
    filling the image, on white, with its canonical caption ("a red heart, 3d style"). Metrics are thus reproducible.

    Args:
        config: how to compose images and captions.
        split: a key of `SPLITS`.
        image_size: height and width of the images, in pixels, at least 8.

    Attributes:
        drawings: the drawings of the split.
        styles: style of each drawing.
        concepts: concept of each drawing.
        groups: group of each drawing: Unicode's group of emoji, the category for icons.
        one_color: whether each drawing has a single color that a caption may name.

    Raises:
        ValueError: a file, the folder or the split does not exist, or no drawing matches.
    """

    def __init__(self, config: DrawingsConfig, split: str, image_size: int):
        if split not in SPLITS:
            raise ValueError(f"unknown data split {split!r}: choose from {', '.join(SPLITS)}")
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
            raise ValueError(f"no such folder: {root}; data.root must be the repository's data folder or a copy of it")
        wanted = SPLITS["all" if split == "train" and config.include_test else split]
        everything = [drawing for name in config.sets for drawing in read_set(name, root, config.styles)]
        for drawing in everything:  # one of no split would be left out without a word
            if drawing.split not in SPLITS["all"]:
                raise wrong_row(drawing.file, drawing.row, f"its split {drawing.split!r} is unknown")
        self.drawings = [drawing for drawing in everything if drawing.split in wanted]
        if not self.drawings:
            raise ValueError(
                f"the split {split!r} has no drawings with these sets and styles: change data.sets or data.styles"
            )
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
        """Pair `index`, its image uint8 [image_size, image_size, 3].

        Raises:
            BadRecord: a drawing in it cannot be rendered.
        """
        composition = self.compose(index, seed)
        return Pair(composition.paint(), composition.caption)

    def canonical_caption(self, index: int) -> str:
        """The caption used to evaluate drawing `index`: "a red heart, 3d style"."""
        return captions.canonical_caption(self.concepts[index], self.drawings[index].style_words)

    def caption_in(self, index: int, language: str) -> str | None:
        """The canonical caption of drawing `index` in a language; None if its concept has no name in it."""
        concept = self.concepts[index]
        if language not in concept.names:
            return None
        return captions.canonical_caption(concept, self.drawings[index].style_words, language)

    def compose(self, index: int, seed: int) -> Composition:
        """The composition behind `pair(index, seed)`: the image before blending, and every choice that was made."""
        if not self.composed:
            layer = self.drawings[index].render(self.image_size)
            whole = ((0, 0, self.image_size),)
            return Composition(layer, WHITE, self.canonical_caption(index), (index,), whole, (None,))
        # One generator per (seed, index), so that a sample does not depend on which worker makes it, or when.
        rng = random.Random(f"{seed}/{index}")
        drawing = rng.choice(self._slots[index])
        if rng.random() < self.config.scenes:  # with the drawing as its first object
            return self._scene(rng, drawing)
        return self._single(rng, drawing)

    def captions(self) -> Iterator[str]:
        """Captions of every concept and language that cover all words and templates: the corpus for BPE training."""
        words: dict[Concept, list[captions.Words]] = {}
        for drawing in self.drawings:
            own = words.setdefault(drawing.concept, [])
            if drawing.style_words not in own:
                own.append(drawing.style_words)
        for concept, own in words.items():
            yield from captions.all_templates(concept, own, self.config.languages)
        rng = random.Random(0)
        for number in range(0, len(self.drawings), 3):
            yield self._scene(rng, number, drawn=False).caption

    def _concept_slots(self) -> list[list[int]]:
        """For each training index, the drawings to choose from: those of one concept in one set."""
        slots: list[list[list[int]]] = []
        for name in self.config.sets:
            own: dict[Concept, list[int]] = defaultdict(list)
            for number, drawing in enumerate(self.drawings):
                if drawing.set == name:
                    own[drawing.concept].append(number)
            # By the square root: concepts with many drawings are seen more often, but do not crowd out the others
            slots.append([numbers for numbers in own.values() for _ in range(math.ceil(math.sqrt(len(numbers))))])
        if self.config.weights is not None:
            # Repeat the slots of underrepresented sets instead of dropping slots of the others: every concept stays.
            # Slots per unit of weight: the set with the fewest is repeated most often
            rates = [weight / max(1, len(own)) for weight, own in zip(self.config.weights, slots, strict=True)]
            slots = [
                [own[i % len(own)] for i in range(round(len(own) * rate / min(rates)))]
                for own, rate in zip(slots, rates, strict=True)
            ]
        return [slot for own in slots for slot in own]

    def _language(self, rng: random.Random, concepts: list[Concept]) -> str:
        """A random language in which all of these concepts have names."""
        first, *others = self.config.languages
        language = first if not others or rng.random() < self.config.first_language else rng.choice(others)
        # Every concept has an English name
        return language if all(language in concept.names for concept in concepts) else "en"

    def _object(self, rng: random.Random, number: int, side: int) -> tuple[np.ndarray, Concept, str | None, Color]:
        """Render a drawing with random color, mirroring and rotation.

        Args:
            rng: source of all randomness.
            number: index of the drawing.
            side: side of the result in pixels; 0 renders nothing, for captions only.

        Returns:
            RGBA uint8 [side, side, 4]; its concept; the color name for the caption, if any; and its RGB color, () for
            a drawing of many colors.
        """
        drawing = self.drawings[number]
        concept, ink, color = drawing.concept, None, BLACK
        if drawing.mono and concept.colorable and rng.random() < self.config.inks:
            ink = choose_ink(rng)
            color = COLORS[ink].rgb
        mirror = None
        if rng.random() < self.config.flips and not drawing.symbol:
            # A mirrored arrow to the left is one to the right: the concept may change with it
            mirror = captions.mirror_concept(concept)
        pixels = drawing.render(side, color) if side else np.zeros((0, 0, 4), dtype=np.uint8)
        if mirror is not None:
            concept, pixels = mirror, pixels[:, ::-1]
        if self.config.rotation and side:
            pixels = rotate(pixels, rng.uniform(-self.config.rotation, self.config.rotation))
        return pixels, concept, ink, color if drawing.mono else ()

    def _single(self, rng: random.Random, number: int) -> Composition:
        side = self.image_size
        own = round(side * rng.uniform(self.config.scale, 1))
        pixels, concept, ink, color = self._object(rng, number, own)
        most = round(self.config.shift * side)
        free = (side - own) // 2
        top, left = clamp_inside(pixels, side, free + rng.randint(-most, most), free + rng.randint(-most, most))
        layer = place_alone(pixels, side, top, left)
        language = self._language(rng, [concept])
        named = self.drawings[number].style_words if rng.random() < self.config.style_named else None
        caption = captions.single_caption(rng, language, concept, named, self.config.keywords, ink)
        return self._on_background(
            rng, language, Composition(layer, WHITE, caption, (number,), ((top, left, own),), (ink,)), [color]
        )

    def _scene(self, rng: random.Random, number: int, drawn: bool = True) -> Composition:
        """Two or three objects; `drawn` False skips rendering, for captions only."""
        relation = rng.choice(RELATIONS if rng.random() < 0.8 else ROWS)  # pairs, or rows of three
        # Objects of one scene have one style, as the caption names only one
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
        caption = captions.scene_caption(language, relation, things, named)
        inks = tuple(ink for _, ink in things)
        return self._on_background(
            rng, language, Composition(layer, WHITE, caption, sources, boxes, inks, relation), colors
        )

    def _on_background(
        self, rng: random.Random, language: str, composition: Composition, colors: list[Color]
    ) -> Composition:
        """Put a composition on a random color, which its caption names, or leave it on white.

        White drawings always get a colored background, on which they are visible.
        """
        own = [color for color in colors if color]
        needed = any(min(color) > 200 for color in own)  # white ink
        if not needed and rng.random() >= self.config.backgrounds:
            return composition
        background = choose_background(rng, composition.layer, own)
        caption = captions.with_background(rng, language, composition.caption, background)
        color = COLORS[background].rgb
        return Composition(
            composition.layer,
            color,
            caption,
            composition.sources,
            composition.boxes,
            composition.inks,
            composition.relation,
            background,
        )
