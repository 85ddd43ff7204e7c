"""Output folders and files of commands under names that are free, and how metadata refers to input files."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from dalle.files import naming, sha256


class ScoresFile:
    """scores.json of a run, to which images are appended; it is valid JSON after each call, and is never rewritten.

    Args:
        path: the file.
        header: what comes before the list of images.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]):
        self._path = path
        head = json.dumps(header, indent=2, ensure_ascii=False).removesuffix("\n}")  # left open: the images come next
        self._next = f'{head},\n  "images": ['
        self._end = 0  # length of the file without the end that each call replaces
        self._ending = b""  # that end

    def append(self, images: Sequence[Mapping[str, Any]], footer: Mapping[str, Any]) -> None:
        """Append images, one line each; `footer` comes after the list and replaces the last call's.

        Raises:
            OSError: the disk is full or not writable; the file is as it was before, and the next call can try again.
        """
        lines = ",".join(f"\n    {json.dumps(image, ensure_ascii=False)}" for image in images)
        content = f"{self._next}{lines}".encode()
        ending = "".join(f",\n  {json.dumps(key)}: {json.dumps(value)}" for key, value in footer.items())
        end = f"\n  ]{ending}\n}}\n".encode()
        with naming(self._path):
            try:
                self._write(content + end)
            except BaseException:  # a full disk takes a part of it, and Ctrl-C may come at any line
                if self._end:
                    self._write(self._ending)  # its place is the file's already
                else:
                    self._path.unlink(missing_ok=True)
                raise
        self._end += len(content)
        self._next, self._ending = ",", end

    def _write(self, content: bytes) -> None:
        """Replace the end of the file."""
        # Unbuffered: a failed write must not be tried once more when the file is closed
        with self._path.open("r+b" if self._end else "wb", buffering=0) as file:
            file.seek(self._end)
            while content:
                content = content[file.write(content) :]
            file.truncate()  # this end may be shorter than the last


def new_folder(parent: Path, name: str) -> Path:
    """Create the folder `parent`/`name`; if it exists, `name`-2, `name`-3, ..."""
    parent.mkdir(parents=True, exist_ok=True)
    return _first_free(parent, name, "", Path.mkdir)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Create an empty file `path`, to be written in the block; if it exists, NAME-2.png, NAME-3.png, ...

    The file is removed if the block fails.
    """
    file = _first_free(path.parent, path.stem, path.suffix, partial(Path.touch, exist_ok=False))
    try:
        yield file
    except BaseException:  # Ctrl-C too
        file.unlink(missing_ok=True)
        raise


def _first_free(parent: Path, name: str, suffix: str, create: Callable[[Path], object]) -> Path:
    """Create what is not there yet, by what raises FileExistsError: no other process can take the same name."""
    number = 1
    while True:
        path = parent / f"{name}{'' if number == 1 else f'-{number}'}{suffix}"
        try:
            create(path)
        except FileExistsError:
            number += 1
        else:
            return path


def slug(prompt: str) -> str:
    """Convert the start of a prompt to a file name: letters, combining marks and digits of any script, else hyphens.

    A prompt of nothing else, such as emoji, gives the Unicode names of its symbols: "fire" rather than no name at all.
    """
    # Variation selectors are marks too, but of what is left out: alone they make an invisible name
    prompt = "".join(c for c in prompt.lower() if not "\ufe00" <= c <= "\ufe0f")
    words = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in prompt)
    if not words.strip():
        words = " ".join(unicodedata.name(c, "") for c in prompt if unicodedata.category(c) == "So").lower()
    # File systems limit bytes; half a character is dropped
    short = "-".join(words.split()).encode()[:60].decode(errors="ignore").strip("-")
    # In the locale C without UTF-8 mode no other name can be written
    written = short.encode(sys.getfilesystemencoding(), "ignore").decode(sys.getfilesystemencoding())
    return written.strip("-") or ("prompt" if short else "empty")


def file_record(file: Path) -> dict[str, str]:
    """Describe an input file for metadata: its name and the hash of its contents."""
    return {"file": file.name, "sha256": sha256(file)}
