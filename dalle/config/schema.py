"""Config classes: what makes a dataclass one, and what its annotations and docstrings say of its fields."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import ConfigDict
from typing_extensions import dataclass_transform

from dalle.config.ranges import check_choices, check_ranges

T = TypeVar("T")

_MAX_NUMBERS = 2**42  # 17 TB of float32


def check_total(numbers: int, what: str) -> None:
    """Check that a module is not larger than any machine's memory, before anything is allocated.

    Args:
        numbers: approximate number of elements that the module would have.
        what: names and values of the options that determine it, for the message.

    Raises:
        ValueError: there are too many.
    """
    if numbers > _MAX_NUMBERS:
        raise ValueError(f"{what}: together about {numbers:.1e} numbers, more than any machine holds; is one mistyped?")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only dataclass that rejects unknown keys.

    A string literal right below a field is its description, which `describe` shows. Each number states its range in
    its annotation (`dalle.config.ranges`); ranges and choices are checked before the class's own `__post_init__`.
    """
    # Wrapped rather than inherited, so that a class's own checks may rely on the ranges
    own_checks = getattr(cls, "__post_init__", None)

    def __post_init__(self: Any) -> None:
        check_choices(self)
        check_ranges(self)
        if own_checks is not None:
            own_checks(self)

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    cls.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


@cache
def field_types(cls: type) -> dict[str, Any]:
    """Return the resolved annotation of each field of a config class."""
    return get_type_hints(cls)


def is_config(annotation: Any) -> bool:
    """Whether an annotation is a config class."""
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def union_members(annotation: Any) -> list[Any]:
    """List the members of a union; any other annotation is its only member."""
    return list(get_args(annotation)) if get_origin(annotation) in (Union, types.UnionType) else [annotation]


def kinds_of(annotation: Any) -> dict[str, type]:
    """List the config classes of an annotation by their `kind`; a class without a kind has the key ""."""
    classes = [member for member in union_members(annotation) if is_config(member)]
    return {str(get_args(field_types(c)["kind"])[0]) if "kind" in field_types(c) else "": c for c in classes}


def class_for(annotation: Any, data: Any) -> type | None:
    """Return the config class that a mapping belongs to; None if its kind is missing or unknown."""
    kinds = kinds_of(annotation)
    if not isinstance(data, Mapping) or not kinds:
        return None
    if len(kinds) == 1:
        return next(iter(kinds.values()))
    return kinds.get(str(data.get("kind")))


def item_annotation(annotation: Any, number: int) -> Any:
    """Return the annotation of an item of a list or tuple annotation; None if it is neither."""
    for member in union_members(annotation):
        if get_origin(member) in (list, tuple):
            inner = [a for a in get_args(member) if a is not Ellipsis]
            # A tuple annotates each item, a list all of them at once
            return inner[min(number, len(inner) - 1)]
    return None


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a dataclass field; None for a required one."""
    if field.default is not dataclasses.MISSING:
        return field.default
    return None if field.default_factory is dataclasses.MISSING else field.default_factory()


def type_name(annotation: Any) -> str:
    """Describe a type in words: "a number", "one of gelu, swiglu", "a list of integers or null"."""
    if len(kinds_of(annotation)) > 1:
        return f"options of kind {', '.join(kinds_of(annotation))}" + (
            " or null" if type(None) in union_members(annotation) else ""
        )
    members = union_members(annotation)
    if len(members) > 1:
        return " or ".join(type_name(member) for member in members)
    if get_origin(annotation) is Literal:
        values = ", ".join(str(value) for value in get_args(annotation))
        return values if len(get_args(annotation)) == 1 else f"one of {values}"
    if get_origin(annotation) in (list, tuple):
        inner = [a for a in get_args(annotation) if a is not Ellipsis]
        count = f"{len(inner)} x " if get_origin(annotation) is tuple and Ellipsis not in get_args(annotation) else ""
        return f"a list of {count}({type_name(inner[0])})" if inner else "a list"
    names = {
        int: "an integer",
        float: "a number",
        bool: "true or false",
        str: "text",
        Path: "a path",
        type(None): "null",
    }
    return names.get(annotation, "options" if is_config(annotation) else str(annotation))


@cache
def descriptions(cls: type) -> dict[str, str]:
    """Read the description of each field of a config class: the string literal right below it in the source."""
    found: dict[str, str] = {}
    # Bases first: a subclass may describe a field of theirs anew
    for base in reversed(cls.__mro__[:-1]):
        # Python keeps no string literals but docstrings: only the source has these
        body = cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]).body
        for statement, following in pairwise(body):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
                and isinstance(following.value.value, str)
            ):
                found[statement.target.id] = " ".join(following.value.value.split())
    return found
