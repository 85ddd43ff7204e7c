"""Checkpoints of a run: written whole or not at all, the newest few kept, read back to the exact step."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from dalle.artifact import atomic_folder
from dalle.training.optim import WeightAverage
from dalle.weights import load_into, read_tensors, write_tensors

log = logging.getLogger(__name__)

_NAME = re.compile(r"update-(\d{8})$")


@dataclass
class Checkpoint:
    """All that an interrupted run needs to go on as if it had not been.

    Noise, data order and schedules are functions of (seed, update), so they need no state here.
    """

    update: int  # updates done
    weights: dict[str, Tensor]  # the task's whole state
    average: dict[str, Tensor] | None  # averaged weights of the exported module
    optimizers: dict[str, Any]  # one state dict for each phase
    scaler: dict[str, Any] | None  # loss scale of fp16
    architecture: dict[str, Any]  # the recipe's `model:`
    bad: list[str]  # broken records met so far

    @classmethod
    def of(
        cls,
        update: int,
        state: nn.Module,
        average: WeightAverage | None,
        optimizers: dict[str, AcceleratedOptimizer],
        scaler: torch.amp.GradScaler | None,
        architecture: dict[str, Any],
        bad: list[str],
    ) -> Checkpoint:
        """The state of a run after `update` updates."""
        return cls(
            update=update,
            weights=state.state_dict(),
            average=None if average is None else average.state,
            optimizers={name: optimizer.state_dict() for name, optimizer in optimizers.items()},
            scaler=None if scaler is None else scaler.state_dict(),
            architecture=architecture,
            bad=bad,
        )


def folders(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    found = [p for p in (run / "checkpoints").glob("update-*") if _NAME.search(p.name)]
    return sorted(found, key=lambda p: p.name)


def save(run: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `checkpoint`, then remove all but the newest `keep`.

    Raises:
        OSError: no space left; earlier checkpoints are untouched.
    """
    target = run / "checkpoints" / f"update-{checkpoint.update:08d}"
    with atomic_folder(target) as folder:
        write_tensors(checkpoint.weights, folder / "weights.safetensors")
        if checkpoint.average is not None:
            write_tensors(checkpoint.average, folder / "average.safetensors")
        rest = {
            "update": checkpoint.update,
            "optimizers": checkpoint.optimizers,
            "scaler": checkpoint.scaler,
            "architecture": checkpoint.architecture,
            "bad": checkpoint.bad,
        }
        _save_state(rest, folder / "state.pt")
    for old in folders(run)[:-keep]:
        shutil.rmtree(old)
    return target


@contextmanager
def explained(run: Path, update: int) -> Iterator[None]:
    """Says what to do where a save in this block fails.

    Raises:
        ValueError: in place of an OSError: no space left, or not writable.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"update {update} could not be saved in {run} ({reason}): earlier checkpoints are whole; "
            "make room there, then go on with resume=true"
        ) from error


def _save_state(state: dict[str, Any], file: Path) -> None:
    try:
        with file.open("wb") as handle:  # given a path, torch 2.9 does not notice that the last bytes did not fit
            torch.save(state, handle)
    except RuntimeError as error:  # how torch reports a full disk
        raise OSError(f"{file.name} could not be written, is the disk full?") from error


def load_newest(run: Path) -> Checkpoint:
    """Read the newest checkpoint of a run that is whole.

    Newer ones that are damaged are renamed to NAME.damaged, and the log says so.

    Raises:
        ValueError: there is none, or all are damaged; these then stay as they are.
    """
    found = folders(run)
    if not found:
        raise ValueError(f"{run}: no checkpoint to resume from; start without resume=true")
    damaged: dict[Path, str] = {}
    for folder in reversed(found):
        try:
            saved = _load(folder)
        except ValueError as error:
            damaged[folder] = str(error)
        else:
            break
    else:
        told = "; ".join(f"{folder.name} ({reason})" for folder, reason in damaged.items())
        raise ValueError(
            f"no checkpoint in {found[0].parent} is whole: {told}; bring one back, or train anew in another run.dir"
        )
    for folder, reason in damaged.items():
        aside = _put_aside(folder)
        log.warning("the checkpoint %s is damaged (%s): it is %s now", folder, reason, aside.name)
    if damaged:
        log.warning("going on from update %d", saved.update)
    return saved


def _load(folder: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ValueError: a file of it is damaged or missing; the reason.
    """
    average = folder / "average.safetensors"
    try:
        return Checkpoint(
            weights=read_tensors(folder / "weights.safetensors"),
            average=read_tensors(average) if average.exists() else None,
            **torch.load(folder / "state.pt", map_location="cpu", weights_only=True),
        )
    except UnpicklingError as error:
        raise ValueError("state.pt holds something else than data") from error
    except (ValueError, RuntimeError, EOFError, OSError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(str(error).partition("\n")[0] or "it is empty") from error


def _put_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint, so that none of its files is lost and it is not taken for one; the new folder."""
    aside, number = folder.with_name(f"{folder.name}.damaged"), 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{folder.name}.damaged-{number}")
    return folder.rename(aside)


def restore(
    saved: Checkpoint,
    state: nn.Module,
    average: WeightAverage | None,
    optimizers: dict[str, AcceleratedOptimizer],
    scaler: torch.amp.GradScaler | None,
    architecture: dict[str, Any],
) -> int:
    """Put `saved` into the modules and optimisers of a run; returns the updates done.

    Raises:
        ValueError: the checkpoint is of another architecture, or of a recipe with other parts.
    """
    differ = [key for key in architecture | saved.architecture if architecture.get(key) != saved.architecture.get(key)]
    if differ:
        told = ", ".join(f"model.{k} was {saved.architecture.get(k)}, is now {architecture.get(k)}" for k in differ)
        raise ValueError(f"the checkpoint is of another architecture: {told}")
    if set(saved.optimizers) != set(optimizers):
        raise ValueError(
            f"the checkpoint has the phases {', '.join(saved.optimizers)}, the recipe {', '.join(optimizers)}: "
            "resume with the recipe that began the run"
        )
    load_into(state, saved.weights, "checkpoint")
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(saved.optimizers[name])
    if average is not None:
        average.load(_of_model(saved.weights) if saved.average is None else saved.average)
    if scaler is not None and saved.scaler is not None:
        scaler.load_state_dict(saved.scaler)
    return saved.update


def _of_model(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The exported module's share of a task's state."""
    return {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
