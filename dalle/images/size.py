"""Sizes of images as text, WIDTHxHEIGHT. Does not import torch."""

from __future__ import annotations

import re
from typing import Any

Size = tuple[int, int]
"""Width and height in pixels."""


def read_size(given: Any) -> Size:
    """A size in pixels, width first, as text or as two numbers.

    Raises:
        ValueError: it is none.
    """
    if isinstance(given, (tuple, list)) and len(given) == 2 and all(type(side) is int for side in given):
        return given[0], given[1]
    text = given if isinstance(given, str) else ""
    match = re.fullmatch(r"(\d{1,5})[xX×](\d{1,5})", text.strip())
    if match is None or not int(match[1]) * int(match[2]):
        raise ValueError(f"size is {given!r}: give WIDTHxHEIGHT in pixels, such as 768x512")
    return int(match[1]), int(match[2])
