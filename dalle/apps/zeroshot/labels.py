"""Labels of a classifier and their synonyms, given as arguments or in a file."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from dalle.files import expand_home

Labels = Sequence[str] | Mapping[str, Sequence[str]]
"""Labels; or label -> synonyms, which CLIP reads in place of the label itself."""


def read_labels(file: str | Path) -> dict[str, tuple[str, ...]]:
    """Read labels from a UTF-8 text file, one per line, optionally followed by synonyms, separated by tabs.

    Raises:
        ValueError: there is no such file, it is not UTF-8 text, or it holds no label.
    """
    path = expand_home(file)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; expected a text file with one label per line") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): expected one label per line") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: expected one label per line") from error
    rows = [[field.strip() for field in line.split("\t")] for line in lines if line.strip()]
    if not rows:
        raise ValueError(f"{path} is empty: expected one label per line")
    check_distinct([row[0] for row in rows], str(path))
    return {label: tuple(word for word in words if word) or (label,) for label, *words in rows}


def synonyms_of(labels: Labels) -> dict[str, tuple[str, ...]]:
    """Label -> its synonyms; of a label without any, itself.

    Raises:
        ValueError: there are fewer than two labels, or one is empty or occurs twice.
    """
    names = [label.strip() for label in labels]
    check_distinct(names, "labels")
    if len(names) < 2:
        raise ValueError(f"{len(names)} label: give 2 at least, as an image is put to one of them")
    if not isinstance(labels, Mapping):
        return {name: (name,) for name in names}
    synonyms = {name: tuple(words) for name, words in zip(names, labels.values(), strict=True)}
    for name, words in synonyms.items():
        if not words or not all(word.strip() for word in words):
            raise ValueError(f"label {name!r} goes by an empty word: give one word at least, none of them empty")
    return synonyms


def check_distinct(names: Sequence[str], where: str) -> None:
    """Raise ValueError if a label is empty or occurs twice, also in another Unicode normal form."""
    seen: set[str] = set()
    for number, name in enumerate(names, 1):
        if not name:
            raise ValueError(f"{where}: label {number} is empty")
        normalized = unicodedata.normalize("NFC", name)  # "é" is one code point or two
        if normalized in seen:
            raise ValueError(f"{where}: label {name!r} occurs twice")
        seen.add(normalized)
