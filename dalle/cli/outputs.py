"""Folders that commands write into, and files of the user as metadata names them."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from dalle.files import sha256


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
    words = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in prompt.lower())
    short = "-".join(words.split()).encode()[:60].decode(errors="ignore")
    return short.strip("-") or "empty"


def file_record(file: Path) -> dict[str, str]:
    """A file of the user for metadata: its name and the hash of its bytes."""
    return {"file": file.name, "sha256": sha256(file)}
