"""The options of a config class in words: name, type, default and meaning of each, as --help shows them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from dalle.config.ranges import range_text
from dalle.config.schema import class_for, default_of, descriptions, field_types, kinds_of, type_name, union_members
from dalle.config.validate import to_plain


def describe(schema: Any, base: Mapping[str, Any] | None = None) -> str:
    """Describe every option, one per line: dotted name, type, default (or value in `base`), meaning."""
    rows = list(option_rows(schema, base or {}, ""))
    left = max((len(name) for name, _, _ in rows), default=0)
    return "\n".join(f"  {name:<{left}}  {kind}{'. ' if text else ''}{text}" for name, kind, text in rows)


def option_rows(annotation: Any, base: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """Each option under `path`: its dotted name, its type with the default (or the value in `base`), its meaning."""
    kinds = kinds_of(annotation)
    chosen = class_for(annotation, base)
    for kind, cls in kinds.items():
        # The recipe at hand has chosen a kind: options of the others would only mislead
        if len(kinds) > 1 and chosen is not None and cls is not chosen:
            continue
        several = len(kinds) > 1
        suffix = f" (kind {kind})" if several and chosen is None else ""
        texts = descriptions(cls)
        for field in dataclasses.fields(cls):
            inner, name = field_types(cls)[field.name], path + field.name
            given = base.get(field.name) if isinstance(base, Mapping) else None
            if field.name == "kind" and several:
                if not suffix:  # else each line names its kind already
                    yield name, f"one of {', '.join(kinds)}" + _default(field, given), texts.get(field.name, "")
            elif kinds_of(inner):
                # A nested config has a line of its own only if that says more than the lines of its options
                if texts.get(field.name) or type(None) in union_members(inner):
                    yield name + suffix, type_name(inner) + _default(field, None), texts.get(field.name, "")
                yield from option_rows(inner, given if given is not None else to_plain(default_of(field)), f"{name}.")
            else:
                kind_and_range = type_name(inner) + range_text(cls, field.name)
                yield name + suffix, kind_and_range + _default(field, given), texts.get(field.name, "")


def _default(field: dataclasses.Field[Any], given: Any) -> str:
    if given is not None:
        return f" = {_text(given)}"
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return ", required"
    plain = to_plain(default_of(field))
    return f" = {plain.get('kind', '...')}" if isinstance(plain, dict) else f" = {_text(plain)}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_text(item) for item in value) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
