"""Reading the newest checkpoint of a run that is whole; damaged ones are put aside."""

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
from dalle.training.checkpoint.checkpoint import Checkpoint, folders
from dalle.training.distributed import sharded_checkpoint

log = logging.getLogger(__name__)


def load_latest(run: Path, accelerator: Accelerator | None = None) -> Checkpoint:
    """Read the newest checkpoint of a run that is whole. All processes call it, each checks some of the digests.

    Newer ones that are damaged are renamed to NAME.damaged, and the log says so.

    Raises:
        ValueError: there is none, or all are damaged; these then stay as they are.
    """
    rank, world = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    found = folders(run)
    if world > 1:
        found = broadcast_object_list([found])[0]  # a shared disk may show processes different things for a moment
    if not found:
        raise ValueError(f"{run}: no checkpoint to resume from; start without resume=true")
    damaged: dict[Path, str] = {}
    for folder in reversed(found):
        saved = _load(folder, rank, world)
        reasons = [saved if isinstance(saved, str) else None]
        problems = [reason for reason in (reasons if world == 1 else gather_object(reasons)) if reason is not None]
        if not problems and not isinstance(saved, str):
            break
        damaged[folder] = problems[0]
    else:
        summary = "; ".join(f"{folder.name} ({reason})" for folder, reason in damaged.items())
        raise ValueError(
            f"no checkpoint in {found[0].parent} is whole: {summary}; bring one back, or train anew in another run.dir"
        )
    for folder, reason in damaged.items() if rank == 0 else ():
        aside = _set_aside(folder)
        log.warning("the checkpoint %s is damaged (%s): it is %s now", folder, reason, aside.name)
    if damaged and rank == 0:
        log.warning("going on from step %d", saved.step)
    return saved


def check(folder: Path) -> None:
    """Compare the files of a checkpoint with its digests; an early one has none.

    Raises:
        ValueError: a file has changed, or is missing.
    """
    if (folder / checksums.SUMS).exists():
        checksums.check(folder)


def _load(folder: Path, rank: int, world: int) -> Checkpoint | str:
    """A checkpoint, or what is wrong with it; each of `world` processes checks some of the digests."""
    ema_file, sharded = folder / "average.safetensors", (folder / "shards").is_dir()
    try:
        if has_checksums := (folder / checksums.SUMS).exists():
            checksums.check(folder, rank, world)
        if sharded:
            sharded_checkpoint.open_shards(folder / "shards")  # looks at headers and lengths of the files
        found = Checkpoint(
            weights={} if sharded else read_tensors(folder / "weights.safetensors"),
            ema=read_tensors(ema_file) if ema_file.exists() else None,
            folder=folder,
            **_read_state(folder / "state.pt"),
        )
    except (ValueError, OSError, TypeError) as error:
        if out_of_memory(error) is not None:
            raise
        return str(error)
    if len(sharded_checkpoint.files(folder / "shards")) != found.shares:
        return f"of {found.shares} shards {len(sharded_checkpoint.files(folder / 'shards'))} are there"
    if found.averaged and found.ema is None:
        return f"{ema_file.name} is missing"
    return f"{checksums.SUMS} is missing" if found.hashed and not has_checksums else found


def _read_state(file: Path) -> dict[str, Any]:
    try:
        state = dict(torch.load(file, map_location="cpu", weights_only=True))
        return {"step" if key == "update" else key: value for key, value in state.items()}  # its name before 0.2
    except UnpicklingError as error:
        raise ValueError(f"{file.name} holds something else than data") from error
    except (ValueError, RuntimeError, EOFError, LookupError, TypeError, AttributeError) as error:
        if out_of_memory(error) is not None:  # which is no damage
            raise
        summary = str(error).partition("\n")[0] or "it is empty"
        raise ValueError(f"{file.name}: {summary}") from error


def _set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint, so that none of its files is lost and it is not taken for one; the new folder."""
    aside, number = folder.with_name(f"{folder.name}.damaged"), 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{folder.name}.damaged-{number}")
    return folder.rename(aside)
