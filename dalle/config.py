"""Strict configuration: frozen dataclasses, YAML files, dotted overrides. Knows nothing of models or data."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")


class ConfigError(ValueError):
    pass


@dataclass_transform(kw_only_default=True, frozen_default=True)
def config(cls: type[T]) -> type[T]:
    cls.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"), list("-+0123456789."))


def read_yaml(path):
    return yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)


def apply_overrides(data, overrides):
    import copy
    data = copy.deepcopy(data)
    for item in overrides:
        key, _, text = item.partition("=")
        *parents, last = key.split(".")
        node = data
        for p in parents:
            node = node.setdefault(p, {})
        node[last] = yaml.load(text, _Loader)
    return data


def from_dict(schema, data, source):
    try:
        return TypeAdapter(schema).validate_python(data)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())) from error


def load(schema, path, overrides=()):
    return from_dict(schema, apply_overrides(read_yaml(path), overrides), str(path))


def _plain(v):
    if dataclasses.is_dataclass(v):
        return {f.name: _plain(getattr(v, f.name)) for f in dataclasses.fields(v)}
    if isinstance(v, (list, tuple)):
        return [_plain(x) for x in v]
    if isinstance(v, Path):
        return str(v)
    return v


def to_dict(cfg):
    return _plain(cfg)


def dump(cfg):
    return yaml.safe_dump(to_dict(cfg), sort_keys=False, allow_unicode=True)


def describe(schema, base=None):
    return ""
