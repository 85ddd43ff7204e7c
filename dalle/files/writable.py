"""Checks of the places that a command will write to, before it spends time on what it will write there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path


def check_folder(folder: Path, option: str = "--out") -> None:
    """Check that a folder is there and can be written, or can be made; nothing is left behind.

    Args:
        folder: the folder to write to.
        option: the option that names it, for the message.

    Raises:
        ValueError: the path is not a folder, not writable, or cannot be made.
    """
    place = Path(folder).absolute()
    # Of links to nowhere too, which no folder can be made over
    missing = [path for path in (place, *place.parents) if not os.path.lexists(path)]
    there = missing[-1].parent if missing else place
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{there} is not a folder that can be written: give another as {option}")
    try:  # some file systems, such as /proc, say only then that they take no folders
        # Under a name of its own: the real one might be made, or used, by another process at the same moment
        with tempfile.TemporaryDirectory(prefix=".check-", dir=there) as scratch:
            Path(scratch, *place.relative_to(there).parts).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        what = f"{folder} cannot be made" if missing else f"nothing can be written in {place}"
        raise ValueError(f"{what} ({reason}): give another folder as {option}") from None


def check_file(file: Path, option: str, inputs: Iterable[str | Path] = ()) -> None:
    """Check that a file can be written or replaced, and the folder that it will be in.

    Args:
        file: the file to write.
        option: the option that names it, for the message.
        inputs: what is read, and must not be replaced; what is no file is left out.

    Raises:
        ValueError: the path is a folder, or a device or pipe, which would be replaced by a file; it is one of `inputs`,
            perhaps by a link; or as `check_folder`.
    """
    if file.is_dir():
        raise ValueError(f"{file} is a folder: give the name of a file as {option}")
    if file.exists() and not file.is_file():
        raise ValueError(f"{file} is a device or a pipe, not a file: give the name of a file as {option}")
    if any(_is_same(file, source) for source in inputs):
        raise ValueError(f"{file} is also an input, which would be replaced: give another name as {option}")
    check_folder(file.absolute().parent, option)


def _is_same(file: Path, source: str | Path) -> bool:
    try:
        return file.samefile(Path(source).expanduser())
    except (OSError, ValueError, RuntimeError):  # one is not there, or is no name of a file: a hub id, a data: URL
        return False
