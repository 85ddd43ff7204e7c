"""Files of prompts for `dalle sample --prompts-file`: text, CSV, JSON lines, Parquet. Does not import torch."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dalle.config import field_types, union_members
from dalle.files import RepeatedName, missing_path, parse_json
from dalle.generation.options import SamplingConfig, UnCLIPOptions

SUFFIXES = (".txt", ".csv", ".jsonl", ".parquet")
_SAMPLING = tuple(one.name for one in fields(SamplingConfig))
_DIFFUSION = tuple(one.name for one in fields(UnCLIPOptions))
_TYPES = {
    name: set(union_members(kind))
    for options in (SamplingConfig, UnCLIPOptions)
    for name, kind in field_types(options).items()
}
_TEXTS = {"prompt", "negative", *(name for name, kinds in _TYPES.items() if not {int, float} & kinds)}
_FRACTIONS = {name for name, kinds in _TYPES.items() if float in kinds}
_KEYS = ("prompt", "seed", "n", "keep", "negative", *_SAMPLING, *_DIFFUSION)


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One prompt of a file, with what it sets for itself; None or missing: as the command line says."""

    place: str
    """Where it stands, for error messages."""
    prompt: str
    seed: int | None = None
    n: int | None = None
    keep: int | None = None
    negative: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    """Options of `SamplingConfig`, or of an unCLIP."""


def read_prompts(path: Path) -> list[PromptRow]:
    """Read all prompts of a file.

    Args:
        path: .txt (a prompt a line), .csv (with a header), .jsonl (an object a line) or .parquet. Columns and keys are
            `prompt` and, where a prompt differs from the command line, `seed`, `n`, `keep`, `negative` and the sampling
            options.

    Raises:
        ValueError: the file cannot be read, or a row is not a prompt; the message names it.
    """
    readers = {".txt": _text, ".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}
    if path.suffix not in readers:
        raise ValueError(f"{path}: expected a file of prompts that ends in {', '.join(SUFFIXES)}")
    try:
        rows = list(readers[path.suffix](path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise ValueError(missing_path(path, f"{path} cannot be read: {error.strerror or error}")) from None
    if not rows:
        raise ValueError(f"{path} has no prompt")
    return rows


def _text(path: Path) -> Iterator[PromptRow]:
    with path.open(encoding="utf-8-sig", newline="\n") as lines:  # without the byte order mark of some editors
        for number, line in enumerate(lines, 1):
            prompt = line.rstrip("\r\n")
            if not prompt.strip():
                raise ValueError(
                    f"{path}, line {number} is blank: remove it, or use .jsonl with "
                    '{"prompt": ""} for images without a caption'
                )
            yield PromptRow(f"line {number}", prompt)


def _csv(path: Path) -> Iterator[PromptRow]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            _check_once(path, "line 1", reader.fieldnames or ())
            for number, cells in enumerate(reader, 1):
                place = f"row {number}"
                # DictReader collects surplus cells under None, and fills missing ones with None
                if None in cells or None in cells.values():
                    raise ValueError(f"{path}, {place} has not as many cells as the header")
                yield _row(path, place, {key: _cell(key, text) for key, text in cells.items()})
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error})") from None


def _cell(key: str, text: str) -> Any:
    """A cell as the type of its column; an empty one is not given, and text that is no number stays text."""
    if key not in _KEYS or key == "prompt":
        return text
    if not text.strip():
        return None
    try:
        return text if key in _TEXTS else float(text) if key in _FRACTIONS else int(text)
    except ValueError:
        return text


def _json_lines(path: Path) -> Iterator[PromptRow]:
    with path.open(encoding="utf-8-sig", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"line {number}"
            try:
                values = parse_json(line)
            except RepeatedName as error:
                raise ValueError(f"{path}, {place}: {error}") from None
            except ValueError as error:
                raise ValueError(f"{path}, {place} is not JSON: {error}") from None
            if not isinstance(values, dict):
                raise ValueError(f'{path}, {place}: expected an object such as {{"prompt": "a red heart", "seed": 7}}')
            yield _row(path, place, values)


def _check_once(path: Path, place: str, keys: Sequence[str]) -> None:
    twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
    if twice is not None:
        raise ValueError(f"{path}, {place}: {RepeatedName(twice)}")


def _parquet(path: Path) -> Iterator[PromptRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            _check_once(path, "its columns", file.schema_arrow.names)
            if "prompt" not in file.schema_arrow.names:
                raise ValueError(f"{path} has no column prompt, but {', '.join(file.schema_arrow.names)}")
            for batch in file.iter_batches(columns=[name for name in file.schema_arrow.names if name in _KEYS]):
                for values in batch.to_pylist():
                    number += 1
                    given = {key: None if value != value else value for key, value in values.items()}  # NaN: none
                    yield _row(path, f"row {number}", given)
    except (OSError, pa.ArrowException) as error:  # OSError: damage inside of a file
        raise ValueError(f"{path} is not a Parquet file, or is damaged: {str(error).splitlines()[0]}") from None


def _row(path: Path, place: str, values: Mapping[Any, Any]) -> PromptRow:
    """A checked row; ranges of the options are checked once the model is there, whose defaults they change."""
    unknown = [key for key in values if key not in _KEYS]
    if unknown:
        raise ValueError(f"{path}, {place}: unknown {_short(unknown[0])}; known are {', '.join(_KEYS)}")
    given = {key: value for key, value in values.items() if value is not None}
    prompt = given.pop("prompt", None)
    if not isinstance(prompt, str):
        shown = "missing" if prompt is None else f"{_short(prompt)}, not text"
        raise ValueError(f"{path}, {place}: prompt is {shown}")
    for key, value in given.items():
        kinds: tuple[type, ...] = (str,) if key in _TEXTS else (int, float) if key in _FRACTIONS else (int,)
        # In Python True is an int, and `n: true` in a JSON file is a mistake
        if isinstance(value, bool) or not isinstance(value, kinds):
            wanted = "text" if key in _TEXTS else "a number" if key in _FRACTIONS else "a whole number"
            raise ValueError(f"{path}, {place}: {key} is {_short(value)}; it must be {wanted}")
    sampling = {key: given.pop(key) for key in (*_SAMPLING, *_DIFFUSION) if key in given}
    return PromptRow(place, prompt, **given, sampling=sampling)


def _short(value: object) -> str:
    """A value as it is quoted: a slip may have put a whole file into it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text):,} characters)"
