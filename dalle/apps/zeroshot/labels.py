"""Labels, and the words that each goes by, as they are given or as they stand in a file."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

Labels = Sequence[str] | Mapping[str, Sequence[str]]
"""Labels; or label -> the words that it goes by, where CLIP should read others than the label itself."""


def read_labels(file: str | Path) -> dict[str, tuple[str, ...]]:
    """Labels of a UTF-8 text file, one a line; after a tab the words that it goes by, with tabs between them.

    Raises:
        ValueError: no such file, not text, or no label in it.
    """
    path = Path(file).expanduser()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; expected a text file with a label a line") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: expected a label a line") from error
    rows = [[field.strip() for field in line.split("\t")] for line in lines if line.strip()]
    if not rows:
        raise ValueError(f"{path} is empty: expected a label a line")
    check_distinct([row[0] for row in rows], str(path))
    return {label: tuple(word for word in words if word) or (label,) for label, *words in rows}


def words_of(labels: Labels) -> dict[str, tuple[str, ...]]:
    """Label -> the words that it goes by.

    Raises:
        ValueError: fewer than two labels, an empty one, or one that is there twice.
    """
    names = [label.strip() for label in labels]
    check_distinct(names, "labels")
    if len(names) < 2:
        raise ValueError(f"{len(names)} label: give 2 at least, as an image is put to one of them")
    if not isinstance(labels, Mapping):
        return {name: (name,) for name in names}
    words = {name: tuple(own) for name, own in zip(names, labels.values(), strict=True)}
    for name, own in words.items():
        if not own or not all(word.strip() for word in own):
            raise ValueError(f"label {name!r} goes by an empty word: give one word at least, none of them empty")
    return words


def check_distinct(names: Sequence[str], where: str) -> None:
    """Raise ValueError if a label is empty, or there twice, be it in another Unicode form."""
    seen: set[str] = set()
    for number, name in enumerate(names, 1):
        if not name:
            raise ValueError(f"{where}: label {number} is empty")
        form = unicodedata.normalize("NFC", name)
        if form in seen:
            raise ValueError(f"{where}: label {name!r} is there twice")
        seen.add(form)
