"""What a folder of data holds, and which of its files are of a split: the rules by which every reader decides."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow
import pyarrow.parquet as parquet

from dalle.data.custom.folder import METADATA, captioned_images
from dalle.data.custom.records import IMAGES
from dalle.data.custom.walk import by_endings, ending, walk
from dalle.images.read import EXTENSIONS

# As Hugging Face datasets know them.
_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLITS = {name: split for split, names in _NAMES.items() for name in names}
_NAMED = re.compile(rf"(?:^|[^a-z0-9])({'|'.join(sorted(_SPLITS, key=len, reverse=True))})(?:[^a-z]|$)")
_STATISTICS = "_stats.json"
Kind = Literal["images", "parquet", "tar", "saved"]


@dataclass
class Layout:
    """What is to be read of a folder.

    Attributes:
        kind: images with captions beside or in metadata files; tables; tar shards; or a data set that
            `save_to_disk` of Hugging Face datasets wrote, whose splits it knows itself.
        files: those that count.
        passed: how many do not, by the reason.
    """

    kind: Kind
    files: list[Path]
    passed: Counter[str]


def layout_of(root: Path, split: str, image: str | None = None, caption: str | None = None) -> Layout:
    """What a folder holds of a split.

    Metadata files come first, then tables with images, images with captions beside them, and tar files.

    Args:
        root: the folder.
        split: by one of its names.
        image: column with images, of tables; None: one of the usual names.
        caption: ending of the files with captions; None: one of the usual ones.

    Raises:
        ValueError: it has splits, and not this one; or it has none, and another than "train" is wanted.
    """
    if (root / "dataset_dict.json").is_file() or all((root / n).is_file() for n in ("dataset_info.json", "state.json")):
        return Layout("saved", [], Counter())
    found = walk(root)
    files, passed = found.files, found.passed
    folders = _split_folders(root, files)
    if folders:
        wanted = _wanted(root, split, set(folders.values()))
        own = [file for file in files if folders.get(file.relative_to(root).parts[0]) in (wanted, None)]
        passed[f"of other splits ({_listed(set(folders.values()) - {wanted})})"] += _records(files) - _records(own)
        files = own
    tables = [file for file in files if ending(file) == ".parquet" and file.name not in METADATA]
    tars = [file for file in files if ending(file) == ".tar"]
    with_images = [file for file in tables if _has_images(file, image)]
    if any(file.name in METADATA for file in files):
        kind: Kind = "images"
    elif with_images:
        kind, chosen = "parquet", with_images
    elif captioned_images(files, caption) or not (tars or tables):
        kind = "images"
    else:
        kind, chosen = ("tar", tars) if tars else ("parquet", tables)
    if kind == "images":
        if not folders and _canonical(split) != "train":
            raise ValueError(
                f"{root} has no split {split!r}: expected folders train/, {split}/, ... with images in them"
            )
        return Layout(kind, files, +passed)
    if not folders:
        chosen, others = _of_split(root, chosen, split)
        passed += others
    rest = [file for file in files if ending(file) not in (f".{kind}",) and not file.name.endswith(_STATISTICS)]
    return Layout(kind, chosen, +(passed + _beside(rest, kind) + _without_images(tables, with_images, kind)))


def _split_folders(root: Path, files: list[Path]) -> dict[str, str]:
    """Which split each folder in the root is, where all that holds records is a split and "train" is among them."""
    names = {file.relative_to(root).parts for file in files if _is_data(file)}
    tops = {parts[0] for parts in names}
    if any(len(parts) == 1 for parts in names) or not all(top.lower() in _SPLITS for top in tops):
        return {}
    found = {top: _SPLITS[top.lower()] for top in tops}
    return found if "train" in found.values() else {}


def _of_split(root: Path, files: list[Path], split: str) -> tuple[list[Path], Counter[str]]:
    """The files that are of a split by their names; those that name none are of "train"."""
    names = {file: _split_in(file.relative_to(root)) for file in files}
    wanted = _wanted(root, split, {name or "train" for name in names.values()})
    chosen = [file for file, name in names.items() if (name or "train") == wanted]
    others = {name for name in names.values() if name not in (None, wanted)}
    return chosen, Counter({f"files of other splits ({_listed(others)})": len(files) - len(chosen)})


def _wanted(root: Path, split: str, there: set[str]) -> str:
    wanted = _canonical(split)
    if wanted not in there:
        raise ValueError(f"{root} has no split {split!r}: there are {_listed(there)}; set data.split to one")
    return wanted


def _canonical(split: str) -> str:
    return _SPLITS.get(split.lower(), split)


def _listed(splits: set[str]) -> str:
    return ", ".join(sorted(splits, key=lambda name: (name != "train", name)))


def _split_in(path: Path) -> str | None:
    """The split that the name of a file, or else of a folder that it lies in, tells."""
    for part in reversed((*path.parts[:-1], path.stem)):
        found = _NAMED.search(part.lower())
        if found is not None:
            return _SPLITS[found[1]]
    return None


def _is_data(file: Path) -> bool:
    return ending(file) in (*EXTENSIONS, ".parquet", ".tar") or file.name in METADATA


def _records(files: list[Path]) -> int:
    return sum(_is_data(file) and file.name not in METADATA for file in files)


def _has_images(file: Path, image: str | None) -> bool:
    """Whether a table has a column that is called as one of images would be, or cannot be read: then it is told."""
    try:
        names = parquet.read_schema(file).names
    except (OSError, pyarrow.ArrowException):
        return True
    return image in names if image is not None else not set(IMAGES).isdisjoint(names)


def _beside(files: list[Path], kind: str) -> Counter[str]:
    """What lies beside tables or archives."""
    what = {"parquet": "tables", "tar": "archives"}[kind]
    known = {".parquet", ".tar", *EXTENSIONS}
    counts = by_endings(file for file in files if ending(file) not in known)
    counts[f"images beside {what}"] += sum(ending(file) in EXTENSIONS for file in files)
    counts[f"archives beside {what} (.tar)"] += sum(ending(file) == ".tar" for file in files)
    return counts


def _without_images(tables: list[Path], with_images: list[Path], kind: str) -> Counter[str]:
    reason = "tables without images (.parquet)"
    return Counter({reason: len(tables) - len(with_images) if with_images or kind != "parquet" else 0})
