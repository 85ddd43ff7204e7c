"""Tables of captions under names of their own: COCO's captions_*.json, lists and dictionaries in JSON, captions.csv.

They are read only where images have captions neither in metadata files nor in files of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalle.data.custom.columns import CAPTIONS, usual_name
from dalle.data.custom.metadata import read_rows
from dalle.data.custom.texts import read_json

# Columns with an image's path or name, and with its caption, in tables of others
_NAMES = ("file_name", "image_file_name", "image", "image_path", "image_name", "filename", "filepath", "path", "file")
_CAPTIONS = (*CAPTIONS, "prompt", "comment", "sentences")
_IDS = (int, float, str)  # what COCO's ids are, or become where a program writes all numbers as floats
_MAX_BYTES = 2**28  # of a table; COCO's largest is a third of that
TABLES = (".json", ".jsonl", ".csv", ".tsv", ".txt")  # extensions of what may be such a table

IN_PARQUET = "tables that hold the images themselves are read as Parquet files"


@dataclass(frozen=True)
class CaptionTable:
    """Names or paths of images with their captions, as they stand in `file`."""

    file: Path
    rows: list[tuple[str, Any]]


def read_caption_table(file: Path, caption: str | None = None) -> CaptionTable | str:
    """The captions in a file of any such format, or why there are none.

    Args:
        file: the file, with one of the extensions of TABLES.
        caption: the column with captions; None tries the usual ones.
    """
    try:
        if file.stat().st_size > _MAX_BYTES:
            return f"it has more than {_MAX_BYTES:,} bytes"
        if file.suffix.lower() == ".json":
            rows = _of_json(read_json(file.read_bytes()), caption)
        else:
            rows = _of_objects((row for _, row in read_rows(file)), caption)
    except (OSError, ValueError) as error:
        return str(error).replace(f"{file}, ", "").replace(str(file), "it")
    if not any(value is not None for _, value in rows):
        return "no captions of named images were found in it"
    return CaptionTable(file, rows)


def _of_json(content: Any, caption: str | None) -> list[tuple[str, Any]]:
    if isinstance(content, list):
        return _of_objects(content, caption)
    if not isinstance(content, dict):
        return []
    images, annotations = content.get("images"), content.get("annotations")
    entry = caption or "caption"
    if isinstance(images, list) and isinstance(annotations, list):  # COCO
        names = {
            number: image.get("file_name")
            for image in images
            if isinstance(image, dict) and isinstance(number := image.get("id"), _IDS)
        }
        return [
            (name, annotation[entry])
            for annotation in annotations
            if isinstance(annotation, dict)
            and entry in annotation
            and isinstance(number := annotation.get("image_id"), _IDS)
            and isinstance(name := names.get(number), str)
        ]
    # kohya-ss: {"name": {"caption": ...}}; others: {"name.jpg": "..."}
    return [
        (name, _entry(value, caption) if isinstance(value, dict) else value)
        for name, value in content.items()
        if isinstance(value, dict) or caption is None
    ]


def _of_objects(rows: Iterable[Any], caption: str | None) -> list[tuple[str, Any]]:
    found = [(row, usual_name(row, _NAMES)) for row in rows if isinstance(row, dict)]
    return [(row[name], _entry(row, caption)) for row, name in found if name is not None and isinstance(row[name], str)]


def _entry(row: dict[str, Any], caption: str | None) -> Any:
    name = caption if caption is not None else usual_name(row, _CAPTIONS)
    return None if name is None else row.get(name)
