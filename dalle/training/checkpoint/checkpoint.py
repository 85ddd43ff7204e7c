"""Checkpoints of a run: written whole or not at all, the newest few and the best kept, put back to the exact step.

A folder `step-NNNNNNNN` is there only once all of it is: it is written under another name beside its place, by one
process or by all of a sharded run, and renamed by the first when all have written. It holds

    weights.safetensors, average.safetensors    the task's whole state; averaged weights, if there are any
    shards/                                      in place of both, and of moments, of a sharded run (shards.py)
    powersgd-NNNNN.safetensors                   for each process what it has not told yet, with run.powersgd
    state.pt                                     the rest, read as data only
    SHA256SUMS                                   digests of all these (digests.py)

Either kind can be gone on from with any number of processes, sharded or not.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from dalle.checkpoints.tensors import LazyTensor, load_into, open_tensors, write_tensors
from dalle.config import ConfigError, flat, from_dict, to_dict
from dalle.files import atomic_folder
from dalle.training.checkpoint import checksums
from dalle.training.checkpoint.optimizer_state import load_moments, moments_by_name, optimizer_state_dict
from dalle.training.distributed import powersgd, sharded_checkpoint
from dalle.training.distributed.fsdp import is_sharded, shard_like
from dalle.training.distributed.powersgd import PowerSGD
from dalle.training.optim import EMA

_NAME = re.compile(r"(?:step|update)-(\d{8})$")  # "update-" in runs begun before version 0.2
_RESULT_NEUTRAL = ("checkpoint_activations",)  # options of a model that change neither weights nor results


@dataclass
class Checkpoint:
    """All that an interrupted run needs to go on as if it had not been.

    Noise, data order and schedules are functions of (seed, step), so they need no state here.
    """

    step: int  # steps done
    weights: dict[str, Tensor]  # the task's whole state
    ema: dict[str, Tensor] | None  # averaged weights of the exported module
    optimizers: dict[str, Any]  # one state dict for each phase
    scaler: dict[str, Any] | None  # loss scale of fp16
    architecture: dict[str, Any]  # the recipe's `model:`
    bad: list[str]  # broken records met so far
    shares: int = 0  # files of shards
    averaged: bool = False  # whether there is a file of averaged weights
    hashed: bool = False  # whether there are digests; earlier ones have none
    folder: Path | None = None  # where it was read from; of a sharded one tensors are still there

    @classmethod
    def of(
        cls,
        step: int,
        state: nn.Module,
        ema: EMA | None,
        optimizers: dict[str, AcceleratedOptimizer],
        scaler: torch.amp.GradScaler | None,
        architecture: dict[str, Any],
        bad: list[str],
    ) -> Checkpoint:
        """The state of a run after `step` steps."""
        return cls(
            step=step,
            weights=state.state_dict(),
            ema=None if ema is None else ema.state,
            optimizers={name: optimizer_state_dict(optimizer, state) for name, optimizer in optimizers.items()},
            scaler=None if scaler is None else scaler.state_dict(),
            architecture=architecture,
            bad=bad,
        )


def folders(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    found = [p for p in (run / "checkpoints").glob("*-*") if _NAME.fullmatch(p.name)]
    return sorted(found, key=lambda p: p.name.rpartition("-")[2])


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or would be written."""
    known = (folder for folder in folders(run) if int(folder.name[-8:]) == step)
    return next(known, run / "checkpoints" / f"step-{step:08d}")


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint of a run."""
    return (folder / "state.pt").is_file()


def save(
    run: Path,
    checkpoint: Checkpoint,
    keep: int,
    accelerator: Accelerator,
    compressors: Mapping[str, PowerSGD] | None = None,
    best: int | None = None,
) -> Path:
    """Write `checkpoint`, then remove all but the newest `keep` and that of step `best`. All processes call it.

    Raises:
        OSError: no space left; earlier checkpoints are untouched.
    """
    target = folder_of(run, checkpoint.step)
    main, rank = accelerator.is_main_process, accelerator.process_index
    sharded = is_sharded(checkpoint.weights.values())
    with _shared_atomic_folder(target, accelerator) as folder:
        own: list[Path] = []  # files that this process wrote
        if sharded:
            optimizers = _write_shards(checkpoint, folder / "shards")
            own += sharded_checkpoint.files(folder / "shards", rank)
        else:
            optimizers = checkpoint.optimizers
            if main:
                own += _write_full(checkpoint, folder)
        if compressors:
            own.append(powersgd.write(folder, compressors, rank))
        if main:
            own.append(folder / "state.pt")
            _save_state(
                {
                    "step": checkpoint.step,
                    "optimizers": optimizers,
                    "scaler": checkpoint.scaler,
                    "architecture": checkpoint.architecture,
                    "bad": checkpoint.bad,
                    "shares": len(sharded_checkpoint.files(folder / "shards")),
                    "averaged": not sharded and checkpoint.ema is not None,
                    "hashed": True,
                },
                own[-1],
            )
        found = gather_object(list(checksums.digests(folder, own).items()))
        if main:
            checksums.write(folder, dict(found))
    if accelerator.is_main_process:
        for old in folders(run)[:-keep]:
            if best is None or old != folder_of(run, best):
                shutil.rmtree(old)
    return target


@contextmanager
def _shared_atomic_folder(target: Path, accelerator: Accelerator) -> Iterator[Path]:
    """`artifact.atomic_folder` for all processes: the first makes it, and moves it to its place when all are done."""
    if accelerator.num_processes == 1:
        with atomic_folder(target) as folder:
            yield folder
        return
    own = atomic_folder(target) if accelerator.is_main_process else nullcontext(target)
    with own as folder:
        folder = Path(broadcast_object_list([str(folder)])[0])
        yield folder
        accelerator.wait_for_everyone()
    accelerator.wait_for_everyone()


def _write_full(checkpoint: Checkpoint, folder: Path) -> list[Path]:
    """Write weights and averaged weights in one piece each; the files."""
    parts = {"weights.safetensors": checkpoint.weights, "average.safetensors": checkpoint.ema}
    written = {folder / name: tensors for name, tensors in parts.items() if tensors is not None}
    for file, tensors in written.items():
        write_tensors(tensors, file)
    return list(written)


def _write_shards(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """Write each process's shares; returns of the optimizers what is no share: the steps, by the weights' names."""
    tensors = {f"weights:{name}": value for name, value in checkpoint.weights.items()}
    tensors |= {f"average:{name}": value for name, value in (checkpoint.ema or {}).items()}
    steps: dict[str, dict[str, float]] = {}
    for phase, moments in checkpoint.optimizers.items():
        steps[phase] = {name: float(state["step"]) for name, state in moments.items()}
        for name, state in moments.items():
            tensors |= {f"{key}:{name}": value for key, value in state.items() if key != "step"}
    sharded_checkpoint.write(folder, tensors)
    return steps


@contextmanager
def as_value_error(run: Path, step: int) -> Iterator[None]:
    """Says what to do where a save in this block fails.

    Raises:
        ValueError: in place of an OSError: no space left, or not writable.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"step {step} could not be saved in {run} ({reason}): earlier checkpoints are whole; "
            "make room there, then go on with resume=true"
        ) from error


def _save_state(state: dict[str, Any], file: Path) -> None:
    try:
        with file.open("wb") as handle:  # given a path, torch 2.9 does not notice that the last bytes did not fit
            torch.save(state, handle)
    except RuntimeError as error:  # how torch reports a full disk
        raise OSError(f"{file.name} could not be written, is the disk full?") from error


def restore(
    saved: Checkpoint,
    state: nn.Module,
    ema: EMA | None,
    optimizers: dict[str, AcceleratedOptimizer],
    scaler: torch.amp.GradScaler | None,
    model: Any,
) -> int:
    """Put `saved` into the modules and optimisers of a run, whose recipe has this `model:`; returns the steps done.

    Raises:
        ValueError: the checkpoint is of another architecture, or of a recipe with other parts.
    """
    old, new = flat(_with_defaults(saved.architecture, model)), flat(to_dict(model))
    changed = [key for key in old | new if old.get(key) != new.get(key) and not key.endswith(_RESULT_NEUTRAL)]
    if changed:
        compressors = ", ".join(f"model.{key} was {old.get(key)}, is now {new.get(key)}" for key in changed)
        raise ValueError(f"the checkpoint is of another architecture: {compressors}")
    if set(saved.optimizers) != set(optimizers):
        raise ValueError(
            f"the checkpoint has the phases {', '.join(saved.optimizers)}, the recipe {', '.join(optimizers)}: "
            "resume with the recipe that began the run"
        )
    if not saved.weights and saved.folder is not None:
        _load_shards(saved, saved.folder / "shards", state, ema, optimizers)
    else:
        _load_full(saved, state, ema, optimizers)
    if scaler is not None and saved.scaler is not None:
        scaler.load_state_dict(saved.scaler)
    return saved.step


def _with_defaults(architecture: dict[str, Any], model: Any) -> dict[str, Any]:
    """An architecture with the options that it was saved without, as there were none then, at their defaults."""
    try:
        return to_dict(from_dict(type(model), architecture, "checkpoint"))
    except ConfigError:  # of another kind
        return architecture


def _load_full(
    saved: Checkpoint,
    state: nn.Module,
    ema: EMA | None,
    optimizers: dict[str, AcceleratedOptimizer],
) -> None:
    """Put whole tensors into modules and optimizers, of which each process may hold a share."""
    own = state.state_dict()
    load_into(state, {n: shard_like(t, own[n]) if n in own else t for n, t in saved.weights.items()}, "checkpoint")
    for name, optimizer in optimizers.items():
        if is_sharded(own.values()):
            load_moments(optimizer, state, moments_by_name(saved.optimizers[name], optimizer, state))
        else:
            optimizer.load_state_dict(saved.optimizers[name])
    if ema is not None:
        averaged = _model_weights(saved.weights) if saved.ema is None else saved.ema
        ema.load({name: shard_like(averaged[name], value) for name, value in ema.state.items()})


def _load_shards(
    saved: Checkpoint,
    folder: Path,
    state: nn.Module,
    ema: EMA | None,
    optimizers: dict[str, AcceleratedOptimizer],
) -> None:
    """Read into modules and optimizers, whole or shared, what each process needs of shards."""
    stored = sharded_checkpoint.open_shards(folder)
    wanted = {f"weights:{name}": value for name, value in state.state_dict().items()}
    averaged = any(name.startswith("average:") for name in stored)
    if ema is not None and averaged:
        wanted |= {f"average:{name}": value for name, value in ema.state.items()}
    parameters = dict(state.named_parameters())
    moments: dict[str, dict[str, Tensor]] = {}
    for name in [name for steps in saved.optimizers.values() for name in steps]:
        keys = [key for key in ("exp_avg", "exp_avg_sq") if f"{key}:{name}" in stored]
        moments[name] = {key: torch.zeros_like(parameters[name]).detach() for key in keys}
        wanted |= {f"{key}:{name}": value for key, value in moments[name].items()}
    sharded_checkpoint.read_into(folder, wanted)
    if ema is not None and not averaged:
        ema.load(_model_weights(state.state_dict()))
    for phase, optimizer in optimizers.items():
        steps = saved.optimizers[phase]
        load_moments(optimizer, state, {name: moments[name] | {"step": torch.tensor(steps[name])} for name in steps})


def export_weights(folder: Path) -> dict[str, Tensor | LazyTensor]:
    """The weights of a checkpoint that a model folder gets, averaged ones where there are any; made one at a time.

    Raises:
        ValueError: a file is missing or damaged.
    """
    if (folder / "shards").is_dir():
        stored = sharded_checkpoint.open_shards(folder / "shards")
        first = "average:" if any(name.startswith("average:") for name in stored) else "weights:model."
        return {name.removeprefix(first): tensor for name, tensor in stored.items() if name.startswith(first)}
    if (folder / "average.safetensors").exists():
        return open_tensors(folder / "average.safetensors")
    whole = open_tensors(folder / "weights.safetensors")
    return {name.removeprefix("model."): value for name, value in whole.items() if name.startswith("model.")}


def _model_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The exported module's share of a task's state."""
    return {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
