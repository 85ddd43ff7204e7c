"""SHA-256 checksums of a checkpoint's files, to detect corruption; `sha256sum -c SHA256SUMS` reads them too."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dalle.files import sha256

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")


def digests(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Hash files of a folder; returns their SHA-256 by path relative to it."""
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files}


def write(folder: Path, found: Mapping[str, str]) -> None:
    """Write SHA256SUMS from the results of `digests` of all processes."""
    lines = (f"{digest}  {name}\n" for name, digest in sorted(found.items()))
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def check(folder: Path, rank: int = 0, world: int = 1) -> None:
    """Verify files against SHA256SUMS; process `rank` of `world` verifies every `world`-th file.

    Raises:
        ValueError: a file or SHA256SUMS is missing, or a checksum differs.
    """
    for name, digest in list(_read(folder / SUMS).items())[rank::world]:  # each process takes its share
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if sha256(folder / name) != digest:
            raise ValueError(f"{name} has changed since it was written: its SHA-256 differs")


def _read(file: Path) -> dict[str, str]:
    if not file.is_file():
        raise ValueError(f"{file.name} is missing")
    lines = [_LINE.fullmatch(line) for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    found = [(line[2], line[1]) for line in lines if line is not None]
    if len(found) != len(lines) or not lines:
        raise ValueError(f"{file.name} has lines that are not `SHA-256  NAME`")
    return dict(found)
