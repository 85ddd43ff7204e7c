"""Rows of a metadata file beside images, in JSON lines, CSV or Parquet, each with its line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from dalle.data.custom.texts import decode_text, parse_json

_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.parquet")
_FILE_NAMES = ("file_name", "image_file_name")  # columns with the path of the image, as Hugging Face datasets has it
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}


def is_metadata(file: Path) -> bool:
    """Whether a file is a metadata file by its name, whose case does not count."""
    return file.name.lower() in _NAMES


def file_name_column(names: Iterable[str]) -> str | None:
    """The column with the paths of images; None if there is none."""
    there = set(names)
    return next((name for name in _FILE_NAMES if name in there), None)


def read_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the columns of each row of a metadata file.

    Raises:
        ValueError: the file is damaged or not of its format; the message names the line.
    """
    yield from _ROWS[file.suffix.lower()](file)


def _jsonl(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(_lines(file), 1):
        if text.strip():
            try:
                row = parse_json(text)
            except ValueError as error:
                raise ValueError(f"{file}, line {line} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f'{file}, line {line}: expected {{"file_name": ..., "text": ...}}, got {text[:60]!r}')
            yield line, row


def _csv(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = _lines(file)
    first = lines.readline()
    lines.seek(0)
    delimiter = max(_DELIMITERS, key=first.count)  # spreadsheets of many locales write semicolons
    reader = csv.DictReader(lines, strict=True, delimiter=delimiter, skipinitialspace=True)
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]  # spreadsheets pad the header
        for row in reader:
            if None in row:  # csv collects fields beyond the last column under None
                raise ValueError(
                    f"{file}, line {reader.line_num} has more fields than the header: put a caption that contains a "
                    f'{_DELIMITERS[delimiter]} in quotes, "a dog{delimiter} running"'
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num + 1}: {error}; is a quote left open?") from error


def _parquet(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        yield from enumerate(parquet.read_table(file).to_pylist(), 1)
    except pyarrow.ArrowException as error:
        raise ValueError(
            f"{file} is not a complete Parquet file ({str(error).splitlines()[0]}): copy it again"
        ) from error


_ROWS = {".jsonl": _jsonl, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}


def _lines(file: Path) -> io.StringIO:
    """The text of a file, line ends unchanged: a quoted CSV field may contain them."""
    try:
        return io.StringIO(decode_text(file.read_bytes()), newline="")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error}): save it as UTF-8") from error
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error})") from error
