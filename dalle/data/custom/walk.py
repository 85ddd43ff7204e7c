"""All files of a folder, by one walk that every reader of data uses, and what nobody used of them, told in one line."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

# What would make files of these endings readable, where there is something.
_HINTS = {
    **dict.fromkeys((".heic", ".heif"), "convert them, as by pillow-heif"),
    ".jxl": "convert them, as by djxl",
    ".svg": "draw them at some size, as by cairosvg",
    ".pdf": "draw their pages",
    **dict.fromkeys((".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"), "unpack them"),
    **dict.fromkeys((".mp4", ".webm", ".mov", ".avi", ".mkv"), "videos"),
}


@dataclass
class Found:
    """Files of a folder.

    Attributes:
        root: the folder.
        files: those that count, in the order of their paths.
        passed: how many others there are, by the reason.
    """

    root: Path
    files: list[Path]
    passed: Counter[str] = field(default_factory=Counter)


def walk(root: Path) -> Found:
    """Files below a folder, those behind links too, each folder once.

    What has a name that begins with a dot, or lies in such a folder, does not count; nor do the folders of runs
    (`run.dir`), whose images are samples.
    """
    found, seen = Found(root, []), set[tuple[int, int]]()
    waiting, links = [root], list[Path]()
    while waiting or links:  # links last, so that of two paths to a folder the one without a link is taken
        folder = waiting.pop() if waiting else links.pop(0)
        identity = folder.stat().st_dev, folder.stat().st_ino
        if identity in seen:
            found.passed["links to folders that are read already"] += 1
        elif folder != root and _is_run(folder):
            found.passed["folders of runs"] += 1
        else:
            seen.add(identity)
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except PermissionError:
                found.passed["folders that may not be read"] += 1
                continue
            for entry in entries:
                path = Path(entry.path)
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    (links if entry.is_symlink() else waiting).append(path)
                elif entry.is_file():
                    found.files.append(path)
                else:
                    found.passed["links to what is not there" if entry.is_symlink() else "no files"] += 1
    found.files.sort()
    return found


def _is_run(folder: Path) -> bool:
    """Whether a training wrote this folder."""
    return (folder / "config.yaml").is_file() and (
        (folder / "metrics.jsonl").is_file() or (folder / "checkpoints").is_dir()
    )


def ending(path: Path) -> str:
    """A file's ending as it is compared: in small letters."""
    return path.suffix.lower()


def name_of(path: Path | str) -> str:
    """A path as it is compared: composed (NFC), as the same name is stored in two forms, and its ending in small."""
    stem, dot, last = unicodedata.normalize("NFC", str(path)).rpartition(".")
    return f"{stem}{dot}{last.lower()}" if dot and "/" not in last else f"{stem}{dot}{last}"


def by_endings(files: Iterable[Path]) -> Counter[str]:
    """Reasons why files were not used, that nobody knows more of than their ending."""
    counts = Counter(ending(file) or "files without an ending" for file in files)
    return Counter({f"{name} ({_HINTS[name]})" if name in _HINTS else name: n for name, n in counts.items()})


def tell(where: Path | str, passed: Counter[str]) -> None:
    """Say in one line how much was not used, by the reason."""
    told = described(passed)
    if told:
        log.warning("%s: not used: %s", where, told)


def described(passed: Counter[str]) -> str:
    """How many files there are for each reason, the most first."""
    ordered = sorted(passed.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {reason if count > 1 else _one(reason)}" for reason, count in ordered if count)


def _one(reason: str) -> str:
    """A reason of one file: what stands first is the noun, if it is no ending."""
    noun, space, rest = reason.partition(" ")
    return f"{noun if noun.startswith('.') else noun.removesuffix('s')}{space}{rest}"
