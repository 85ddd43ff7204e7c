"""Folders and files that commands write: new folders, names from prompts, files whole or not at all."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_folder(out: Path) -> None:
    """Refuse a folder that cannot be made or written, before any time goes into what it is for.

    Raises:
        ValueError: it is no folder, or may not be written.
    """
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{there} is not a folder that can be written: give another as --out")


def new_folder(parent: Path, name: str) -> Path:
    """Make `parent`/`name`, or with the first free number behind it."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def slug(prompt: str) -> str:
    """The start of a prompt as a file name: letters, their signs and digits of any script, else hyphens."""
    kept = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in prompt.lower())
    short = "-".join(kept.split()).encode()[:60].decode(errors="ignore")
    return short.strip("-") or "empty"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside `path`, with its ending, to write in this block: it becomes `path`, or is gone if that fails."""
    part = path.with_name(f".part-{path.name}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def named(file: Path) -> dict[str, str]:
    """A file of the user for metadata: its name and the hash of its bytes."""
    return {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
