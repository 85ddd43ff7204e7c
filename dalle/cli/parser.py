"""Numbers with units, as they are given on command lines: 80GB, 24GiB, 312TFLOPS."""

from __future__ import annotations

import re

_UNITS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


def quantity(text: str, unit: str, option: str) -> float:
    """A number with a unit.

    Args:
        text: for example "80GB", "24 GiB" or "312TFLOPS".
        unit: "B" or "FLOPS".
        option: what it was given as, for the error.

    Raises:
        ValueError: it is none, or not above 0.
    """
    prefixes = _UNITS | (_BINARY if unit == "B" else {})
    found = re.fullmatch(rf"([\d.]+(?:e\d+)?)\s*({'|'.join(prefixes)})(?:{unit})?", text.strip())
    try:
        value = float(found[1]) * prefixes[found[2]] if found else 0.0
    except ValueError:
        value = 0.0
    if value <= 0:
        example = "80GB" if unit == "B" else "312TFLOPS"
        raise ValueError(f"--{option} is {text!r}: expected a number with a unit, {example}")
    return value
