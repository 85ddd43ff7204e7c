"""Names of splits as Hugging Face datasets recognizes them in the names of files and folders."""

from __future__ import annotations

import re
from pathlib import Path

NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLITS = {name: split for split, names in NAMES.items() for name in names}
# The longest names first, or "val" would match in "validation"
_ANY = "|".join(sorted(_SPLITS, key=len, reverse=True))
_WITHIN = re.compile(rf"(?:^|[^a-z0-9])({_ANY})(?:[^a-z]|$)")
_WHOLE = re.compile(rf"({_ANY})[^a-z]*")  # "train", "train2017", "val_1": but "train station" may be a class


def canonical_split(split: str) -> str:
    """ "validation" for "val", "dev" or "val2017", and so on; any other name as it is."""
    found = _WHOLE.fullmatch(split.lower())
    return split if found is None else _SPLITS[found[1]]


def split_of_folders(path: Path) -> str | None:
    """The split that the outermost such folder of a path is named after; None if there is no such folder."""
    return next((name for part in path.parts[:-1] if (name := canonical_split(part)) in NAMES), None)


def split_of_file(path: Path) -> str | None:
    """The split that a file's name contains, or else the nearest enclosing folder's."""
    for part in reversed((*path.parts[:-1], path.stem)):  # the file's own name first, then the nearest folder
        found = _WITHIN.search(part.lower())
        if found is not None:
            return _SPLITS[found[1]]
    return None


def format_splits(splits: set[str]) -> str:
    """The names of splits for a message, "train" first."""
    return ", ".join(sorted(splits, key=lambda name: (name != "train", name)))
