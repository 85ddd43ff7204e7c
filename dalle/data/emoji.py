"""The embedded data set: emoji in seven art styles, composed with captions, backgrounds and scenes on the fly."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
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
}
Language = Literal["en", "hi", "ne"]


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
    """Pixels by which an object may lie off the centre, at most."""
    max_bad: int = 0
    """Broken records that are skipped before it is an error."""

    def __post_init__(self) -> None:
        unknown = [style for style in self.styles if style not in STYLES]
        if unknown or not self.styles:
            raise ValueError(f"styles {unknown or '[]'}: choose from {', '.join(STYLES)}")
        if not self.languages:
            raise ValueError("languages is empty: choose from en, hi, ne")


class EmojiPairs:
    """Pictures of one split with captions.

    The split "train" composes: template, language, background, second object and shift come from the pair's seed.
    The test splits ("test_pair", which is also "validation", "test_block", "test_concept", and "held_out" for all of
    them) give each picture once, centred on white, with its canonical caption ("a red heart, 3d style"), whatever the
    seed, so that figures measured on them can be repeated. A scene takes its second object from the same split.

    Attributes:
        pictures: uint8 [N, 64, 64, 4], RGBA.
        styles: style of each picture.
        concepts: what each picture shows.

    Raises:
        ValueError: the folder, a file, or the split is not there.
    """

    def __init__(self, config: EmojiData, split: str, image_size: int = SIDE):
        if split not in SPLITS:
            raise ValueError(f"data split {split!r} is unknown: choose from {', '.join(SPLITS)}")
        self.config, self.split, self.image_size = config, split, image_size
        root = config.root or ROOT
        known = {row["codepoints"]: _concept(row) for row in _rows(root / "concepts" / "concepts.parquet")}
        pictures, self.styles, self.concepts = [], [], []
        for style in config.styles:
            for row in _rows(root / "images" / f"{style}.parquet"):
                if row["split"] in SPLITS[split]:
                    pictures.append(np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGBA")))
                    self.styles.append(style)
                    self.concepts.append(known[row["codepoints"]])
        self.pictures = np.stack(pictures)
        self.of_style = {style: [i for i, s in enumerate(self.styles) if s == style] for style in config.styles}

    def __len__(self) -> int:
        return len(self.pictures)

    def pair(self, index: int, seed: int) -> Pair:
        """The picture `index`, uint8 [image_size, image_size, 3], with a caption."""
        if self.split != "train":
            canvas = paint(self.pictures[index], BACKGROUNDS["white"][0])
            return Pair(self._sized(canvas), captions.canonical(self.concepts[index], self.styles[index]))
        rng = random.Random(f"{seed}/{index}")
        language = self._language(rng, index)
        style = self.styles[index]
        named = style if rng.random() < self.config.style_named else None
        if rng.random() < self.config.scenes:
            layer, caption = self._scene(rng, index, language, named)
        else:
            layer = _moved(self.pictures[index], self._shift(rng), self._shift(rng))
            caption = captions.single(rng, language, self.concepts[index], named, self.config.keywords)
        colour = BACKGROUNDS["white"][0]
        if rng.random() < self.config.backgrounds:
            # Black drawings would vanish on dark colours.
            background = rng.choice(LIGHT if style == "fluent-mono" else list(BACKGROUNDS))
            caption = captions.on_background(rng, language, caption, background)
            colour = BACKGROUNDS[background][0]
            if background not in ("white", "black"):
                colour = tuple(min(255, max(0, value + rng.randint(-8, 8))) for value in colour)
        return Pair(self._sized(paint(layer, colour)), caption)

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
        """Another picture of the same style and split."""
        return rng.choice(self.of_style[self.styles[index]])

    def _scene(self, rng: random.Random, index: int, language: str, style: str | None) -> tuple[np.ndarray, str]:
        other = self._partner(rng, index)
        if language not in self.concepts[other].names:
            language = "en"
        relation = rng.choice(RELATIONS)
        caption = captions.scene(rng, language, self.concepts[index], self.concepts[other], relation, style)
        layer = np.zeros((SIDE, SIDE, 4), dtype=np.uint8)
        first, second = halved(self.pictures[index]), halved(self.pictures[other])
        if relation in ("right", "below"):
            first, second = second, first
        half = SIDE // 2
        if relation in ("left", "right"):
            top = half // 2 + self._shift(rng)
            layer[top : top + half, :half], layer[top : top + half, half:] = first, second
        else:
            left = half // 2 + self._shift(rng)
            layer[:half, left : left + half], layer[half:, left : left + half] = first, second
        return layer, caption

    def _sized(self, canvas: np.ndarray) -> np.ndarray:
        if self.image_size == SIDE:
            return canvas
        size = (self.image_size, self.image_size)
        return np.asarray(Image.fromarray(canvas).resize(size, Image.Resampling.LANCZOS))


def paint(layer: np.ndarray, colour: tuple[int, ...]) -> np.ndarray:
    """RGBA uint8 [H, W, 4] over a colour -> uint8 [H, W, 3]."""
    alpha = layer[..., 3:].astype(np.uint16)
    over = layer[..., :3] * alpha + np.asarray(colour, dtype=np.uint16) * (255 - alpha)
    return ((over + 127) // 255).astype(np.uint8)


def halved(layer: np.ndarray) -> np.ndarray:
    """RGBA uint8 [H, W, 4] at half size, each pixel the mean of four, colours weighted by how opaque they are."""
    parts = layer.reshape(layer.shape[0] // 2, 2, layer.shape[1] // 2, 2, 4).astype(np.float32)
    alpha = parts[..., 3:]
    total = alpha.sum((1, 3))
    colour = (parts[..., :3] * alpha).sum((1, 3)) / np.maximum(total, 1)
    return np.concatenate((colour, total / 4), axis=-1).round().astype(np.uint8)


def _moved(layer: np.ndarray, down: int, right: int) -> np.ndarray:
    """The layer moved by a few pixels; what leaves is lost, what comes in is transparent."""
    moved = np.zeros_like(layer)
    height, width = layer.shape[:2]
    moved[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = layer[
        max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
    ]
    return moved


def _rows(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise ValueError(f"{file} is not there: the emoji data set is in data/emoji of the repository; set data.root")
    rows: list[dict[str, Any]] = parquet.read_table(file).to_pylist()
    return rows


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
