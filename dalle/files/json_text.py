"""Reads JSON that somebody else wrote: strictly, and with reasons for those who do not program in Python."""

from __future__ import annotations

import json
from typing import Any


class RepeatedName(ValueError):
    """An object has a name twice: which of them is meant is not known.

    Attributes:
        name: the name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"{name!r} is there twice: leave one of them out")
        self.name = name


def parse_json(text: str) -> Any:
    """Read a JSON document.

    Raises:
        RepeatedName: an object has a name twice.
        ValueError: it is no JSON, is nested too deeply, or has a number of too many digits; one line says which.
    """
    try:
        # Python reads NaN and Infinity as numbers, which JSON does not have
        return json.loads(text, parse_constant=_no_number, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except RepeatedName:
        raise
    except ValueError as error:
        # Python's own message advises to call a function of its own
        raise ValueError("a number has too many digits" if "int_max_str_digits" in str(error) else str(error)) from None


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise RepeatedName(name)
        found[name] = value
    return found
