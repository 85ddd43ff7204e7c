"""Digests of a checkpoint's files, by which flipped bits are noticed; `sha256sum -c SHA256SUMS` checks them too."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dalle.files import sha256

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")


def digests(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files in a folder, by their paths in it."""
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files}


def write(folder: Path, found: Mapping[str, str]) -> None:
    """Write what `digests` found, of all processes together, beside the files."""
    lines = (f"{digest}  {name}\n" for name, digest in sorted(found.items()))
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def check(folder: Path, rank: int = 0, world: int = 1) -> None:
    """Compare files with what was written; each of `world` processes looks at its share of them.

    Raises:
        ValueError: one is not what it was, or missing, or the digests are.
    """
    for name, digest in list(_read(folder / SUMS).items())[rank::world]:
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if sha256(folder / name) != digest:
            raise ValueError(f"{name} is not what was written: its SHA-256 is another")


def _read(file: Path) -> dict[str, str]:
    if not file.is_file():
        raise ValueError(f"{file.name} is missing")
    lines = [_LINE.fullmatch(line) for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    found = [(line[2], line[1]) for line in lines if line is not None]
    if len(found) != len(lines) or not lines:
        raise ValueError(f"{file.name} holds something else than digests")
    return dict(found)
