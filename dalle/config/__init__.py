"""Strict configuration: frozen dataclasses, YAML files, dotted overrides. Independent of models and data."""

from dalle.config.describe import describe, option_rows
from dalle.config.schema import check_total, config, default_of, descriptions, field_types, type_name, union_members
from dalle.config.validate import dump, from_dict, load, renamed, to_dict
from dalle.config.yaml_files import ConfigError, apply_overrides, flat, read_yaml, to_yaml, value_kind

__all__ = [
    "ConfigError",
    "apply_overrides",
    "check_total",
    "config",
    "default_of",
    "describe",
    "descriptions",
    "dump",
    "field_types",
    "flat",
    "from_dict",
    "load",
    "option_rows",
    "read_yaml",
    "renamed",
    "to_dict",
    "to_yaml",
    "type_name",
    "union_members",
    "value_kind",
]
