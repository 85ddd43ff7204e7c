"""Command-line parsing: options from config classes, numbers with units, errors in one line."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from dalle.cli.errors import print_error
from dalle.config import default_of, descriptions, field_types, union_members
from dalle.config.ranges import range_text

# K as well as k: memory is written in both ways
_UNITS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


def parse_size(text: str, unit: str, option: str) -> float:
    """Parse a number with a unit.

    Args:
        text: for example "80GB", "24 GiB" or "312TFLOPS".
        unit: "B" or "FLOPS".
        option: name of the option, for the error message.

    Raises:
        ValueError: the text is not a number with such a unit, or the number is not positive and finite.
    """
    # Only memory is counted in powers of two
    prefixes = _UNITS | (_BINARY if unit == "B" else {})
    found = re.fullmatch(rf"([\d.]+(?:e\d+)?)\s*({'|'.join(prefixes)})(?:{unit})?", text.strip())
    try:
        value = float(found[1]) * prefixes[found[2]] if found else 0.0
    except ValueError:  # such as 1.2.3GB
        value = 0.0
    if not 0 < value < math.inf:
        example = "80GB" if unit == "B" else "312TFLOPS"
        raise ValueError(f"--{option} is {text!r}: expected a number with a unit, {example}")
    return value


class _StoreOnce(argparse.Action):
    """Store a value; of two different ones for one option, argparse itself would take the last in silence."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        given = parser.given if isinstance(parser, CommandLine) else {}
        first = given.setdefault(self.dest, values)
        if option_string and first is not values and first != values:  # nan is not equal to itself
            parser.error(f"{option_string} is given twice, {first} and {values}: give it once")
        setattr(namespace, self.dest, values)


class CommandLine(argparse.ArgumentParser):
    """An argument parser that prints an error as one line, without the usage.

    Attributes:
        other: what to say to an option that does not exist, before (see --help).
        given: values of the options of the line that is being parsed.
    """

    other = ""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.given: dict[str, Any] = {}
        for name in (None, "store"):
            self.register("action", name, _StoreOnce)
        self.register("type", Path, _path)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; also called for each subcommand."""
        self.given = {}
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print an error and exit with code 2."""
        other = self.other if message.startswith("unrecognized arguments: -") else ""
        raise SystemExit(print_error(self.prog, f"{message}{other} (see --help)"))


def add_options(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    schema: type,
    skip: Sequence[str] = (),
    default: str | None = None,
) -> None:
    """Add an option for each field of a config class. Options that are not given are missing from the namespace.

    Args:
        parser: parser to extend.
        schema: config class.
        skip: fields to leave out.
        default: how --help describes the default, if it is not that of the class.
    """
    hints, texts = field_types(schema), descriptions(schema)
    for field in dataclasses.fields(schema):
        if field.name in skip:
            continue
        flag, text = (
            f"--{field.name.replace('_', '-')}",
            f"{texts[field.name]} ({_range(schema, field.name)}default: {default or _as_default(field)})",
        )
        kind = next(member for member in union_members(hints[field.name]) if member is not type(None))  # besides null
        # argparse formats help texts with %, and SUPPRESS leaves defaults to the config class
        common: dict[str, Any] = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
        if get_origin(kind) is tuple:
            choices = get_args(get_args(kind)[0])
            common |= {"choices": choices} if choices else {"metavar": "KEY=VALUE" if field.name == "given" else "TEXT"}
            parser.add_argument(flag, action="append", **common)
        elif kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        elif get_origin(kind) is Literal:
            parser.add_argument(flag, choices=get_args(kind), **common)
        else:
            nullable = kind in (int, float) and type(None) in union_members(hints[field.name])
            read = _or_null(kind) if nullable else kind
            parser.add_argument(flag, type=read, metavar=kind.__name__.upper(), **common)


def _path(text: str) -> Path:
    """What reads a path: an empty one, as of a variable that is not set, would be the working folder."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty text")
    return Path(text)


def _or_null(kind: type) -> Callable[[str], Any]:
    """What reads a number, or null for None as in a YAML."""

    def read(text: str) -> Any:
        return None if text == "null" else kind(text)

    read.__name__ = kind.__name__  # argparse's message names it: invalid int value
    return read


def _range(schema: type, name: str) -> str:
    found = range_text(schema, name).removeprefix(", ")
    return f"{found}; " if found else ""


def _as_default(field: dataclasses.Field[Any]) -> str:
    value = default_of(field)
    if isinstance(value, tuple) and value:
        return ", ".join(map(str, value))
    return "none" if value is None or value == () else "on" if value is True else str(value)
