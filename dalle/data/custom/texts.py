"""Text of users' files: its encoding, and JSON."""

from __future__ import annotations

import codecs
import json
from typing import Any


def decode_text(content: bytes) -> str:
    """Decode as UTF-8, or as UTF-16 if it begins with its byte order mark; the mark is left out.

    Raises:
        UnicodeDecodeError: the bytes are not valid text.
    """
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if marked else "utf-8-sig")


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; bytes are decoded by `decode_text`.

    Raises:
        ValueError: it is no JSON, nested too deep, or holds a number of thousands of digits.
    """
    try:
        return json.loads(text if isinstance(text, str) else decode_text(text))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
