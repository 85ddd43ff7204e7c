"""What a folder that is to be written may replace: nothing but a model of the same stage."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from dalle.checkpoints.folder_config import HASHED, read_config

CALIBRATION = "calibration.json"
"""Beside the weights of a CLIP, and fitted to them: taken by `dalle classify` without being named."""
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".svg", ".gif")
CARD_SUFFIXES = (".md", ".yaml", *_IMAGES)
"""Of the files that may be in a folder before the weights: its card, the images in it, its recipe."""


def check_target(target: Path, stage: str, kept: Collection[str] = ()) -> bool:
    """Refuse to replace anything but a model folder of the same stage: what else is in a folder would be lost.

    Args:
        target: the folder to write.
        stage: stage of the model that will be written to it.
        kept: suffixes of files that are kept, and may therefore be there before the weights.

    Returns:
        Whether a model is there, which will be replaced.

    Raises:
        ValueError: the path is a file, or a folder with other contents, or with a model of another stage.
    """
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file: give a new folder")
    if not target.is_dir():
        return False
    if holds_model(target):
        there = read_config(target).get("stage")
        if there != stage:
            raise ValueError(
                f"{target} holds a model of stage {there!r}, which one of stage {stage!r} does not replace: give a new "
                "folder"
            )
        return True
    files = (path for path in target.rglob("*") if not path.name.startswith(".") and not path.is_dir())
    other = next((path for path in files if path.suffix.lower() not in kept), None)
    if other is not None:
        raise ValueError(
            f"{target} holds {other.relative_to(target)} and is no model folder, so nothing is written into it: give "
            "a new folder"
        )
    return False


def holds_model(folder: Path) -> bool:
    """Whether a folder is one of a model: config.yaml with weights beside it, or with parts alone (unCLIP)."""
    if not (folder / "config.yaml").is_file():
        return False
    return any((folder / name).is_file() for name in HASHED) or read_config(folder).get("stage") == "unclip"


def check_no_model(folder: Path, option: str) -> None:
    """Refuse a model folder as the folder of a run, whose own files would take the place of the model's.

    Args:
        folder: the folder of the run.
        option: the option that names it, for the message.

    Raises:
        ValueError: it is one.
    """
    if holds_model(folder):
        raise ValueError(f"{folder} holds a model, and a run would write over its config.yaml: choose another {option}")


def without_model(folder: Path, parts: Collection[str], recipe: bool) -> Callable[[str, list[str]], list[str]]:
    """What `shutil.copytree` is to leave out of a model folder that is replaced: all but what describes the model.

    Args:
        folder: the folder that is replaced.
        parts: names of the components that the new model has, whose cards stay; others are left out whole.
        recipe: whether its config.yaml, which the new model may share, stays.

    Returns:
        The `ignore` of copytree.
    """
    there = read_config(folder).get("parts") if (folder / "config.yaml").is_file() else None
    old = {name for name in there if isinstance(name, str)} if isinstance(there, dict) else set()

    def ignore(place: str, names: list[str]) -> list[str]:
        own = Path(place).relative_to(folder).parts
        if own and own[0] in old | set(parts):
            kept = (".md", *_IMAGES)
            return [n for n in names if (Path(place) / n).is_file() and Path(n).suffix.lower() not in kept]
        gone = {*HASHED, CALIBRATION, *(old - set(parts))} | (set() if recipe else {"config.yaml"})
        return [name for name in names if not own and name in gone]

    return ignore
