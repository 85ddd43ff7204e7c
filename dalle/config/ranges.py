"""Ranges of the numbers in configs, stated beside each field and checked when a config is made. Knows no config."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Range:
    """The valid range of a number; infinite values and NaN are never valid."""

    low: float
    """Lower bound."""
    high: float | None = None
    """Upper bound; None: no bound except `ceiling`."""
    above: bool = False
    """Whether the lower bound itself is out of range."""
    below: bool = False
    """Whether the upper bound itself is out of range."""
    ceiling: float | None = None
    """A value above this, though valid in principle, is taken for a typing error; None: another check refuses it."""
    hint: str = ""
    """Note on special values for error messages."""

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {_shown(self.low)}"
        if self.high is None:
            return low
        if self.above or self.below:
            return f"{low} and {'below' if self.below else 'at most'} {_shown(self.high)}"
        return f"from {_shown(self.low)} to {_shown(self.high)}"

    def problem(self, value: Any) -> str | None:
        """The requirement that `value` violates, for an error message; None if it is valid."""
        hint = f" ({self.hint})" if self.hint else ""
        if not isinstance(value, Integral) and not math.isfinite(value):  # a float of NumPy is no float of Python
            return f"it must be a finite number, {self}{hint}"
        if value < self.low or (self.above and value == self.low):
            return f"it must be {self}{hint}"
        if self.high is not None and (value > self.high or (self.below and value == self.high)):
            return f"it must be {self}{hint}"
        if self.ceiling is not None and value > self.ceiling:
            return f"it must be at most {_shown(self.ceiling)}; is it mistyped?"
        return None


_MOST = 10**12  # steps, images, bytes of a buffer: nothing here is counted beyond it

PositiveInt = Annotated[int, Range(1, ceiling=_MOST)]
NonNegativeInt = Annotated[int, Range(0, ceiling=_MOST)]
Size = Annotated[int, Range(1, ceiling=10**15)]
"""A size of a model, which `dalle.config.check_total` bounds together with the others."""
Seed = Annotated[int, Range(0, ceiling=2**62 - 1)]
PositiveFloat = Annotated[float, Range(0, above=True, ceiling=1e18)]
Probability = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 1, below=True)]
"""A share that may not be the whole: a decay of averages, dropout."""
Weight = Annotated[float, Range(0, ceiling=1e6)]
"""A weight of a loss."""


def check_ranges(instance: Any) -> None:
    """Refuse a dataclass in which a number is out of the range that its annotation states.

    Raises:
        ValueError: one is, or is no number; the message names the field.
    """
    for name, annotation in field_annotations(instance.__class__).items():
        for place, value, limits in numbers(name, getattr(instance, name), annotation):
            _check(place, value, *limits)


def check_choices(instance: Any) -> None:
    """Refuse a dataclass in which a value is none of the choices that its annotation lists, or a number is missing.

    pydantic checks what a file says; this, what Python code gives.

    Raises:
        ValueError: one is; the message names the field.
    """
    for name, annotation in field_annotations(instance.__class__).items():
        value, members, declared = getattr(instance, name), _members(annotation), _declared(annotation)
        if value is None and type(None) in members:
            continue
        if value is None and declared is not None:
            _check(name, value, *declared)
        known = [member for member in members if member is not type(None)]
        choices = [choice for member in known if get_origin(member) is Literal for choice in get_args(member)]
        if choices and value not in choices and all(get_origin(member) is Literal for member in known):
            raise ValueError(f"{name} is {value!r}; choose from {', '.join(map(str, choices))}")


def range_text(cls: Any, name: str) -> str:
    """The range of a field for --help: ", at least 1"; "" if it is no number or has none."""
    declared = _declared(field_annotations(cls)[name])
    return "" if declared is None or declared[1] is None else f", {declared[1]}"


@cache
def field_annotations(cls: Any) -> dict[str, Any]:
    """Annotations of the fields of a dataclass, ranges included."""
    hints = get_type_hints(cls, include_extras=True)  # parses annotations, which are strings: slow, hence the cache
    return {field.name: hints[field.name] for field in fields(cls)}


def numbers(name: str, value: Any, annotation: Any) -> Iterator[tuple[str, Any, tuple[type, Range | None]]]:
    """Each number in a value: its name, itself, and what is declared for it, a type and a range (None: no range)."""
    if value is None:
        return
    declared = _declared(annotation)
    if declared is not None:
        yield name, value, declared
        return
    for member in _members(annotation):
        items = [inner for inner in get_args(member) if inner is not Ellipsis]
        if get_origin(member) in (list, tuple) and isinstance(value, (list, tuple)):
            for number, item in enumerate(value):
                # tuple[int, ...] has one for all items
                yield from numbers(f"{name}[{number}]", item, items[min(number, len(items) - 1)])


def _members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; a single one of anything else."""
    single = (None, list, tuple, Annotated, Literal)
    return (annotation,) if get_origin(annotation) in single else get_args(annotation)


def _declared(annotation: Any) -> tuple[type, Range | None] | None:
    """The type and the range of an annotation that is a number; None of any other."""
    for member in _members(annotation):
        kind, *extras = get_args(member) if get_origin(member) is Annotated else (member,)
        if kind in (int, float):
            return kind, next((extra for extra in extras if isinstance(extra, Range)), None)
    return None


def _check(name: str, value: Any, kind: type, limits: Range | None) -> None:
    # True is an int to Python. Infinite values and NaN are left to the range, whose message says more
    number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if not number and not (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{name} is {_shown(value)}; it must be {'a whole number' if kind is int else 'a number'}")
    problem = None if limits is None else limits.problem(value)
    if problem is not None:
        raise ValueError(f"{name} is {_shown(value)}; {problem}")


def _shown(value: Any) -> str:
    if isinstance(value, int) and not -(2**62) < value < 2**62:  # Python refuses to write one of over 4,300 digits
        return f"{'-' if value < 0 else ''}2^{abs(value).bit_length() - 1} or more"
    return repr(value) if isinstance(value, str) else str(value)  # in quotes, "1000" is not taken for a number
