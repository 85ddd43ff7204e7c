"""Plain data to a config, with every mistake at once and by its full path, and back."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from dalle.config.schema import class_for, field_types, is_config, item_annotation, kinds_of, type_name, union_members
from dalle.config.yaml_files import ConfigError, apply_overrides, read_yaml, to_yaml, value_kind

# Keys and values of earlier versions: using one in a recipe is an error that names the new one
_RENAMED = {"updates": "steps", "normalised": "normalized"}
_RENAMED_VALUES = {("crop", "centre"): "center"}


def renamed(data: Any) -> Any:
    """Convert the config of a run or a model folder from an earlier version to the current keys and values."""
    if not isinstance(data, dict):
        return data
    return {_RENAMED.get(key, key): _new_value(key, renamed(value)) for key, value in data.items()}


def _new_value(key: Any, value: Any) -> Any:
    """The current name of a value of an earlier version, or the value itself."""
    return _RENAMED_VALUES.get((str(key), value), value) if isinstance(value, str) else value


def from_dict(schema: Any, data: Mapping[str, Any], source: str) -> Any:
    """Build a config from plain data.

    Args:
        schema: config class, or a union of config classes that their field `kind` discriminates.
        data: plain data, as read from YAML.
        source: where it comes from, for error messages.

    Raises:
        ConfigError: lists every mistake, one per line.
    """
    # pydantic silently converts "3" to 3, and reports an unknown key once per member of a union. Such mistakes are
    # found beforehand, and the data is then validated without the unknown keys
    errors = list(_mistakes(schema, data, ""))
    try:
        built = _adapter(schema).validate_python(_without_unknown(schema, data))
    except ValidationError as error:
        errors += _messages(error, schema, data)
    if errors:
        raise ConfigError("\n".join(f"{source}: {line}" for line in dict.fromkeys(errors)))  # each once, in order
    return built


def load(schema: Any, path: Path, overrides: Sequence[str] = ()) -> Any:
    """Read a YAML file, apply overrides, validate."""
    return from_dict(schema, apply_overrides(read_yaml(path), overrides), str(path))


def to_dict(cfg: Any) -> dict[str, Any]:
    """Convert a config to plain YAML types, the inverse of `from_dict`."""
    return cast(dict[str, Any], to_plain(cfg))


def dump(cfg: Any) -> str:
    """Convert a config to YAML text, with keys in the order of the fields."""
    return to_yaml(to_dict(cfg))


def to_plain(value: Any) -> Any:
    """Convert a value of a field, or a config, to plain YAML types."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


# Building a validator takes longer than using it, and tests and --help validate the same classes again and again
@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def _mistakes(annotation: Any, data: Any, path: str) -> Iterator[str]:
    """Unknown keys and kinds, and values that pydantic would silently convert to another type, at every depth."""
    if isinstance(data, (list, tuple)):
        for number, item in enumerate(data):
            yield from _mistakes(item_annotation(annotation, number), item, f"{path}{number}.")
        return
    if not isinstance(data, Mapping):
        if _would_be_converted(annotation, data):
            yield f"{path.removesuffix('.')}: expected {type_name(annotation)}, got {data!r}"
        return
    cls = class_for(annotation, data)
    if cls is None:
        kinds = kinds_of(annotation)
        # A mapping where no config belongs is left to pydantic, which knows what is expected
        if len(kinds) > 1:
            yield f"{path}kind: expected one of {', '.join(kinds)}, got {data.get('kind', 'nothing')!r}"
        return
    hints = field_types(cls)
    for key, value in data.items():
        new = _new_value(key, value)
        if key in hints and new is not value and new != value:  # NaN is not equal to itself
            yield f"{path}{key}: {value} is called {new} now"
        elif key in hints:
            yield from _mistakes(hints[key], value, f"{path}{key}.")
        else:
            if _RENAMED.get(str(key)) in hints:
                yield f"{path}{key}: this key is {path}{_RENAMED[str(key)]} now"
                continue
            close = difflib.get_close_matches(str(key), list(hints), n=1)
            hint = f"did you mean {path}{close[0]}?" if close else f"known here: {', '.join(hints)}"
            yield f"{path}{key}: unknown key; {hint}"


def _would_be_converted(annotation: Any, data: Any) -> bool:
    """Whether pydantic's lax mode would take a value for another: "3" for a number, 1 or "yes" for true, "" for "."."""
    scalars = set(union_members(annotation)) - {type(None)}
    if data == "" and scalars == {Path}:
        return True
    return (isinstance(data, (bool, str)) and scalars <= {int, float}) or (
        isinstance(data, (int, float, str)) and not isinstance(data, bool) and scalars == {bool}
    )


class _Reported:
    """In place of a value that `_mistakes` has reported: pydantic takes it for no type, and converts it to none."""


def _without_unknown(annotation: Any, data: Any) -> Any:
    """Remove what `_mistakes` reports, unknown keys and values of another type, so that the rest can be validated."""
    if isinstance(data, (list, tuple)):
        return [_without_unknown(item_annotation(annotation, number), item) for number, item in enumerate(data)]
    if _would_be_converted(annotation, data):
        return _Reported()
    cls = class_for(annotation, data)
    if cls is None:
        return data
    hints = field_types(cls)
    known = {_RENAMED.get(key, key) if key not in hints else key: _new_value(key, value) for key, value in data.items()}
    return {key: _without_unknown(hints[key], value) for key, value in known.items() if key in hints}


def _messages(error: ValidationError, schema: Any, data: Any) -> Iterator[str]:
    """Rewrite pydantic's errors as "path: expected ..., got ..."."""
    for detail in error.errors(include_url=False):
        short = detail["type"] == "missing" and isinstance(detail["loc"][-1], int)  # a list with too few items
        path, annotation, relevant = _path(schema, data, detail["loc"][:-1] if short else detail["loc"])
        if not relevant or isinstance(detail["input"], _Reported):
            continue
        if detail["type"] == "value_error":  # raised by a __post_init__
            text = str(detail["ctx"]["error"])
        elif detail["type"] == "missing" and not short:
            text = "missing"
        elif detail["type"].startswith("union") or detail["type"].startswith("dataclass"):
            text = f"expected {type_name(annotation)}, got {value_kind(detail['input'])}"
        elif short or detail["type"].endswith(("_parsing", "_type", "_from_float", "too_long", "literal_error")):
            text = f"expected {type_name(annotation)}, got {detail['input']!r}"
        elif detail["type"] == "int_parsing_size":
            text = f"expected {type_name(annotation)}, got {detail['input']!r}, which is too large: is it mistyped?"
        else:
            text = detail["msg"]
        yield f"{path}: {text}" if path else text


def _path(schema: Any, data: Any, location: tuple[int | str, ...]) -> tuple[str, Any, bool]:
    """Convert a pydantic error location.

    Pydantic validates against every member of a union and puts the member's name between the keys. These names are
    removed, and errors of members other than the one that `kind` selects are not relevant.

    Returns:
        The dotted path, the type expected there, and whether the error is relevant.
    """
    path: list[str] = []
    annotation, node = schema, data
    for step in location:
        names = {getattr(member, "__name__", str(member)): member for member in union_members(annotation)}
        if len(names) > 1 and isinstance(step, str) and not (isinstance(node, Mapping) and step in node):
            if isinstance(node, Mapping) and step in names and is_config(names[step]):
                # An error of a member that the data never meant: its kind is another's
                if names[step] is not class_for(annotation, node):
                    return "", annotation, False
                annotation = names[step]
            continue
        cls = class_for(annotation, node)
        if cls is not None and isinstance(step, str) and step in field_types(cls):
            annotation = field_types(cls)[step]
            node = node.get(step) if isinstance(node, Mapping) else None
            path.append(step)
        # Positions in lists; whatever else pydantic puts between the keys is dropped
        elif isinstance(step, int):
            path.append(str(step))
            annotation = item_annotation(annotation, step)
            node = node[step] if isinstance(node, (list, tuple)) and step < len(node) else None
    return ".".join(path), annotation, True
