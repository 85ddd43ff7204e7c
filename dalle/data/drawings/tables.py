"""Reads the Parquet files of the embedded sets, and refuses rows without what every drawing needs, by file and row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
from pyarrow import DataType, types

from dalle.data.parquet_errors import parquet_errors

Row = dict[str, Any]


def read_rows(file: Path, needed: Sequence[str], others: Sequence[str]) -> list[Row]:
    """The rows of a file of the data set.

    Args:
        file: the file.
        needed: columns of texts that every row has.
        others: columns of texts, lists of texts and images, in which cells may be empty.

    Raises:
        ValueError: the file is missing or damaged, lacks a column or has one of another type, or a row has an empty
            cell in a needed column; the message names the file, and the row, counted from 1.
    """
    if not file.is_file():
        raise ValueError(f"no such file: {file}; data.root must be the repository's data folder or a copy of it")
    with parquet_errors(file):
        schema = {field.name: field.type for field in parquet.read_schema(file)}
    for column in (*needed, *others):
        if column not in schema or not _is_usable(schema[column], column in needed):
            found = f"its column {column!r} holds {schema[column]}" if column in schema else f"it has no {column!r}"
            raise ValueError(f"{file} is not a file of the data set ({found}): copy it again")
    with parquet_errors(file):
        rows: list[Row] = parquet.read_table(file, columns=[*needed, *others]).to_pylist()
    for number, row in enumerate(rows, 1):
        for column in needed:
            if not row[column]:
                raise wrong_row(file, number, f"its {column} is empty")
    return rows


def wrong_row(file: Path, number: int, reason: str) -> ValueError:
    """The error about row `number` of a file, counted from 1."""
    return ValueError(f"{row_name(file, number)}: {reason}; copy the file again")


def row_name(file: Path, number: int) -> str:
    """What messages call row `number` of a file, counted from 1."""
    return f"{file}, row {number}"


def _is_usable(kind: DataType, needed: bool) -> bool:
    """Whether a column holds texts; or, where cells may be empty, lists of texts or images."""
    if types.is_string(kind) or types.is_large_string(kind):
        return True
    if needed:
        return False
    if types.is_list(kind) or types.is_large_list(kind):
        return _is_usable(kind.value_type, needed=True)
    image = types.is_struct(kind) and any(field.name == "bytes" and types.is_binary(field.type) for field in kind)
    return image or types.is_null(kind)
