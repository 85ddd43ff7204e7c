"""The config.yaml of a model folder: its sections, and what stands in each; and the names of the files beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dalle.config import read_yaml, value_kind

WEIGHTS = "model.safetensors"
# Files that determine what a model computes. README.md and images may change without changing its hash.
HASHED = (WEIGHTS, "bpe.model", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model")

# Sections of a config.yaml without `data`, and their types; what is in `model` and `sampling` its own class checks
_SECTIONS: dict[str, type] = {
    "stage": str,
    "model": dict,
    "parts": dict,
    "sampling": dict,
    "text_encoder": str,
    "image_codes": dict,
    "origin": str,
    "sha256": str,
}
_NAMES: dict[type, str] = {str: "text", dict: "a mapping"}


def read_config(folder: Path) -> dict[str, Any]:
    """Read a folder's config.yaml, whatever its keys are.

    Raises:
        ValueError: it does not exist or is not valid YAML.
    """
    if Path(folder).is_file():
        raise ValueError(
            f"{folder} is a file; expected a folder with a config.yaml; published weights can be converted with "
            "`python -m dalle convert`"
        )
    if not (Path(folder) / "config.yaml").is_file():
        raise ValueError(
            f"{folder} has no config.yaml: it is not a model folder written by train.py; published weights can be "
            "converted with `python -m dalle convert`"
        )
    return read_yaml(Path(folder) / "config.yaml")


def check_no_run(folder: Path) -> None:
    """Refuse the folder of a training, whose model is in a folder of it.

    Raises:
        ValueError: it is one; the message names the model's folder.
    """
    model = Path(folder) / "model"
    if (model / "config.yaml").is_file() and (not (folder / "config.yaml").is_file() or "data" in read_config(folder)):
        raise ValueError(f"{folder} is the folder of a run: give that of its model, {model}")
    if (folder / "metrics.jsonl").is_file() and not model.exists():
        if any((folder / "checkpoints").glob("*-*")):
            raise ValueError(f"{folder} is a run that has lost its model: resume it (resume=true) to get {model} back")
        raise ValueError(f"{folder} is a run that has saved no weights yet: train on, until its first checkpoint")


def check_config(config: Mapping[str, Any], origin: str) -> None:
    """Check the sections of a config.yaml, of which those that are null count as left out.

    Args:
        config: its content. With `data` it is a recipe, which has more sections.
        origin: its path, for error messages.

    Raises:
        ValueError: a section is unknown or of another type.
    """
    for key, value in config.items():
        if key not in _SECTIONS:
            if "data" in config:
                continue
            raise ValueError(f"{origin}: unknown key {key}; known here: {', '.join(_SECTIONS)}")
        kind = _SECTIONS[key]
        if value is None:
            continue
        if not isinstance(value, kind):
            raise ValueError(f"{origin}: {key}: expected {_NAMES[kind]}, got {value_kind(value)}: restore the original")
        try:  # as it is hashed: YAML has dates, bytes, references to itself and half characters, too
            json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError):
            raise ValueError(
                f"{origin}: {key}: expected text, numbers, lists and mappings alone: restore the original"
            ) from None
    for name in config.get("parts") or {}:
        if not isinstance(name, str):
            raise ValueError(f"{origin}: parts: expected names, got {value_kind(name)}: restore the original")
