"""Reads the embedded sets, data/emoji and data/icons, as lists of drawings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from dalle.data.base import BadRecord
from dalle.data.drawings.captions import FAMILIES, STYLES, Concept, Words
from dalle.data.drawings.render import BLACK, Art, Color, Raster, Vector
from dalle.data.drawings.tables import Row, read_rows, row_name, wrong_row
from dalle.files import ROOT

DRAWINGS = ROOT / "data"  # in the repository; too large for a wheel
SetName = Literal["emoji", "icons"]
_MONO_STYLE = "fluent-mono"
_SYMBOLS = ("symbols", "flags")


@dataclass(frozen=True, eq=False)  # compared and hashed by identity
class Drawing:
    """One drawing of one thing.

    Attributes:
        set: "emoji" or "icons".
        style: art style, a key of `captions.STYLES` (emoji) or `captions.FAMILIES` (icons).
        style_words: words that captions use for the style, per language.
        concept: what it shows; one shared object for all drawings of a concept in a set.
        group: the emoji's group, or the icon's category.
        split: the split it belongs to.
        art: the bitmap or SVG.
        mono: whether it has a single color, which can be changed.
        symbol: whether it is a sign, which must not be mirrored.
        file: the file that it is in.
        row: its row there, from 1.
    """

    set: SetName
    style: str
    style_words: Words
    concept: Concept
    group: str
    split: str
    art: Art
    mono: bool
    symbol: bool
    file: Path
    row: int

    def render(self, side: int, ink: Color = BLACK) -> np.ndarray:
        """Render as RGBA uint8 [side, side, 4]; `ink` is the color of a drawing that is `mono`.

        Raises:
            BadRecord: it cannot be rendered; the error names its file and row.
        """
        try:
            return self.art.render(side, ink)
        except ValueError as error:
            raise BadRecord(row_name(self.file, self.row), str(error)) from error


@lru_cache(maxsize=4)  # the splits share the same files
def read_set(name: SetName, root: Path, styles: tuple[str, ...] | None = None) -> tuple[Drawing, ...]:
    """All drawings of a set, grouped by style.

    Args:
        name: the set.
        root: folder with `emoji/` and `icons/`.
        styles: styles to include; None includes all.

    Raises:
        ValueError: the folder or a file is missing or damaged, or a row lacks a name, a style or a split. A row whose
            image is damaged is found when it is rendered.
    """
    return tuple(_emoji(root / "emoji", styles) if name == "emoji" else _icons(root / "icons", styles))


_CONCEPT_COLUMNS = ("keywords", "name_hi", "name_ne")  # beside the English name, and its form in captions
_NAMED = ("name", "caption")


def _emoji(root: Path, styles: tuple[str, ...] | None) -> Iterator[Drawing]:
    listed = root / "concepts" / "concepts.parquet"
    rows = read_rows(listed, ("codepoints", *_NAMED), (*_CONCEPT_COLUMNS, "keywords_hi", "keywords_ne"))
    concepts = {row["codepoints"]: _concept(row) for row in rows}
    for style, words in STYLES.items():
        if styles is not None and style not in styles:
            continue
        mono = style == _MONO_STYLE
        file = root / "images" / f"{style}.parquet"
        for number, row in enumerate(read_rows(file, ("codepoints", "group", "split"), ("image",)), 1):
            concept = concepts.get(row["codepoints"])
            if concept is None:
                raise wrong_row(file, number, f"{row['codepoints']} is not in {listed}")
            yield Drawing(
                set="emoji",
                style=style,
                style_words=words,
                concept=concept,
                group=row["group"],
                split=row["split"],
                art=Raster((row["image"] or {}).get("bytes") or b"", mono),
                mono=mono,
                symbol=row["group"] in _SYMBOLS,
                file=file,
                row=number,
            )


_ICON_NEEDED = ("concept", *_NAMED, "category", "family", "split")
_ICON_OTHERS = (*_CONCEPT_COLUMNS, "style_words", "colour", "viewbox", "body")


def _icons(root: Path, styles: tuple[str, ...] | None) -> Iterator[Drawing]:
    folder = root / "icons"
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise ValueError(
            f"there are no icons in {folder}: data.root must be the repository's data folder or a copy of it"
        )
    rows = [
        (file, number, row)
        for file in files
        for number, row in enumerate(read_rows(file, _ICON_NEEDED, _ICON_OTHERS), 1)
    ]
    rows.sort(key=lambda found: found[2]["family"])  # stable: keeps the order of the files within a family
    concepts: dict[str, Concept] = {}
    for file, number, row in rows:
        # The first row names the concept for all its styles
        concept = concepts.setdefault(row["concept"], _concept(row))
        family = _american(row["family"])
        if family not in FAMILIES:
            raise wrong_row(file, number, f"its family {family!r} is unknown")
        if styles is not None and family not in styles:
            continue
        words = FAMILIES[family]
        yield Drawing(
            set="icons",
            style=family,
            style_words=words | {"en": (*words["en"], *map(_american, filter(None, row["style_words"] or ())))},
            concept=concept,
            group=row["category"],
            split=row["split"],
            art=Vector(row["viewbox"] or "", row["body"] or ""),
            mono=row["colour"] == "mono",
            symbol=False,
            file=file,
            row=number,
        )


def _american(words: str) -> str:
    # The files of the set use British spelling, captions American.
    return words.replace("colour", "color")


def _concept(row: Row) -> Concept:
    names = {"en": row["name"], "hi": row["name_hi"], "ne": row["name_ne"]}
    keywords = {"en": row["keywords"], "hi": row.get("keywords_hi"), "ne": row.get("keywords_ne")}
    return Concept(
        phrase=row["caption"],
        names={language: name for language, name in names.items() if name},
        keywords={
            language: tuple(word for word in words or () if word and word != names[language])
            for language, words in keywords.items()
        },
    )
