"""Conditions on what is known of an image: width>=512, path~holiday, caption=a dog."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_TEXTS = ("path", "caption", "sha256")
_NUMBERS = ("width", "height")
_DIGITS = 18  # of a number: pyarrow compares 64 bits
_CONDITION = re.compile(r"\s*(\w+)\s*(>=|<=|!=|=|<|>|~)\s*(.*?)\s*$", re.DOTALL)
_COMPARED: dict[str, Callable[[Any, Any], Any]] = {
    "=": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal,
}  # fmt: skip


class Filter:
    """Conditions that all must hold.

    Raises:
        ValueError: one of them is none.
    """

    def __init__(self, conditions: Sequence[str]):
        self.conditions = [_parsed(condition) for condition in conditions]

    def mask(self, batches: Sequence[pa.RecordBatch]) -> np.ndarray | None:
        """bool [N], the rows for which they hold; None: all, as there is no condition."""
        if not self.conditions:
            return None
        return np.concatenate([self._of(batch) for batch in batches] or [np.zeros(0, dtype=bool)])

    def _of(self, batch: pa.RecordBatch) -> np.ndarray:
        allowed = np.ones(batch.num_rows, dtype=bool)
        for name, sign, value in self.conditions:
            column = batch.column(name)
            if sign == "~":
                holds = pc.match_substring(pc.utf8_lower(column), str(value).lower())  # case does not count
            else:
                holds = _COMPARED[sign](column, value)
            # What is not known (null) does not hold
            allowed = operator.and_(
                allowed, np.asarray(holds.fill_null(False).to_numpy(zero_copy_only=False), dtype=bool)
            )
        return allowed


def _parsed(condition: str) -> tuple[str, str, str | int]:
    found = _CONDITION.match(condition)
    if found is None or found[1] not in _TEXTS + _NUMBERS:
        raise ValueError(
            f"filter {condition!r}: expected NAME, a sign and a value, such as width>=512 or path~holiday; names are "
            f"{', '.join(_TEXTS + _NUMBERS)}, signs = != < <= > >= and ~ (holds)"
        )
    name, sign, value = found.groups()
    if name in _TEXTS and sign in ("=", "!=", "~"):
        return name, sign, value
    if name in _TEXTS or sign == "~":
        raise ValueError(f"filter {condition!r}: {name} goes with {'= != ~' if name in _TEXTS else '= != < <= > >='}")
    if not value.isdecimal() or len(value) > _DIGITS:
        raise ValueError(
            f"filter {condition!r}: {name} is a number of pixels of {_DIGITS} digits at most, not {value!r}"
        )
    return name, sign, int(value)
