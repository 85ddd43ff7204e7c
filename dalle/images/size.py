"""Sizes of images as text, WIDTHxHEIGHT. Does not import torch."""

from __future__ import annotations

import re

Size = tuple[int, int]
"""Width and height in pixels."""


def read_size(text: str) -> Size:
    """A size in pixels, width first.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"(\d{1,5})[xX×](\d{1,5})", text.strip())
    if match is None or not int(match[1]) * int(match[2]):
        raise ValueError(f"size is {text!r}: give WIDTHxHEIGHT in pixels, such as 768x512")
    return int(match[1]), int(match[2])
