"""Detects the layout of a data folder, and which of its files belong to a split."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pyarrow
import pyarrow.parquet as parquet

from dalle.data.custom.columns import IMAGES, usual_name
from dalle.data.custom.folder import has_sidecar_captions
from dalle.data.custom.metadata import is_metadata
from dalle.data.custom.parquet import is_saved
from dalle.data.custom.split_names import canonical_split, format_splits, split_of_file, split_of_folders
from dalle.data.custom.walk import count_by_extension, extension, log_once, walk
from dalle.images.read import EXTENSIONS

_STATISTICS = "_stats.json"
Kind = Literal["images", "parquet", "tar", "saved"]


@dataclass
class Layout:
    """The kind of data in a folder, and its files.

    Attributes:
        kind: images with sidecar or metadata files; Parquet tables; tar shards; or a data set written by
            `save_to_disk` of Hugging Face datasets, which records its own splits.
        files: the files to read.
        ignored: number of other files by reason.
        others: files of other splits, where folders are the splits.
    """

    kind: Kind
    files: list[Path]
    ignored: Counter[str]
    others: list[Path] = field(default_factory=list)


def layout_of(root: Path, split: str, image: str | None = None, caption: str | None = None) -> Layout:
    """Detect a folder's layout and the files of a split.

    The first that is found decides: metadata files, Parquet tables with images, images with sidecar files, tar files.

    Args:
        root: the folder.
        split: name of the split, or an alias of it ("val", "dev").
        image: image column of Parquet tables; None tries the usual names.
        caption: extension of sidecar files; None tries the usual ones.

    Raises:
        ValueError: the folder has splits but not this one, or has none and `split` is not "train".
    """
    if is_saved(root):
        return Layout("saved", [], Counter())
    found = walk(root)
    files, ignored = found.files, found.ignored
    folders, others = _folder_splits(root, files), list[Path]()
    if folders:
        wanted = _resolve_split(root, split, set(folders.values()))
        others = [file for file in files if folders.get(file, wanted) != wanted]
        named = format_splits(set(folders.values()) - {wanted})
        ignored[f"files of other splits ({named})"] += _count_records(others)
        files = [file for file in files if folders.get(file, wanted) == wanted]
    # metadata.parquet lists files and holds no images
    tables = [file for file in files if extension(file) == ".parquet" and not is_metadata(file)]
    tars = [file for file in files if extension(file) == ".tar"]
    with_images = [file for file in tables if _has_image_column(file, image)]
    # Metadata files first, as nobody writes them by accident. Tables without images and tar files come last:
    # img2dataset leaves a .parquet of URLs beside its shards, and an archive may lie beside what was unpacked from it
    if any(is_metadata(file) for file in files):
        kind: Kind = "images"
    elif with_images:
        kind, chosen = "parquet", with_images
    elif has_sidecar_captions(files, caption) or not (tars or tables):
        kind = "images"
    else:
        kind, chosen = ("tar", tars) if tars else ("parquet", tables)
    if kind == "images":
        hindrance = "" if folders else _beside_splits(root, files)
        if not folders and canonical_split(split) != "train":
            expected = hindrance or f"folders train/, {split}/, ... with images in them"
            raise ValueError(f"{root} has no split {split!r}: expected {expected}")
        if hindrance:
            log_once(f"{root}: all of its folders are trained on, as splits need {hindrance}")
        return Layout(kind, files, +ignored, others)  # `+` drops reasons that did not occur
    if not folders:
        chosen, passed_over = _select_split(root, chosen, split)
        ignored += passed_over
    if kind == "parquet" and any(_names_files(file, image) for file in chosen):
        files = [file for file in files if extension(file) not in EXTENSIONS]
    rest = [file for file in files if extension(file) not in (f".{kind}",) and not file.name.endswith(_STATISTICS)]
    return Layout(
        kind, chosen, +(ignored + _count_other_files(rest, kind) + _count_imageless_tables(tables, with_images, kind))
    )


def _folder_splits(root: Path, files: list[Path]) -> dict[Path, str]:
    """File -> split, if all data lies in folders named after splits, at any depth, and some of it in "train".

    The outermost such folder counts. Files in none of them, as a metadata file at the top, are of every split.
    """
    found: dict[Path, str] = {}
    for file in files:
        named = split_of_folders(file.relative_to(root))
        if named is not None:
            found[file] = named
        elif _is_data(file) and not is_metadata(file):
            return {}  # data beside the folders, or in a folder of another name: then these are no splits
    return found if "train" in {split for file, split in found.items() if _is_data(file)} else {}


def _beside_splits(root: Path, files: list[Path]) -> str:
    """What hinders train/ and other folders of splits from being splits; "" if there are no such folders."""
    data = [file for file in files if _is_data(file) and not is_metadata(file)]
    named = {split_of_folders(file.relative_to(root)): file for file in data}
    if "train" not in named or None not in named or len(named) == 2:
        return ""
    return f"nothing beside folders such as train/ and validation/, and there is {named[None].relative_to(root)}"


def _select_split(root: Path, files: list[Path], split: str) -> tuple[list[Path], Counter[str]]:
    """The files whose names contain the name of the split; files without a split name belong to "train"."""
    names = {file: split_of_file(file.relative_to(root)) for file in files}
    wanted = _resolve_split(root, split, {name or "train" for name in names.values()})
    chosen = [file for file, name in names.items() if (name or "train") == wanted]
    others = {name for name in names.values() if name not in (None, wanted)}
    return chosen, Counter({f"files of other splits ({format_splits(others)})": len(files) - len(chosen)})


def _resolve_split(root: Path, split: str, there: set[str]) -> str:
    wanted = canonical_split(split)
    if wanted not in there:
        raise ValueError(f"{root} has no split {split!r}: there are {format_splits(there)}; set data.split to one")
    return wanted


def _is_data(file: Path) -> bool:
    return extension(file) in (*EXTENSIONS, ".parquet", ".tar") or is_metadata(file)


def _count_records(files: list[Path]) -> int:
    return sum(_is_data(file) and not is_metadata(file) for file in files)


def _has_image_column(file: Path, image: str | None) -> bool:
    """Whether a table has an image column. Unreadable files count too, so that opening them reports the error."""
    try:
        names = parquet.read_schema(file).names
    except (OSError, pyarrow.ArrowException):
        return True
    return image in names if image is not None else usual_name(names, IMAGES) is not None


def _names_files(file: Path, image: str | None) -> bool:
    """Whether a table's image column holds paths of files."""
    try:
        schema = parquet.read_schema(file)
    except (OSError, pyarrow.ArrowException):
        return False
    name = usual_name(schema.names, IMAGES) if image is None else image
    return name in schema.names and str(schema.field(name).type) in ("string", "large_string")


def _count_other_files(files: list[Path], kind: str) -> Counter[str]:
    """The number of files beside tables or archives that are not read, by reason."""
    what = {"parquet": "tables", "tar": "archives"}[kind]
    known = {".parquet", ".tar", *EXTENSIONS}
    counts = count_by_extension(file for file in files if extension(file) not in known)
    counts[f"images beside {what}"] += sum(extension(file) in EXTENSIONS for file in files)
    counts[f"archives beside {what} (.tar)"] += sum(extension(file) == ".tar" for file in files)
    return counts


def _count_imageless_tables(tables: list[Path], with_images: list[Path], kind: str) -> Counter[str]:
    reason = "tables without images (.parquet)"
    return Counter({reason: len(tables) - len(with_images) if with_images or kind != "parquet" else 0})
