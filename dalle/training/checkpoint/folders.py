"""The checkpoint folders of a run: their names, their steps, and which there are."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"(?:step|update)-(\d{8,})$")  # "update-" in runs begun before version 0.2


def folders(run: Path) -> list[Path]:
    """List the checkpoint folders of a run, oldest first."""
    found = [path for path in (run / "checkpoints").glob("*-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """Return the number of completed steps of a checkpoint folder."""
    return int(folder.name.rpartition("-")[2])


def folder_of(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step, whether or not it exists."""
    known = (folder for folder in folders(run) if step_of(folder) == step)
    return next(known, run / "checkpoints" / f"step-{step:08d}")


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder is a training checkpoint."""
    return (folder / "state.pt").is_file()
