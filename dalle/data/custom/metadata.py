"""Rows of a table in text or Parquet, each with its place: metadata files beside images, and tables of captions."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from dalle.data.custom.texts import decode_text, read_json
from dalle.data.parquet_errors import parquet_errors

Row = tuple[str, dict[str, Any]]
"""Where it is ("line 3"), and its columns."""

_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.parquet")
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_SEPARATOR = re.compile(r"\s*\"?sep=(.)\"?\s*", re.IGNORECASE)  # the first line of a CSV that Excel has written
csv.field_size_limit(2**24)  # the module's own limit is shorter than long captions, which are cut elsewhere


def is_metadata(file: Path) -> bool:
    """Whether a file is a metadata file by its name, whose case does not count."""
    return file.name.lower() in _NAMES


def read_rows(file: Path) -> Iterator[Row]:
    """Yield the place and the columns of each row of a table.

    Raises:
        ValueError: the file is damaged or not of its format; the message names the line.
    """
    yield from _ROWS[file.suffix.lower()](file)


def _jsonl(file: Path) -> Iterator[Row]:
    for line, text in enumerate(_lines(file), 1):
        if text.strip():
            try:
                row = read_json(text.strip())
            except ValueError as error:
                reason = str(error).partition(": line ")[0]  # the line of this text, which is one line
                raise ValueError(
                    f"{file}, line {line} is not JSON: {reason}: expected one object on each line"
                ) from error
            if not isinstance(row, dict):
                raise ValueError(
                    f'{file}, line {line}: expected {{"file_name": ..., "text": ...}} on each line, got {text[:60]!r}'
                )
            yield f"line {line}", row


def _csv(file: Path) -> Iterator[Row]:
    lines = _lines(file)
    delimiter, skipped = _delimiter(lines)
    reader = csv.DictReader(lines, strict=True, delimiter=delimiter, skipinitialspace=True)
    try:
        # Spreadsheets pad the header
        reader.fieldnames = names = [name.strip() for name in reader.fieldnames or ()]
        twice = next((name for name in names if name and names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{file} has two columns {twice!r}: rename one of them, or join them")
        for row in reader:
            if None in row:  # csv collects fields beyond the last column under None
                raise ValueError(
                    f"{file}, line {skipped + reader.line_num} has more fields than the header: put a caption that "
                    f'contains a {_DELIMITERS.get(delimiter, delimiter)} in quotes, "a dog{delimiter} running"'
                )
            yield f"line {skipped + reader.line_num}", row
    except csv.Error as error:
        raise ValueError(f"{file}, line {skipped + reader.line_num + 1}: {error}; is a quote left open?") from error


def _delimiter(lines: io.StringIO) -> tuple[str, int]:
    """What separates the fields of a CSV, and how many lines stand above its header; `lines` is left at the header."""
    for skipped, line in enumerate(iter(lines.readline, "")):
        told = _SEPARATOR.fullmatch(line)
        if told is not None:
            return told[1], skipped + 1
        if line.strip():
            lines.seek(lines.tell() - len(line))
            return max(_DELIMITERS, key=line.count), skipped  # spreadsheets of many locales write semicolons
    return ",", 0


def _parquet(file: Path) -> Iterator[Row]:
    with parquet_errors(file):
        rows = parquet.read_table(file).to_pylist()
    yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))


_ROWS = {".jsonl": _jsonl, ".csv": _csv, ".tsv": _csv, ".txt": _csv, ".parquet": _parquet}


def _lines(file: Path) -> io.StringIO:
    """The text of a file, line ends unchanged: a quoted CSV field may contain them."""
    try:
        return io.StringIO(decode_text(file.read_bytes()), newline="")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error}): save it as UTF-8") from error
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error})") from error
