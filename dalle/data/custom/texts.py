"""Text of users' files: its encoding, and JSON."""

from __future__ import annotations

import codecs
import json
from typing import Any

# The marks of UTF-32 first: one of them begins with that of UTF-16
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def decode_text(content: bytes) -> str:
    """Decode as UTF-8, or as UTF-16 or UTF-32 if it begins with the byte order mark; the mark is left out.

    Raises:
        UnicodeDecodeError: the bytes are not valid text, or hold NULs.
    """
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8-sig")
    text = content.decode(encoding)
    if "\0" in text:
        # Valid UTF-8, but nobody's text: it would be trained on as it is
        place = content.index(b"\0")
        raise UnicodeDecodeError(
            "utf-8", content, place, place + 1, "NUL, as in UTF-16 without a byte order mark or in what is no text"
        )
    return text


def read_json(text: str | bytes) -> Any:
    """Parse JSON as other tools write it, with NaN and repeated names; bytes are decoded by `decode_text`.

    Raises:
        ValueError: it is no JSON, nested too deep, or holds a number of thousands of digits.
    """
    try:
        return json.loads(text if isinstance(text, str) else decode_text(text))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
