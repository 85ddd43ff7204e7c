"""Writes small data folders, tars and tables, and reads what `dalle` makes of them."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from dalle.data import open_training
from dalle.data.base import BadRecord
from dalle.data.custom.config import CustomConfig
from dalle.data.custom.dataset import CustomDataset
from support.custom_layouts import SIDE, add, image, number_of


def put(root: Path, *numbers: int, text: str | None = "number {}") -> None:
    root.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (root / f"{number}.png").write_bytes(image(number))
        if text is not None:
            (root / f"{number}.txt").write_text(text.format(number))


def read(path: Path, stream: bool = False, **options: Any) -> tuple[dict[int, str], list[str]]:
    """The captions by number of image, and what is said of broken records."""
    config = CustomConfig(path=str(path), stream=stream, validation_share=0.0, **options)
    data = open_training(config, SIDE)
    good, bad = {}, []
    for record in range(len(data)) if isinstance(data, CustomDataset) else data.records(0, 0):
        try:
            pair = data.pair(record, 0)
        except BadRecord as error:
            bad.append(str(error))
        else:
            good[number_of(pair.image)] = pair.caption
    return good, sorted(bad)


def tar(file: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(file, mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            add(archive, name, content)
    return file


def table(file: Path, **columns: list[Any]) -> None:
    parquet.write_table(pyarrow.table(columns), file)
