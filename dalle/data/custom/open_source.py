"""Opens the data at a path: a folder of any layout, Parquet or tar files, a glob pattern, or a hub id."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from dalle.data.custom.annotations import IN_PARQUET, TABLES
from dalle.data.custom.config import CustomConfig
from dalle.data.custom.folder import FolderSource
from dalle.data.custom.layouts import layout_of
from dalle.data.custom.metadata import is_metadata
from dalle.data.custom.parquet import hub_source, parquet_source, saved_source
from dalle.data.custom.records import Source
from dalle.data.custom.walk import count_by_extension, describe_ignored, log_ignored_once
from dalle.data.custom.webdataset import TarSource
from dalle.files import expand_home, missing_path
from dalle.files.remote import may_be_an_id

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_BRACES = re.compile(r"\{([^{}]*)\}")


def open_source(config: CustomConfig, path: str, split: str) -> Source:
    """Open the data at `path`, whose layout is detected: folder, Parquet or tar files, or a hub id.

    Raises:
        ValueError: there is no usable data.
    """
    local = expand_home(path)
    if local.is_dir():
        return _of_folder(config, local, split)
    # A folder of that name comes first: names of files and folders may hold the signs of a pattern
    found = expand_pattern(local)
    if found:
        if split != "train":
            raise ValueError(
                f"{path} has no split {split!r}: named files are all of split train; give a folder to use its splits"
            )
        return _of_files(config, found)
    if set(path) & set("*?[{"):
        raise ValueError(missing_path(path, f"no file matches data.path {path}"))
    if not is_hub_id(path):
        raise ValueError(missing_path(path, f"no such file or folder: {path}; set data.path to your images"))
    return hub_source(path, split, config.image, config.caption, config.key)


def _of_folder(config: CustomConfig, root: Path, split: str) -> Source:
    layout = layout_of(root, split, config.image, config.caption)
    if layout.kind == "saved":
        return saved_source(root, split, config.image, config.caption, config.key)
    # Files with many records are read as if they had been named; what lies beside them is not data
    if layout.kind != "images":
        log_ignored_once(root, layout.ignored)
        return _of_files(config, layout.files)
    for name in ("image", "key"):
        if getattr(config, name) is not None:
            raise ValueError(
                f"data.{name}={getattr(config, name)} is for Parquet and tar files, {root} is an image folder: omit it"
            )
    source = FolderSource(root, layout.files, config.caption, others=layout.others)
    log_ignored_once(root, layout.ignored + source.ignored)
    return source


def _of_files(config: CustomConfig, files: list[Path]) -> Source:
    endings = {file.suffix.lower() for file in files}
    if endings == {".parquet"}:
        return parquet_source(files, config.image, config.caption, config.key)
    if endings == {".tar"} and config.key is not None:
        raise ValueError(f"data.key={config.key} is for Parquet files, and {files[0]} is a tar file: omit it")
    if endings == {".tar"}:
        return TarSource(files, config.image, config.caption)
    hint = describe_ignored(count_by_extension(files[:1])).partition(" ")[2]  # ".zip (unpack them)"
    there = f"; {IN_PARQUET}" if files[0].suffix.lower() in TABLES else ""
    if is_metadata(files[0]):
        there = f"; it is a metadata file: give its folder, {files[0].parent}"
    raise ValueError(
        f"{files[0]} is not a data file that can be read: expected a folder, or files that end in .parquet or .tar"
        + (there or (f"; {hint}" if "(" in hint else ""))
    )


def expand_pattern(path: Path) -> list[Path]:
    """The file at `path`, or the files that match it as a glob pattern."""
    # "{a,b}" is the shell's, not glob's
    return [path] if path.is_file() else [Path(f) for one in expand_braces(str(path)) for f in sorted(glob.glob(one))]


def is_hub_id(path: str) -> bool:
    """Whether `path` looks like a hub id (`owner/name`) and not like a local path that does not exist."""
    local = expand_home(path)
    # What looks like owner/name is a mistyped path where the first half is a folder here: nothing is asked of the hub
    alike = _HUB_ID.fullmatch(path) is not None and may_be_an_id(path.split("/"))
    return alike and not local.parent.is_dir() and local.suffix not in (".parquet", ".tar")


def expand_braces(pattern: str) -> list[str]:
    """Expand shell braces: a-{000..002}.tar, {left,right}/*.tar."""
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    first, dots, last = found[1].partition("..")
    if dots and first.isdigit() and last.isdigit():
        # Numbers keep the width of the first, as in a shell: 000, 001, ...
        choices = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    else:
        choices = found[1].split(",")
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [one for choice in choices for one in expand_braces(before + choice + after)]
