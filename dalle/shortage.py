"""Lack of memory, by whatever name a library raises it: what was asked for, and not a file that is blamed for it."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

_SIGNS = re.compile(
    r"out of memory|alloc_cpu\.cpp|bad_alloc|(cannot|can't|could not|unable to|failed to) allocate|(re|m)alloc of size"
    r"|_ALLOC_FAILED",
    re.IGNORECASE,
)
_BYTES = re.compile(r"(?:allocate|size)\s+([\d.]+)\s*(bytes|[KMGT]i?B)?", re.IGNORECASE)
_UNITS = {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def shortage(error: BaseException) -> str | None:
    """A line on an error that is, or came of, a lack of memory; None: it is another error."""
    for one in _causes(error):
        if _is_shortage(one):
            return f"out of memory{_asked(str(one))}"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_shortage(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    # torch's on accelerators, its allocator's, and those of the libraries that read files, are of many classes
    return not isinstance(error, ValueError) and _SIGNS.search(str(error)) is not None


def _asked(told: str) -> str:
    """How much was asked for, where the error says it."""
    found = _BYTES.search(told)
    if found is None:
        return ""
    count = float(found[1].rstrip(".")) * _UNITS[(found[2] or "b")[0].lower()]
    return f" (asked for {count / 1e9:.3g} GB more)" if count >= 1e7 else ""
