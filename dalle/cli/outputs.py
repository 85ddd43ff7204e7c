"""Output folders of commands, and how metadata refers to input files."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from dalle.files import sha256


def check_folder(out: Path) -> None:
    """Check that a folder can be created and written, before spending time on its contents.

    Raises:
        ValueError: the path is not a folder, or not writable.
    """
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{there} is not a folder that can be written: give another as --out")


def new_folder(parent: Path, name: str) -> Path:
    """Create the folder `parent`/`name`; if it exists, `name`-2, `name`-3, ..."""
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
    """Convert the start of a prompt to a file name: letters, combining marks and digits of any script, else hyphens."""
    words = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in prompt.lower())
    short = "-".join(words.split()).encode()[:60].decode(errors="ignore")
    return short.strip("-") or "empty"


def file_record(file: Path) -> dict[str, str]:
    """Describe an input file for metadata: its name and the hash of its contents."""
    return {"file": file.name, "sha256": sha256(file)}
