"""YAML text to plain data and back, and `key.path=value` overrides of it."""

from __future__ import annotations

import copy
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


class ConfigError(ValueError):
    """Mistakes in a config: all of them, one per line, each with its file and full path."""


class _Loader(yaml.SafeLoader):
    """YAML loader that reads 1e-3 as a number, which YAML 1.1 (PyYAML) does not.

    It rejects repeated keys, and values that contain themselves.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node in self.recursive_objects:
            raise yaml.constructor.ConstructorError(None, None, "a value contains itself", node.start_mark)
        # Deep: PyYAML would fill lists and mappings later, when it no longer knows what contains them
        return super().construct_object(node, deep=True)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        # PyYAML takes the last of them in silence, so that an edit further up would do nothing
        twice = [key for number, key in enumerate(keys) if key in keys[:number]]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """YAML dumper that quotes strings such as "1e-3", which _Loader would read as numbers."""


for _side in (_Loader, _Dumper):
    # The last argument lists the characters that such a number may begin with
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
        raise ConfigError(f"{path}: not a YAML file, it is not UTF-8 text: save it as UTF-8") from error
    data = _parsed(text, f"{path}: not valid YAML")
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found {value_kind(data)}")
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
        if "'\\t'" in str(error.problem):
            return f"a tab in line {error.problem_mark.line + 1}: indent with spaces"
        return f"{error.problem} in line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
    return " ".join(str(error).split())


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of `data` with each `key.path=value` set; values are parsed as YAML without comments.

    Raises:
        ConfigError: an override has no `=` or no key, its value is not YAML, or its path passes through a value that
            is not a mapping.
    """
    # Nested mappings too: the caller's data stays as it is
    result = copy.deepcopy(dict(data))
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise ConfigError(f"{override!r}: expected key.path=value, for example optim.lr=3e-4")
        value = _value(override, text)
        node = result
        for depth, key in enumerate(keys[:-1]):
            # An option that is off (null) is switched on by setting one of its own: run.powersgd.rank=4
            if node.get(key) is None:
                node[key] = {}
            node = node[key]
            if not isinstance(node, dict):
                raise ConfigError(f"{override!r}: {'.'.join(keys[: depth + 1])} is {value_kind(node)}, it has no keys")
        node[keys[-1]] = value
    return result


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested options to one level with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def to_yaml(data: Mapping[str, Any]) -> str:
    """Convert plain data to YAML text, the inverse of `read_yaml`."""
    # None: lists of scalars on one line, as they are written by hand
    text: str = yaml.dump(
        dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120
    )
    return text


def value_kind(value: Any) -> str:
    """Say what a plain value is, for error messages."""
    if value is None:
        return "nothing"
    return "a list" if isinstance(value, list) else "a mapping" if isinstance(value, dict) else repr(value)
