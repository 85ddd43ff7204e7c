"""Training checkpoints: written completely or not at all; the newest few and the best one are kept.

A folder `step-NNNNNNNN` exists only once all of it has been written: it is filled under a temporary name beside its
final place, by the main process or by every process of a sharded run, and then renamed by the main process. It contains

    weights.safetensors, average.safetensors    the task's full state; the EMA weights, if there is an EMA
    shards/                                      sharded runs: in place of both, with the AdamW moments
    powersgd-NNNNN.safetensors                   with run.powersgd: the compression error of each process
    state.pt                                     everything else, loaded with weights_only=True
    SHA256SUMS                                   checksums of all files above (checksums.py)

A run can resume from either kind with any number of processes, sharded or not (restore.py).
"""

from __future__ import annotations

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

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.tensors import open_tensors, write_tensors
from dalle.files import atomic_folder
from dalle.training.checkpoint import checksums
from dalle.training.checkpoint.folders import folder_of, folders
from dalle.training.checkpoint.optimizer_state import optimizer_state_dict
from dalle.training.distributed import powersgd, sharded_checkpoint
from dalle.training.distributed.fsdp import is_sharded
from dalle.training.distributed.powersgd import PowerSGD
from dalle.training.optim import EMA


@dataclass
class Checkpoint:
    """Everything that a run needs to resume exactly where it stopped.

    Noise, data order and schedules are functions of (seed, step), so neither random generator states nor the position
    in the data set are stored.
    """

    step: int  # number of completed steps
    weights: dict[str, Tensor]  # full state of the task (model, and discriminator if there is one)
    ema: dict[str, Tensor] | None  # EMA weights of the exported module
    optimizers: dict[str, Any]  # one state dict per phase
    scaler: dict[str, Any] | None  # fp16 loss scaler
    architecture: dict[str, Any]  # the recipe's `model:`
    bad: list[str]  # names of broken records met so far
    # The next three are stored so that a missing file is noticed on loading
    shares: int = 0  # number of shard files
    averaged: bool = False  # whether average.safetensors was written
    hashed: bool = False  # whether SHA256SUMS was written; the first versions wrote none
    folder: Path | None = None  # set on loading; the tensors of a sharded checkpoint stay there until `restore`

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
        """Collect the state of a run after `step` steps. Tensors are referenced, not copied."""
        return cls(
            step=step,
            # Nothing is copied: no step runs until all of it is written
            weights=state.state_dict(),
            ema=None if ema is None else ema.state,
            optimizers={name: optimizer_state_dict(optimizer, state) for name, optimizer in optimizers.items()},
            scaler=None if scaler is None else scaler.state_dict(),
            architecture=architecture,
            bad=bad,
        )


def save(
    run: Path,
    checkpoint: Checkpoint,
    keep: int,
    accelerator: Accelerator,
    compressors: Mapping[str, PowerSGD] | None = None,
    best: int | None = None,
) -> Path:
    """Write `checkpoint`, then delete all older ones but the newest `keep` and the best. Every process must call it.

    Args:
        run: run folder.
        checkpoint: what to write.
        keep: number of newest checkpoints that stay on disk.
        accelerator: the run's accelerator.
        compressors: PowerSGD state of each phase; every process writes its own.
        best: step of the best validation, whose checkpoint is kept as well.

    Returns:
        The folder written.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    target = folder_of(run, checkpoint.step)
    main, rank = accelerator.is_main_process, accelerator.process_index
    sharded = is_sharded(checkpoint.weights.values())
    with _shared_atomic_folder(target, accelerator) as folder:
        own: list[Path] = []  # files that this process wrote and therefore hashes
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
    # Deleting only after the new folder has its final name means that there always is a complete checkpoint
    if accelerator.is_main_process:
        for old in folders(run)[:-keep]:  # oldest first
            if best is None or old != folder_of(run, best):
                shutil.rmtree(old)
    return target


@contextmanager
def _shared_atomic_folder(target: Path, accelerator: Accelerator) -> Iterator[Path]:
    """`atomic_folder` shared by all processes: the main one creates it and renames it once every process is done."""
    if accelerator.num_processes == 1:
        with atomic_folder(target) as folder:
            yield folder
        return
    own = atomic_folder(target) if accelerator.is_main_process else nullcontext(target)
    with own as folder:
        # The temporary name is random and known to the main process alone
        folder = Path(broadcast_object_list([str(folder)])[0])
        yield folder
        accelerator.wait_for_everyone()  # all files are written: the main process may rename the folder
    accelerator.wait_for_everyone()  # it is renamed: other processes may read it


def _write_full(checkpoint: Checkpoint, folder: Path) -> list[Path]:
    """Write weights and EMA weights to one file each; returns the files."""
    parts = {"weights.safetensors": checkpoint.weights, "average.safetensors": checkpoint.ema}
    written = {folder / name: tensors for name, tensors in parts.items() if tensors is not None}
    for file, tensors in written.items():
        write_tensors(tensors, file)
    return list(written)


def _write_shards(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """Write this process's shards of weights, EMA and moments.

    Returns:
        What is not sharded: for each phase the AdamW step count of each parameter, by name.
    """
    tensors = {f"weights:{name}": value for name, value in checkpoint.weights.items()}
    tensors |= {f"average:{name}": value for name, value in (checkpoint.ema or {}).items()}
    steps: dict[str, dict[str, float]] = {}
    for phase, moments in checkpoint.optimizers.items():
        # Step counts are scalars: not sharded, and small enough for state.pt
        steps[phase] = {name: float(state["step"]) for name, state in moments.items()}
        for name, state in moments.items():
            tensors |= {f"{key}:{name}": value for key, value in state.items() if key != "step"}
    sharded_checkpoint.write(folder, tensors)
    return steps


@contextmanager
def as_value_error(run: Path, step: int, exporting: bool = False) -> Iterator[None]:
    """Turn an OSError raised while saving into a message that says how to recover.

    Args:
        run: run folder.
        step: the step that is saved.
        exporting: whether its checkpoint is written, and the model folder follows.

    Raises:
        ValueError: replaces an OSError, such as a full or read-only disk.
    """
    try:
        yield
    except OSError as error:
        what, reason, then = f"step {step} could not be saved in {run}", error.strerror or str(error), "continue with"
        if not run.is_dir():
            advice = "the folder has gone: bring it back, or its disk"
        elif exporting:
            what = f"step {step} is saved, but its weights could not be exported to {run / 'model'}"
            advice, then = "free some disk space", "export them with"
        elif folders(run):
            advice = "earlier checkpoints are intact; free some disk space"
        else:
            raise ValueError(
                f"{what} ({reason}), and there is no earlier checkpoint: free some disk space, then start again"
            ) from error
        raise ValueError(f"{what} ({reason}): {advice}, then {then} resume=true") from error


def _save_state(state: dict[str, Any], file: Path) -> None:
    try:
        with file.open("wb") as handle:  # torch 2.9, given a path, ignores a failed write of the last bytes
            torch.save(state, handle)
    except RuntimeError as error:  # how torch reports a full disk
        raise OSError(f"{file.name} could not be written, is the disk full?") from error


def export_weights(folder: Path) -> dict[str, Tensor | LazyTensor]:
    """Open the weights of a checkpoint that go into the model folder: the EMA weights if there are any.

    Returns:
        Tensors by name; those of a sharded checkpoint are assembled one at a time, when they are read.

    Raises:
        ValueError: a file is missing or damaged.
    """
    if (folder / "shards").is_dir():
        stored = sharded_checkpoint.open_shards(folder / "shards")
        # Without an EMA, the model among the task's modules; a discriminator is not exported
        first = "average:" if any(name.startswith("average:") for name in stored) else "weights:model."
        return {name.removeprefix(first): tensor for name, tensor in stored.items() if name.startswith(first)}
    if (folder / "average.safetensors").exists():
        return open_tensors(folder / "average.safetensors")
    whole = open_tensors(folder / "weights.safetensors")
    return {name.removeprefix("model."): value for name, value in whole.items() if name.startswith("model.")}


def model_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Select the exported module from the state of a task (without the discriminator)."""
    return {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
