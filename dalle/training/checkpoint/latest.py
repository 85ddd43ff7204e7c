"""Reads the newest complete checkpoint of a run; damaged ones are renamed, never deleted."""

from __future__ import annotations

import logging
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from dalle.checkpoints.tensors import read_tensors
from dalle.device import out_of_memory
from dalle.training.checkpoint import checksums
from dalle.training.checkpoint.checkpoint import Checkpoint
from dalle.training.checkpoint.folders import folders
from dalle.training.distributed import sharded_checkpoint

log = logging.getLogger(__name__)


def load_latest(run: Path, accelerator: Accelerator | None = None) -> Checkpoint:
    """Read the newest complete checkpoint of a run. Every process must call it; they share the checksum work.

    Newer checkpoints that are damaged are renamed to NAME.damaged, with a warning in the log.

    Args:
        run: run folder.
        accelerator: the run's accelerator; None for a single process outside of training.

    Returns:
        The checkpoint. Tensors of a sharded one stay on disk until `restore`.

    Raises:
        ValueError: there is no checkpoint, or all are damaged; in the latter case nothing is renamed.
    """
    rank, world = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    found = folders(run)
    if world > 1:
        found = broadcast_object_list([found])[0]  # network file systems may list different folders on each node
    if not found:
        raise ValueError(f"{run}: no checkpoint to resume from; start without resume=true")
    damaged: dict[Path, str] = {}
    for folder in reversed(found):
        saved = _load(folder, rank, world)
        # One process that finds damage is enough for all of them to reject the checkpoint
        reasons = [saved if isinstance(saved, str) else None]
        problems = [reason for reason in (reasons if world == 1 else gather_object(reasons)) if reason is not None]
        if not problems and not isinstance(saved, str):
            break
        damaged[folder] = problems[0]
    else:
        summary = "; ".join(f"{folder.name} ({reason})" for folder, reason in damaged.items())
        raise ValueError(
            f"no checkpoint in {found[0].parent} is intact: {summary}; restore one from a backup, or start again in "
            "another run.dir"
        )
    for folder, reason in damaged.items() if rank == 0 else ():  # one process renames
        aside = _set_aside(folder)
        log.warning("the checkpoint %s is damaged (%s): renamed to %s", folder, reason, aside.name)
    if damaged and rank == 0:
        log.warning("resuming from step %d", saved.step)
    return saved


def check(folder: Path) -> None:
    """Verify the checksums of a checkpoint; the first versions wrote none, and then nothing is checked.

    Raises:
        ValueError: a file has changed or is missing.
    """
    if (folder / checksums.SUMS).exists():
        checksums.check(folder)


def _load(folder: Path, rank: int, world: int) -> Checkpoint | str:
    """Read a checkpoint; returns a message if it is damaged. Each of `world` processes verifies some checksums."""
    ema_file, sharded = folder / "average.safetensors", (folder / "shards").is_dir()
    try:
        if has_checksums := (folder / checksums.SUMS).exists():
            checksums.check(folder, rank, world)
        if sharded:
            sharded_checkpoint.open_shards(folder / "shards")  # reads headers and file sizes only
        found = Checkpoint(
            weights={} if sharded else read_tensors(folder / "weights.safetensors"),
            ema=read_tensors(ema_file) if ema_file.exists() else None,
            folder=folder,
            **_read_state(folder / "state.pt"),
        )
    except (ValueError, OSError, TypeError) as error:
        if out_of_memory(error) is not None:  # the file may be fine: do not call it damaged
            raise
        return str(error)
    # Counts from state.pt, which is written last: files lost since then are noticed
    if len(sharded_checkpoint.files(folder / "shards")) != found.shares:
        return f"expected {found.shares} shards, found {len(sharded_checkpoint.files(folder / 'shards'))}"
    if found.averaged and found.ema is None:
        return f"{ema_file.name} is missing"
    return f"{checksums.SUMS} is missing" if found.hashed and not has_checksums else found


def _read_state(file: Path) -> dict[str, Any]:
    try:
        state = dict(torch.load(file, map_location="cpu", weights_only=True))
        return {"step" if key == "update" else key: value for key, value in state.items()}  # "update" before 0.2
    except UnpicklingError as error:
        raise ValueError(f"{file.name} contains pickled objects that are not plain data") from error
    except (ValueError, RuntimeError, EOFError, LookupError, TypeError, AttributeError) as error:
        if out_of_memory(error) is not None:  # the file may be fine: do not call it damaged
            raise
        summary = str(error).partition("\n")[0] or "it is empty"
        raise ValueError(f"{file.name}: {summary}") from error


def _set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint so that it is no longer found but nothing is lost; returns the new folder."""
    aside, number = folder.with_name(f"{folder.name}.damaged"), 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{folder.name}.damaged-{number}")
    return folder.rename(aside)
