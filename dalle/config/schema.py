"""Strict configuration: frozen dataclasses, YAML files, dotted overrides. Independent of models and data."""

from __future__ import annotations

import ast
import copy
import dataclasses
import difflib
import inspect
import re
import textwrap
import types
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import dataclass_transform

from dalle.config.ranges import check_ranges

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


class ConfigError(ValueError):
    """Mistakes in a config: all of them, one per line, each with its file and full path."""


_RENAMED = {"updates": "steps"}  # keys of earlier versions: using one is an error that names the new key


def renamed(data: Any) -> Any:
    """Convert the config of a run from an earlier version to the current key names."""
    if not isinstance(data, dict):
        return data
    return {_RENAMED.get(key, key): renamed(value) for key, value in data.items()}


@dataclass_transform(kw_only_default=True, frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only dataclass that rejects unknown keys.

    A string literal right below a field is its description, which `describe` shows. Each number states its range in
    its annotation (`dalle.config.ranges`); ranges are checked before the class's own `__post_init__`.
    """
    own_checks = getattr(cls, "__post_init__", None)

    def __post_init__(self: Any) -> None:
        check_ranges(self)
        if own_checks is not None:
            own_checks(self)

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    cls.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


class _Loader(yaml.SafeLoader):
    """YAML loader that reads 1e-3 as a number, which YAML 1.1 (PyYAML) does not, and rejects repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [key for number, key in enumerate(keys) if key in keys[:number]]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """YAML dumper that quotes strings such as "1e-3", which _Loader would read as numbers."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that contains a mapping.

    Raises:
        ConfigError: the file does not exist, is not YAML, or is not a mapping.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder, expected a YAML file")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a YAML file, it is not UTF-8 text") from error
    data = _parsed(text, f"{path}: not valid YAML")
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found {_kind(data)}")
    return data


def _parsed(text: str, where: str) -> Any:
    """A YAML text as plain data; what PyYAML and the conversion of its scalars raise is one line."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506, a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {_problem(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: brackets or keys are nested too deep") from error
    except ValueError as error:  # a date that is none, a whole number of more than 4,300 digits
        raise ConfigError(f"{where}: {str(error).partition(';')[0]}") from error


def _value(override: str, text: str) -> Any:
    """The value of key=value. A command line has no comments: text that is not quoted may have a # in it."""
    quoted = text.lstrip()[:1] in ("[", "{", '"', "'")
    if not quoted and re.search(r"(^|\s)#", text):
        return text
    try:
        shown = override if len(override) <= 80 else f"{override[:80]}..."
        return _parsed(text, f"{shown!r}: the value is not valid YAML")
    except ConfigError as error:
        if re.search(r"\s#", text):
            raise ConfigError(f"{error}; a # after a space begins a comment: put the text in quotes") from error
        raise


def _problem(error: yaml.YAMLError) -> str:
    """Describe a YAML error in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} in line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
    return " ".join(str(error).split())


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of `data` with each `key.path=value` set; values are parsed as YAML without comments.

    Raises:
        ConfigError: an override has no `=` or no key, its value is not YAML, or its path passes through a value that
            is not a mapping.
    """
    result = copy.deepcopy(dict(data))
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise ConfigError(f"{override!r}: expected key.path=value, for example optim.lr=3e-4")
        value = _value(override, text)
        node = result
        for depth, key in enumerate(keys[:-1]):
            if node.get(key) is None:
                node[key] = {}
            node = node[key]
            if not isinstance(node, dict):
                raise ConfigError(f"{override!r}: {'.'.join(keys[: depth + 1])} is {_kind(node)}, it has no keys")
        node[keys[-1]] = value
    return result


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
        raise ConfigError("\n".join(f"{source}: {line}" for line in dict.fromkeys(errors)))
    return built


def load(schema: Any, path: Path, overrides: Sequence[str] = ()) -> Any:
    """Read a YAML file, apply overrides, validate."""
    return from_dict(schema, apply_overrides(read_yaml(path), overrides), str(path))


def to_dict(cfg: Any) -> dict[str, Any]:
    """Convert a config to plain YAML types, the inverse of `from_dict`."""
    return cast(dict[str, Any], _plain(cfg))


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested options to one level with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def dump(cfg: Any) -> str:
    """Convert a config to YAML text, with keys in the order of the fields."""
    return to_yaml(to_dict(cfg))


def to_yaml(data: Mapping[str, Any]) -> str:
    """Convert plain data to YAML text, the inverse of `read_yaml`."""
    text: str = yaml.dump(
        dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120
    )
    return text


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


@cache
def field_types(cls: type) -> dict[str, Any]:
    """Return the resolved annotation of each field of a config class."""
    return get_type_hints(cls)


def _is_config(annotation: Any) -> bool:
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def union_members(annotation: Any) -> list[Any]:
    """List the members of a union; any other annotation is its only member."""
    return list(get_args(annotation)) if get_origin(annotation) in (Union, types.UnionType) else [annotation]


def _kinds(annotation: Any) -> dict[str, type]:
    """Config classes of an annotation by their `kind`; a class without a kind has the key ""."""
    classes = [member for member in union_members(annotation) if _is_config(member)]
    return {str(get_args(field_types(c)["kind"])[0]) if "kind" in field_types(c) else "": c for c in classes}


def _class_for(annotation: Any, data: Any) -> type | None:
    """The config class that a mapping belongs to; None if its kind is missing or unknown."""
    kinds = _kinds(annotation)
    if not isinstance(data, Mapping) or not kinds:
        return None
    if len(kinds) == 1:
        return next(iter(kinds.values()))
    return kinds.get(str(data.get("kind")))


def _item(annotation: Any, number: int) -> Any:
    """The annotation of an item of a list or tuple annotation; None if it is neither."""
    for member in union_members(annotation):
        if get_origin(member) in (list, tuple):
            inner = [a for a in get_args(member) if a is not Ellipsis]
            return inner[min(number, len(inner) - 1)]
    return None


def _mistakes(annotation: Any, data: Any, path: str) -> Iterator[str]:
    """Unknown keys and kinds, and values that pydantic would silently convert to another type, at every depth."""
    if isinstance(data, (list, tuple)):
        for number, item in enumerate(data):
            yield from _mistakes(_item(annotation, number), item, f"{path}{number}.")
        return
    if not isinstance(data, Mapping):
        scalars = set(union_members(annotation)) - {type(None)}
        turned = (isinstance(data, (bool, str)) and scalars <= {int, float}) or (
            isinstance(data, (int, float, str)) and not isinstance(data, bool) and scalars == {bool}
        )
        if turned:
            yield f"{path.removesuffix('.')}: expected {type_name(annotation)}, got {data!r}"
        return
    cls = _class_for(annotation, data)
    if cls is None:
        kinds = _kinds(annotation)
        if len(kinds) > 1:
            yield f"{path}kind: expected one of {', '.join(kinds)}, got {data.get('kind', 'nothing')!r}"
        return
    hints = field_types(cls)
    for key, value in data.items():
        if key in hints:
            yield from _mistakes(hints[key], value, f"{path}{key}.")
        else:
            if _RENAMED.get(str(key)) in hints:
                yield f"{path}{key}: this key is {path}{_RENAMED[str(key)]} now"
                continue
            close = difflib.get_close_matches(str(key), list(hints), n=1)
            hint = f"did you mean {path}{close[0]}?" if close else f"known here: {', '.join(hints)}"
            yield f"{path}{key}: unknown key; {hint}"


def _without_unknown(annotation: Any, data: Any) -> Any:
    """Remove unknown keys, which are reported separately, so that the rest can be validated too."""
    cls = _class_for(annotation, data)
    if cls is None:
        return data
    hints = field_types(cls)
    known = {_RENAMED.get(key, key) if key not in hints else key: value for key, value in data.items()}
    return {key: _without_unknown(hints[key], value) for key, value in known.items() if key in hints}


def _messages(error: ValidationError, schema: Any, data: Any) -> Iterator[str]:
    """Rewrite pydantic's errors as "path: expected ..., got ..."."""
    for detail in error.errors(include_url=False):
        short = detail["type"] == "missing" and isinstance(detail["loc"][-1], int)  # a list with too few items
        path, annotation, relevant = _path(schema, data, detail["loc"][:-1] if short else detail["loc"])
        if not relevant:
            continue
        if detail["type"] == "value_error":  # raised by a __post_init__
            text = str(detail["ctx"]["error"])
        elif detail["type"] == "missing" and not short:
            text = "missing"
        elif detail["type"].startswith("union") or detail["type"].startswith("dataclass"):
            text = f"expected {type_name(annotation)}, got {_kind(detail['input'])}"
        elif short or detail["type"].endswith(("_parsing", "_type", "_from_float", "too_long", "literal_error")):
            text = f"expected {type_name(annotation)}, got {detail['input']!r}"
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
            if isinstance(node, Mapping) and step in names and _is_config(names[step]):
                if names[step] is not _class_for(annotation, node):
                    return "", annotation, False
                annotation = names[step]
            continue
        cls = _class_for(annotation, node)
        if cls is not None and isinstance(step, str) and step in field_types(cls):
            annotation = field_types(cls)[step]
            node = node.get(step) if isinstance(node, Mapping) else None
            path.append(step)
        elif isinstance(step, int):
            path.append(str(step))
            annotation = _item(annotation, step)
            node = node[step] if isinstance(node, (list, tuple)) and step < len(node) else None
    return ".".join(path), annotation, True


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    return "a list" if isinstance(value, list) else "a mapping" if isinstance(value, dict) else repr(value)


def describe(schema: Any, base: Mapping[str, Any] | None = None) -> str:
    """Describe every option, one per line: dotted name, type, default (or value in `base`), meaning."""
    rows = list(option_rows(schema, base or {}, ""))
    left = max((len(name) for name, _, _ in rows), default=0)
    return "\n".join(f"  {name:<{left}}  {kind}{'. ' if text else ''}{text}" for name, kind, text in rows)


def option_rows(annotation: Any, base: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """Each option under `path`: its dotted name, its type with the default (or the value in `base`), its meaning."""
    kinds = _kinds(annotation)
    chosen = _class_for(annotation, base)
    for kind, cls in kinds.items():
        if len(kinds) > 1 and chosen is not None and cls is not chosen:
            continue
        several = len(kinds) > 1
        suffix = f" (kind {kind})" if several and chosen is None else ""
        texts = descriptions(cls)
        for field in dataclasses.fields(cls):
            inner, name = field_types(cls)[field.name], path + field.name
            given = base.get(field.name) if isinstance(base, Mapping) else None
            if field.name == "kind" and several:
                if not suffix:
                    yield name, f"one of {', '.join(kinds)}" + _default(field, given), texts.get(field.name, "")
            elif _kinds(inner):
                if texts.get(field.name) or type(None) in union_members(inner):
                    yield name + suffix, type_name(inner) + _default(field, None), texts.get(field.name, "")
                yield from option_rows(inner, given if given is not None else _plain(default_of(field)), f"{name}.")
            else:
                yield name + suffix, type_name(inner) + _default(field, given), texts.get(field.name, "")


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a dataclass field; None for a required one."""
    if field.default is not dataclasses.MISSING:
        return field.default
    return None if field.default_factory is dataclasses.MISSING else field.default_factory()


def _default(field: dataclasses.Field[Any], given: Any) -> str:
    if given is not None:
        return f" = {_text(given)}"
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return ", required"
    plain = _plain(default_of(field))
    return f" = {plain.get('kind', '...')}" if isinstance(plain, dict) else f" = {_text(plain)}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_text(item) for item in value) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def type_name(annotation: Any) -> str:
    """Describe a type in words: "a number", "one of gelu, swiglu", "a list of integers or null"."""
    if len(_kinds(annotation)) > 1:
        return f"options of kind {', '.join(_kinds(annotation))}" + (
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
    return names.get(annotation, "options" if _is_config(annotation) else str(annotation))


@cache
def descriptions(cls: type) -> dict[str, str]:
    """Read the description of each field of a config class: the string literal right below it in the source."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
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
