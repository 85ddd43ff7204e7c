"""Lists the files of a data folder for all readers, and reports in one log line which of them are not used."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from dalle.files import printable

log = logging.getLogger(__name__)

# Folders of thumbnails, resource forks and deleted files, which operating systems and storage devices add
_OF_THE_SYSTEM = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "#recycle")

# How to make files with these extensions readable, where there is a way.
_HINTS = {
    **dict.fromkeys((".heic", ".heif"), "convert them, as by pillow-heif"),
    ".jxl": "convert them, as by djxl",
    ".svg": "render them at some size, as by cairosvg",
    ".pdf": "render their pages",
    **dict.fromkeys((".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"), "unpack them"),
    ".arrow": "of save_to_disk: give the folder of that data set",
    **dict.fromkeys((".mp4", ".webm", ".mov", ".avi", ".mkv"), "videos"),
}


@dataclass
class FolderListing:
    """The files of a folder.

    Attributes:
        root: the folder.
        files: its files, sorted by path.
        ignored: number of left-out entries by reason.
    """

    root: Path
    files: list[Path]
    ignored: Counter[str] = field(default_factory=Counter)


def walk(root: Path) -> FolderListing:
    """List the files below a folder. Links are followed; each folder is visited once.

    Hidden files and folders and those of the operating system are left out, and so are folders of training runs
    (`run.dir`), whose images are samples.
    """
    found, seen = FolderListing(root, []), set[tuple[int, int]]()
    waiting, links = [root], list[Path]()
    while waiting or links:  # links last: of two paths to a folder, prefer the one without a link
        folder = waiting.pop() if waiting else links.pop(0)
        try:
            identity = folder.stat().st_dev, folder.stat().st_ino  # links may form circles
            if identity in seen:
                found.ignored["links to folders already read"] += 1
                continue
            if folder != root and _is_run(folder):
                found.ignored["folders of training runs"] += 1
                continue
            seen.add(identity)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except PermissionError:
            found.ignored["folders without read permission"] += 1
            continue
        for entry in entries:
            path = Path(entry.path)
            # .git, .DS_Store, "._" files of macOS: never data
            if entry.name.startswith(".") or entry.name in _OF_THE_SYSTEM:
                continue
            kind = _kind(entry)
            if kind == "folder":
                (links if entry.is_symlink() else waiting).append(path)
            elif kind == "file":
                found.files.append(path)
            else:
                found.ignored[
                    "links without a target" if entry.is_symlink() else "files of special kinds, such as pipes"
                ] += 1
    found.files.sort()
    return found


def _kind(entry: os.DirEntry[str]) -> str | None:
    """Whether an entry, links followed, is a "folder" or a "file"."""
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else None
    except OSError:  # a link to itself, or to what may not be read
        return None


def _is_run(folder: Path) -> bool:
    """Whether this folder was written by a training run."""
    return (folder / "config.yaml").is_file() and (
        (folder / "metrics.jsonl").is_file() or (folder / "checkpoints").is_dir()
    )


def extension(path: Path) -> str:
    """A file's extension in lower case."""
    return path.suffix.lower()


def normalized_name(path: Path | str) -> str:
    """A path for comparison: in Unicode form NFC, with its extension in lower case.

    macOS stores decomposed names, so that the same name may be spelled with different code points.
    """
    stem, dot, last = unicodedata.normalize("NFC", str(path)).rpartition(".")
    # Dots of folder names do not count
    return f"{stem}{dot}{last.lower()}" if dot and "/" not in last else f"{stem}{dot}{last}"


def count_by_extension(files: Iterable[Path]) -> Counter[str]:
    """The number of files by extension, with a hint on how to convert them if there is one."""
    counts = Counter(extension(file) or "files without an extension" for file in files)
    return Counter({f"{name} ({_HINTS[name]})" if name in _HINTS else name: n for name, n in counts.items()})


def log_ignored(where: Path | str, ignored: Counter[str]) -> None:
    """Log in one line how many files were not used, and why."""
    if any(ignored.values()):
        log.warning("%s", _not_used(where, ignored))


def log_ignored_once(where: Path | str, ignored: Counter[str]) -> None:
    """Log it, unless the same line was logged before: a data set is opened again for every split."""
    if any(ignored.values()):
        log_once(_not_used(where, ignored))


@cache
def log_once(line: str) -> None:
    """Log a warning unless it was logged before."""
    log.warning("%s", line)


def _not_used(where: Path | str, ignored: Counter[str]) -> str:
    return printable(f"{where}: not used: {describe_ignored(ignored)}")


def describe_ignored(ignored: Counter[str]) -> str:
    """The number of files for each reason, most frequent first."""
    ordered = sorted(ignored.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {reason if count > 1 else _one(reason)}" for reason, count in ordered if count)


def _one(reason: str) -> str:
    """A reason in the singular: its first word is the noun, unless it is an extension."""
    noun, space, rest = reason.partition(" ")
    return f"{noun if noun.startswith('.') else noun.removesuffix('s')}{space}{rest}"
