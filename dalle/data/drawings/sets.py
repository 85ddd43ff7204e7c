"""Reads the embedded sets, data/emoji and data/icons, as lists of drawings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pyarrow
import pyarrow.parquet as parquet

from dalle.data.drawings.captions import FAMILIES, STYLES, Concept, Words
from dalle.data.drawings.render import Art, Raster, Vector
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


@lru_cache(maxsize=4)  # the splits share the same files
def read_set(name: SetName, root: Path, styles: tuple[str, ...] | None = None) -> tuple[Drawing, ...]:
    """All drawings of a set, grouped by style.

    Args:
        name: the set.
        root: folder with `emoji/` and `icons/`.
        styles: styles to include; None includes all.

    Raises:
        ValueError: the folder or a file is missing or damaged.
    """
    return tuple(_emoji(root / "emoji", styles) if name == "emoji" else _icons(root / "icons", styles))


def _emoji(root: Path, styles: tuple[str, ...] | None) -> Iterator[Drawing]:
    concepts = {row["codepoints"]: _concept(row) for row in _rows(root / "concepts" / "concepts.parquet")}
    for style, words in STYLES.items():
        if styles is not None and style not in styles:
            continue
        mono = style == _MONO_STYLE
        for row in _rows(root / "images" / f"{style}.parquet", ["image", "codepoints", "group", "split"]):
            yield Drawing(
                set="emoji",
                style=style,
                style_words=words,
                concept=concepts[row["codepoints"]],
                group=row["group"],
                split=row["split"],
                art=Raster(row["image"]["bytes"], mono),
                mono=mono,
                symbol=row["group"] in _SYMBOLS,
            )


_ICON_COLUMNS = (
    *("concept", "name", "caption", "keywords", "category", "family", "style_words", "colour", "viewbox", "body"),
    *("split", "name_hi", "name_ne"),
)


def _icons(root: Path, styles: tuple[str, ...] | None) -> Iterator[Drawing]:
    folder = root / "icons"
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise ValueError(
            f"there are no icons in {folder}: data.root must be the repository's data folder or a copy of it"
        )
    rows = [row for file in files for row in _rows(file, list(_ICON_COLUMNS))]
    rows.sort(key=lambda row: row["family"])  # stable: keeps the order of the files within a family
    concepts: dict[str, Concept] = {}
    for row in rows:
        # The first row names the concept for all its styles
        concept = concepts.setdefault(row["concept"], _concept(row))
        family = _american(row["family"])
        if styles is not None and family not in styles:
            continue
        words = FAMILIES[family]
        yield Drawing(
            set="icons",
            style=family,
            style_words=words | {"en": (*words["en"], *map(_american, row["style_words"] or ()))},
            concept=concept,
            group=row["category"],
            split=row["split"],
            art=Vector(row["viewbox"], row["body"]),
            mono=row["colour"] == "mono",
            symbol=False,
        )


def _american(words: str) -> str:
    # The files of the set use British spelling, captions American.
    return words.replace("colour", "color")


def _concept(row: dict[str, Any]) -> Concept:
    names = {"en": row["name"], "hi": row["name_hi"], "ne": row["name_ne"]}
    keywords = {"en": row["keywords"], "hi": row.get("keywords_hi"), "ne": row.get("keywords_ne")}
    return Concept(
        phrase=row["caption"],
        names={language: name for language, name in names.items() if name},
        keywords={
            language: tuple(word for word in words or () if word != names[language])
            for language, words in keywords.items()
        },
    )


def _rows(file: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    if not file.is_file():
        raise ValueError(f"no such file: {file}; data.root must be the repository's data folder or a copy of it")
    try:
        rows: list[dict[str, Any]] = parquet.read_table(file, columns=columns).to_pylist()
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{file} is not a complete file of the data set ({reason}): copy it again") from error
    return rows
