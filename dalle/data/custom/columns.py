"""Which columns of a table hold images and captions, and how a caption is cleaned."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable
from typing import Any

from dalle.data.custom.texts import decode_text

log = logging.getLogger(__name__)

CAPTIONS = ("caption", "captions", "text", "texts", "txt")
IMAGES = ("image", "jpg", "jpeg", "png", "webp", "img", "images")

_MAX_CHARS = 10_000  # of a caption
_SHOWN = 40  # characters of a wrong caption that a message quotes
_MAX_NAMED = 1000  # long captions of which each is named once
# Control characters that are no white space become spaces. A byte order mark in a text is left over from joined files.
_UNPRINTABLE = dict.fromkeys((*range(9), *range(14, 28), *range(127, 133), *range(134, 160)), " ") | {0xFEFF: None}


def clean_captions(value: Any, lines: bool = False) -> tuple[str, ...]:
    """Parse and clean the captions of a record; every source uses this function.

    Bytes are decoded by `decode_text`. Numbers become text. Values that are not text, blank captions and duplicates
    are dropped; runs of white space and control characters become single spaces. A caption of more than 10,000
    characters is cut there, at a space: a model reads tens of tokens, and BPE of megabytes takes minutes.

    Args:
        value: a caption, or a list of captions.
        lines: whether each line of a text is a caption; only line feeds and carriage returns end a line.

    Raises:
        UnicodeDecodeError: bytes are not valid text.
    """
    values = value if isinstance(value, (list, tuple)) else [value]
    texts = [text for each in values if (text := _text(each)) is not None]
    if lines:
        texts = [line for text in texts for line in re.split(r"[\r\n]+", text)]
    cleaned = (_shortened(" ".join(text.translate(_UNPRINTABLE).split())) for text in texts)
    return tuple(dict.fromkeys(text for text in cleaned if text))


def _shortened(text: str) -> str:
    if len(text) <= _MAX_CHARS:
        return text
    _log_long(text[:40], len(text))
    return text[:_MAX_CHARS].rpartition(" ")[0] or text[:_MAX_CHARS]


@functools.lru_cache(maxsize=_MAX_NAMED)  # a record is read in every epoch
def _log_long(start: str, length: int) -> None:
    log.warning("a caption of %s characters is cut to %s: %r...", f"{length:,}", f"{_MAX_CHARS:,}", start)


def read_captions(value: Any, lines: bool = False) -> tuple[tuple[str, ...], str | None]:
    """The captions of `clean_captions`, or none and why, where it is more than that there is no text."""
    try:
        captions = clean_captions(value, lines)
    except UnicodeDecodeError as error:
        return (), f"its captions cannot be read ({error})"
    return captions, None if captions else _fault(value)


def _fault(value: Any) -> str | None:
    """What a value without captions is in place of text; None if it is text, a number or nothing."""
    values = value if isinstance(value, (list, tuple)) else [value]
    wrong = [each for each in values if isinstance(each, (bool, dict, list, tuple))]
    if not wrong:
        return None
    shown = repr(wrong[0])
    return (
        f"its caption is a {type(wrong[0]).__name__}, {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '...'}: "
        "expected text, or a list of texts"
    )


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return decode_text(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value:  # nan is an empty cell
        return str(value)
    return value if isinstance(value, str) else None


def caption_column(wanted: str | None, names: Iterable[str], where: str) -> str:
    """The caption column: `wanted`, or the first of the usual names that exists.

    Raises:
        ValueError: there is no such column.
    """
    return _column("caption", "captions", wanted, names, CAPTIONS, where)


def has_captions(wanted: str | None, names: Iterable[str]) -> bool:
    """Whether a caption column was requested, or one with a usual name exists."""
    return wanted is not None or usual_name(names, CAPTIONS) is not None


def usual_name(names: Iterable[str], usual: Iterable[str]) -> str | None:
    """The name of a column that comes first among the `usual` ones, without regard to case; None if there is none."""
    there = {name.strip().lower(): name for name in reversed(list(names))}  # of Text and text, the first
    return next((there[name] for name in usual if name in there), None)


def image_column(wanted: str | None, names: Iterable[str], where: str) -> str:
    """The image column: `wanted`, or the first of the usual names that exists.

    Raises:
        ValueError: there is no such column.
    """
    return _column("image", "images", wanted, names, IMAGES, where)


def _column(
    option: str, what: str, wanted: str | None, names: Iterable[str], usual: tuple[str, ...], where: str
) -> str:
    names = list(names)
    there = f"there are {', '.join(names)}" if names else "it has no columns"
    if wanted is not None:
        if wanted not in names:
            raise ValueError(f"{where} has no column {wanted!r}: {there}; set data.{option} to one of them")
        return wanted
    found = usual_name(names, usual)
    if found is None:
        raise ValueError(
            f"{where} has no column with a usual name for {what} ({', '.join(usual)}): {there}; set data.{option}"
        )
    return found
