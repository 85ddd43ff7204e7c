"""What commands read from their words: sizes, and texts in any locale."""

from __future__ import annotations

import os

import pytest

from dalle.__main__ import _parse
from dalle.cli.parser import parse_size


@pytest.mark.parametrize("size", ["1e400GB", "1e300PB", "0GB", "nan"])
def test_sizes_are_finite_and_above_0(size: str) -> None:
    with pytest.raises(ValueError, match=f"--memory is '{size}': expected a number with a unit, 80GB"):
        parse_size(size, "B", "memory")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("search INDEX TEXT", "text"),
        ("search INDEX --minus TEXT", "minus"),
        ("search INDEX --weights TEXT", "weights"),
        ("search INDEX a --where TEXT", "where"),
        ("classify FILE --labels TEXT", "labels"),
        ("classify FILE --labels a,b --template TEXT", "template"),
        ("eval classify IMAGES --labels TEXT", "labels"),
        ("eval classify IMAGES --by TEXT", "by"),
        ("eval classify IMAGES --image TEXT", "image"),
        ("index IMAGES --out INDEX --image TEXT", "image"),
        ("index IMAGES --out INDEX --caption TEXT", "caption"),
    ],
)
def test_texts_are_utf_8_whatever_the_locale(words: str, name: str) -> None:
    text = "\u0926\u093f\u0932 {}"
    held = text.encode().decode("ascii", "surrogateescape")  # as Python has it where the locale is ASCII
    assert os.fsencode(held) == text.encode()
    found = getattr(_parse([held if word == "TEXT" else word for word in words.split()]), name)
    assert found in (text, [text])
