"""The image in a cell of a table: its bytes, the path of a file, or base64."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dalle.data.custom.records import FileSpan
from dalle.files import url_of

_SHOWN = 40  # characters of a wrong cell that a message quotes
_SHORTEST = 64  # characters: the smallest images have some 70 bytes, and a path can look like base64


def parse_image_cell(value: Any, folders: Sequence[Path] = ()) -> tuple[bytes | FileSpan | None, str | None]:
    """The content of an image column's cell and None, or None and why it is not an image.

    Args:
        value: bytes, base64, the path of a file, a dict with "bytes" or "path" as Hugging Face datasets has it, or a
            list of one of these.
        folders: folders of the tables, which relative paths start from; none for a data set of the hub.
    """
    if isinstance(value, (list, tuple)) and value and all(isinstance(each, (bytes, str, dict)) for each in value):
        if len(value) > 1:
            return None, f"there are {len(value)} images: expected one"
        value = value[0]
    if isinstance(value, dict):
        content = value.get("bytes") or value.get("path")
        if isinstance(content, str) and not folders and _from_base64(content) is None:  # of the hub, or cached
            return FileSpan(content), None
        value = content
    if isinstance(value, bytes):
        return value, None
    if not value:
        return None, "there is no image"
    if not isinstance(value, str):
        what = f"{type(value).__name__} {str(value)[:_SHOWN]!r}"
        return None, f"expected an image's bytes, base64 or path, got {what}"
    if url_of(value) is not None:
        return None, f"its image is an address, {value[:60]!r}: download the images first, as by img2dataset"
    embedded = _from_base64(value)
    if embedded is not None:
        return embedded, None
    for file in (os.path.join(folder, name) for folder in folders for name in (value, value.replace("\\", "/"))):
        if os.path.isfile(file):
            return FileSpan(file), None
    return None, f"expected an image's bytes, base64, or a path from the table's folder, got {value[:_SHOWN]!r}"


def _from_base64(text: str) -> bytes | None:
    """What a text in base64, with or without the head of a data: URL, stands for; None if it is no such text."""
    head, comma, rest = text.partition(",")
    plain = rest if comma and head.startswith("data:") and head.endswith(";base64") else text
    if len(plain) < _SHORTEST:
        return None
    try:
        return base64.b64decode("".join(plain.split()), validate=True)
    except (binascii.Error, ValueError):  # ValueError: characters beyond ASCII
        return None
