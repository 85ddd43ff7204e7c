"""Recognizes pointers of Git LFS, which lie in place of large files where these were not fetched."""

from __future__ import annotations

from pathlib import Path

_START = b"version https://git-lfs"


def lfs_pointer(content: bytes | Path) -> str | None:
    """What such a pointer is and what to do, if these bytes or this file are one; else None."""
    if isinstance(content, Path):
        try:
            with content.open("rb") as file:
                content = file.read(len(_START))
        except OSError:
            return None
    if not content.startswith(_START):
        return None
    return "a pointer of Git LFS in place of the file itself: `git lfs pull` in its folder"
