"""Recorded answers: a value is compared with the file of its name here, or written to it where GOLDEN=write is set."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WRITE = os.environ.get("GOLDEN") == "write"  # review `git diff tests/golden` before committing what it wrote


def golden_text(name: str, text: str) -> None:
    """Compare a text, apart from where its lines are wrapped (Python's argparse changes that), with `name`."""
    file = HERE / name
    if WRITE:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    assert text.split() == file.read_text(encoding="utf-8").split(), f"{name} has changed; if meant: GOLDEN=write"


def golden_json(name: str, value: Any) -> Any:
    """The recorded value of this name, to be compared with `value`, which is written where GOLDEN=write is set."""
    file = HERE / f"{name}.json"
    if WRITE:
        file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))
