"""The embedded data set: emoji in seven art styles, composed with captions, backgrounds and scenes on the fly."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
from PIL import Image

from dalle.config import config
from dalle.data import captions
from dalle.data.captions import BACKGROUNDS, LIGHT, RELATIONS, STYLES, Concept
from dalle.data.pair import Pair

ROOT = Path(__file__).resolve().parents[2] / "data" / "emoji"
SIDE = 64  # pixels of the stored pictures
TESTS = ("test_pair", "test_block", "test_concept")
SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("test_pair",),
    **{name: (name,) for name in TESTS},
    "held_out": TESTS,
    "known": ("train",),
    "all": ("train", *TESTS),
}
Language = Literal["en", "hi", "ne"]
Colour = tuple[int, ...]  # red, green, blue in 0..255
WHITE: Colour = BACKGROUNDS["white"][0]
_SAME = 40  # colours that differ by less in every channel are hard to tell apart
_TRIES = 8


@config
class EmojiData:
    """How captions and pictures are composed; data/emoji/README.md tells what there is."""

    kind: Literal["emoji"] = "emoji"
    """The embedded emoji pictures."""
    root: Path | None = None
    """Folder of the data set; null is the repository's data/emoji."""
    styles: tuple[str, ...] = tuple(STYLES)
    """Art styles to use."""
    languages: tuple[Language, ...] = ("en", "hi", "ne")
    """Languages of the captions; the first is the most frequent."""
    first_language: float = 0.7
    """Share of captions in the first language; the others share the rest."""
    style_named: float = 0.7
    """Share of captions that name the style."""
    keywords: float = 0.08
    """Share of captions of one object that go on with some of its keywords."""
    backgrounds: float = 0.35
    """Share of pictures on a coloured background, which the caption names."""
    scenes: float = 0.12
    """Share of pictures that show two objects and how they lie."""
    shift: int = 2
    """Pixels by which an object may lie off the centre, at most; none is cut."""
    scale: float = 1.0
    """Smallest size an object is shown at, as a share of its own; 1 leaves sizes alone."""
    include_test: bool = False
    """Let the split train hold the test splits too: for a judge of drawings (docs/evaluation.md), never for a model."""
    max_bad: int = 0
    """Broken records that are skipped before it is an error."""

    def __post_init__(self) -> None:
        unknown = [style for style in self.styles if style not in STYLES]
        if unknown or not self.styles:
            raise ValueError(f"styles {unknown or '[]'}: choose from {', '.join(STYLES)}")
        if not self.languages:
            raise ValueError("languages is empty: choose from en, hi, ne")
        for name in ("first_language", "style_named", "keywords", "backgrounds", "scenes"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)}: a share, from 0 to 1")
        if not 0 <= self.shift <= SIDE // 4:
            raise ValueError(f"shift {self.shift}: from 0 to {SIDE // 4} pixels")
        if not 0.25 <= self.scale <= 1:
            raise ValueError(f"scale {self.scale}: from 0.25 to 1")


@dataclass(frozen=True)
class Composition:
    """A pair before it is painted.

    Attributes:
        layer: the objects, uint8 [64, 64, 4], RGBA.
        colour: what lies behind them.
        caption: the caption.
        sources: indices of the pictures used, in the order in which the caption names them.
        places: (row, column) of the upper left corner of each of the two objects of a scene; empty for one object.
        relation: how the first object of a scene lies to the second; None for one object.
        background: the name by which the caption calls the colour; None where it says nothing, on white.
    """

    layer: np.ndarray
    colour: Colour
    caption: str
    sources: tuple[int, ...]
    places: tuple[tuple[int, int], ...] = ()
    relation: str | None = None
    background: str | None = None


class EmojiPairs:
    """Pictures of one split with captions.

    The split "train" composes: template, language, background, second object and shift come from the pair's seed.
    The test splits ("test_pair", which is also "validation", "test_block", "test_concept", and "held_out" for all of
    them) give each picture once, centred on white, with its canonical caption ("a red heart, 3d style"), whatever the
    seed, so that figures measured on them can be repeated. So do "known", the pictures of "train", and "all". A scene
    takes its second object from the same split.

    Attributes:
        pictures: uint8 [N, 64, 64, 4], RGBA.
        styles: style of each picture.
        concepts: what each picture shows.
        groups: group of each picture's emoji, one of `dalle.data.captions.GROUPS`.

    Raises:
        ValueError: the folder, a file, or the split is not there.
    """

    def __init__(self, config: EmojiData, split: str, image_size: int = SIDE):
        if split not in SPLITS:
            raise ValueError(f"data split {split!r} is unknown: choose from {', '.join(SPLITS)}")
        self.config, self.split, self.image_size = config, split, image_size
        root = config.root or ROOT
        if not root.is_dir():
            raise ValueError(
                f"there is no folder {root}: data.root must be the repository's data/emoji or a copy of it"
            )
        wanted = ("train", *TESTS) if split == "train" and config.include_test else SPLITS[split]
        known = {row["codepoints"]: _concept(row) for row in _rows(root / "concepts" / "concepts.parquet")}
        pictures = []
        self.styles: list[str] = []
        self.concepts: list[Concept] = []
        self.groups: list[str] = []
        for style in config.styles:
            for row in _rows(root / "images" / f"{style}.parquet", ["image", "codepoints", "group", "split"]):
                if row["split"] in wanted:
                    pictures.append(_decoded(row["image"]))
                    self.styles.append(style)
                    self.concepts.append(known[row["codepoints"]])
                    self.groups.append(row["group"])
        self.pictures = np.stack(pictures)
        self.of_style = {style: [i for i, s in enumerate(self.styles) if s == style] for style in config.styles}

    def __len__(self) -> int:
        return len(self.pictures)

    def pair(self, index: int, seed: int) -> Pair:
        """The picture `index`, uint8 [image_size, image_size, 3], with a caption."""
        made = self.compose(index, seed)
        return Pair(self._sized(paint(made.layer, made.colour)), made.caption)

    def canonical_caption(self, index: int) -> str:
        """The caption that figures are measured with: "a red heart, 3d style"."""
        return captions.canonical(self.concepts[index], self.styles[index])

    def caption_in(self, index: int, language: str) -> str | None:
        """The canonical caption in a language; None where the concept has no name in it."""
        if language not in self.concepts[index].names:
            return None
        return captions.canonical(self.concepts[index], self.styles[index], language)

    def compose(self, index: int, seed: int) -> Composition:
        """What `pair` paints, and how it came about."""
        if self.split != "train":
            return Composition(self.pictures[index], WHITE, self.canonical_caption(index), (index,))
        rng = random.Random(f"{seed}/{index}")
        language = self._language(rng, index)
        style = self.styles[index]
        named = style if rng.random() < self.config.style_named else None
        relation: str | None = None
        sources: tuple[int, ...] = (index,)
        places: tuple[tuple[int, int], ...] = ()
        if rng.random() < self.config.scenes:
            other, relation = self._partner(rng, index), rng.choice(RELATIONS)
            sources, places = (index, other), places_of(relation, self._shift(rng))
            layer = self._scene(sources, places)
            language = language if language in self.concepts[other].names else "en"
            a, b = self.concepts[index], self.concepts[other]
            caption = captions.scene(rng, language, a, b, relation, named)
        else:
            layer = self._single(rng, index)
            caption = captions.single(rng, language, self.concepts[index], named, self.config.keywords)
        colour, background = WHITE, None
        if rng.random() < self.config.backgrounds:
            background = self._background(rng, layer, style)
            caption = captions.on_background(rng, language, caption, background)
            colour = _near(rng, background)
        return Composition(layer, colour, caption, sources, places, relation, background)

    def captions(self) -> Iterator[str]:
        """Captions of every concept in every language that show all words and templates; the same each time."""
        styles: dict[Concept, list[str]] = {}
        for concept, style in zip(self.concepts, self.styles, strict=True):
            styles.setdefault(concept, []).append(style)
        for concept, own in styles.items():
            yield from captions.every_form(concept, tuple(own), self.config.languages)
        rng = random.Random(0)
        for index, concept in enumerate(self.concepts):
            other = self.concepts[self._partner(rng, index)]
            language = self._language(rng, index)
            if language in other.names:
                yield captions.scene(rng, language, concept, other, rng.choice(RELATIONS), self.styles[index])

    def _language(self, rng: random.Random, index: int) -> str:
        first, *others = self.config.languages
        language = first if not others or rng.random() < self.config.first_language else rng.choice(others)
        return language if language in self.concepts[index].names else "en"

    def _shift(self, rng: random.Random) -> int:
        return rng.randint(-self.config.shift, self.config.shift)

    def _partner(self, rng: random.Random, index: int) -> int:
        """A picture of the same style and split; once in a while the same one."""
        return rng.choice(self.of_style[self.styles[index]])

    def _single(self, rng: random.Random, index: int) -> np.ndarray:
        """The picture, moved and scaled as the options allow."""
        layer, down, right = self.pictures[index], self._shift(rng), self._shift(rng)
        if self.config.scale < 1:
            layer = _shrunk(layer, round(SIDE * rng.uniform(self.config.scale, 1)))
        return _moved(layer, down, right)

    def _scene(self, sources: tuple[int, ...], places: tuple[tuple[int, int], ...]) -> np.ndarray:
        layer = np.zeros((SIDE, SIDE, 4), dtype=np.uint8)
        half = SIDE // 2
        for source, (top, left) in zip(sources, places, strict=True):
            layer[top : top + half, left : left + half] = halved(self.pictures[source])
        return layer

    def _background(self, rng: random.Random, layer: np.ndarray, style: str) -> str:
        """The name of a colour on which the objects can be seen."""
        choice = LIGHT if style == "fluent-mono" else tuple(BACKGROUNDS)  # black drawings vanish on dark colours
        for _ in range(_TRIES):
            background = rng.choice(choice)
            if not hidden(layer, BACKGROUNDS[background][0]):
                break
        return background

    def _sized(self, canvas: np.ndarray) -> np.ndarray:
        if self.image_size == SIDE:
            return canvas
        size = (self.image_size, self.image_size)
        return np.asarray(Image.fromarray(canvas).resize(size, Image.Resampling.LANCZOS))


def paint(layer: np.ndarray, colour: Colour) -> np.ndarray:
    """RGBA uint8 [H, W, 4] over a colour -> uint8 [H, W, 3]."""
    alpha = layer[..., 3:].astype(np.uint16)
    over = layer[..., :3] * alpha + np.asarray(colour, dtype=np.uint16) * (255 - alpha)
    return ((over + 127) // 255).astype(np.uint8)


def hidden(layer: np.ndarray, colour: Colour) -> bool:
    """Whether most of what is drawn has nearly this colour; looks at one pixel of sixteen."""
    few = layer[::4, ::4]
    drawn = few[few[..., 3] > 127, :3].astype(np.int16)
    near = (abs(drawn - np.asarray(colour, dtype=np.int16)) < _SAME).all(-1)
    return bool(near.sum() * 2 > len(drawn))


def places_of(relation: str, shift: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(row, column) of the upper left corners of two objects of half size, the first lying `relation` of the second."""
    half, across = SIDE // 2, SIDE // 4 + shift
    left, right, above, below = (across, 0), (across, half), (0, across), (half, across)
    return {"left": (left, right), "right": (right, left), "above": (above, below), "below": (below, above)}[relation]


def halved(layer: np.ndarray) -> np.ndarray:
    """RGBA uint8 [H, W, 4] at half size, each pixel the mean of four, colours weighted by how opaque they are."""
    parts = layer.reshape(layer.shape[0] // 2, 2, layer.shape[1] // 2, 2, 4).astype(np.float32)
    alpha = parts[..., 3:]
    total = alpha.sum((1, 3))
    colour = (parts[..., :3] * alpha).sum((1, 3)) / np.maximum(total, 1)
    return np.concatenate((colour, total / 4), axis=-1).round().astype(np.uint8)


def _shrunk(layer: np.ndarray, side: int) -> np.ndarray:
    """The layer at a smaller size, in the middle of a transparent one of the old size."""
    small = np.asarray(Image.fromarray(layer).resize((side, side), Image.Resampling.BOX))
    shrunk = np.zeros_like(layer)
    first = (SIDE - side) // 2
    shrunk[first : first + side, first : first + side] = small
    return shrunk


def _moved(layer: np.ndarray, down: int, right: int) -> np.ndarray:
    """The layer moved by some pixels, or by as many as there is room for."""
    rows, columns = np.nonzero(layer[..., 3])
    return np.roll(layer, (_room(rows, down), _room(columns, right)), (0, 1))


def _room(at: np.ndarray, shift: int) -> int:
    """`shift`, or as much of it as keeps what is drawn at these rows or columns inside."""
    return max(min(shift, SIDE - 1 - int(at.max())), -int(at.min()))


def _near(rng: random.Random, background: str) -> Colour:
    """The colour of that name, a little off, but for white and black."""
    colour: Colour = BACKGROUNDS[background][0]
    if background in ("white", "black"):
        return colour
    return tuple(min(255, max(0, value + rng.randint(-8, 8))) for value in colour)


def _rows(file: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    if not file.is_file():
        raise ValueError(f"there is no file {file}: data.root must be the repository's data/emoji or a copy of it")
    try:
        rows: list[dict[str, Any]] = parquet.read_table(file, columns=columns).to_pylist()
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{file} is not a whole file of the emoji data set ({reason}): copy it anew") from error
    return rows


def _decoded(image: dict[str, Any]) -> np.ndarray:
    """uint8 [64, 64, 4]."""
    try:
        return np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGBA"))
    except OSError as error:
        raise ValueError(f"picture {image['path']} cannot be decoded ({error}): copy its file anew") from error


def _concept(row: dict[str, Any]) -> Concept:
    names = {"en": row["name"], "hi": row["name_hi"], "ne": row["name_ne"]}
    keywords = {"en": row["keywords"], "hi": row["keywords_hi"], "ne": row["keywords_ne"]}
    return Concept(
        phrase=row["caption"],
        names={language: name for language, name in names.items() if name},
        keywords={
            language: tuple(word for word in words or () if word != names[language])
            for language, words in keywords.items()
        },
    )
