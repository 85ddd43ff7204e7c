"""Restoring a run from a checkpoint: weights, EMA, optimizer and loss scaler, sharded or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from dalle.checkpoints.modules import load_into
from dalle.config import ConfigError, flat, from_dict, renamed, to_dict
from dalle.training.checkpoint.checkpoint import Checkpoint, model_weights
from dalle.training.checkpoint.optimizer_state import load_moments, moments_by_name
from dalle.training.distributed import sharded_checkpoint
from dalle.training.distributed.fsdp import is_sharded, shard_like
from dalle.training.optim import EMA

_RESULT_NEUTRAL = ("checkpoint_activations",)  # model options that change neither weights nor results


def restore(
    saved: Checkpoint,
    state: nn.Module,
    ema: EMA | None,
    optimizers: dict[str, AcceleratedOptimizer],
    scaler: torch.amp.GradScaler | None,
    model: Any,
) -> int:
    """Load a checkpoint into the modules, EMA, optimizers and loss scaler of a run.

    Args:
        saved: the checkpoint, as `load_latest` returns it.
        state: all modules of the task.
        ema: the run's EMA; where the checkpoint has none, it starts from the checkpoint's weights.
        optimizers: one per phase.
        scaler: fp16 loss scaler.
        model: `model:` of the run's recipe.

    Returns:
        The number of completed steps.

    Raises:
        ValueError: the checkpoint has another architecture or other phases than the recipe.
    """
    old, new = flat(_with_defaults(saved.architecture, model)), flat(to_dict(model))
    changed = [key for key in old | new if old.get(key) != new.get(key) and not key.endswith(_RESULT_NEUTRAL)]
    if changed:
        changes = ", ".join(f"model.{key} was {old.get(key)}, is now {new.get(key)}" for key in changed)
        raise ValueError(f"the checkpoint is of another architecture: {changes}")
    if set(saved.optimizers) != set(optimizers):
        raise ValueError(
            f"the checkpoint has the phases {', '.join(saved.optimizers)}, the recipe {', '.join(optimizers)}: "
            "resume with the recipe that the run was started with"
        )
    _check_kind(saved, optimizers)
    if not saved.weights and saved.folder is not None:
        _load_shards(saved, saved.folder / "shards", state, ema, optimizers)
    else:
        _load_full(saved, state, ema, optimizers)
    if scaler is not None and saved.scaler is not None:
        scaler.load_state_dict(saved.scaler)
    return saved.step


def _check_kind(saved: Checkpoint, optimizers: dict[str, AcceleratedOptimizer]) -> None:
    """Refuse the moments of another kind of optimizer or of other groups, which torch would refuse by their count."""
    for name, optimizer in optimizers.items():
        # A sharded run's are keyed by parameter name and have no groups; such a run has AdamW
        groups = saved.optimizers[name].get("param_groups", ())
        kinds = [
            "muon" if any("sections" in g for g in given) else "adamw" for given in (groups, optimizer.param_groups)
        ]
        if len(set(kinds)) > 1:
            raise ValueError(
                f"the checkpoint was trained with optim.kind={kinds[0]}, the recipe has {kinds[1]}: resume with "
                f"optim.kind={kinds[0]}, or begin a new run with init_from"
            )
        # layer_decay has a group per layer; its factors are those of the recipe
        layers = [any("lr_factor" in g for g in given) for given in (groups, optimizer.param_groups)]
        if groups and len(set(layers)) > 1:
            was, now = ("below 1" if one else "1" for one in layers)
            raise ValueError(
                f"the checkpoint was trained with an optim.layer_decay of {was}, the recipe has {now}: resume with "
                "that of the run, or begin a new run with init_from"
            )


def _with_defaults(architecture: dict[str, Any], model: Any) -> dict[str, Any]:
    """Add the defaults of options that did not exist when the checkpoint was written."""
    try:
        return to_dict(from_dict(type(model), renamed(architecture), "checkpoint"))
    except ConfigError:  # another `kind`: `restore` lists the differences
        return architecture


def _load_full(
    saved: Checkpoint,
    state: nn.Module,
    ema: EMA | None,
    optimizers: dict[str, AcceleratedOptimizer],
) -> None:
    """Load full tensors; in a sharded run every process keeps its shard of each."""
    own = state.state_dict()
    # `load_into` reports unknown names
    load_into(state, {n: shard_like(t, own[n]) if n in own else t for n, t in saved.weights.items()}, "checkpoint")
    for name, optimizer in optimizers.items():
        if is_sharded(own.values()):
            load_moments(optimizer, state, moments_by_name(saved.optimizers[name], optimizer, state))
        else:
            optimizer.load_state_dict(saved.optimizers[name])
    if ema is not None:
        # An EMA switched on since begins at the weights
        averaged = model_weights(saved.weights) if saved.ema is None else saved.ema
        ema.load({name: shard_like(averaged[name], value) for name, value in ema.state.items()})


def _load_shards(
    saved: Checkpoint,
    folder: Path,
    state: nn.Module,
    ema: EMA | None,
    optimizers: dict[str, AcceleratedOptimizer],
) -> None:
    """Read from shard files only what this process needs, whether or not the run is sharded."""
    stored = sharded_checkpoint.open_shards(folder)
    wanted = {f"weights:{name}": value for name, value in state.state_dict().items()}
    averaged = any(name.startswith("average:") for name in stored)
    if ema is not None and averaged:
        wanted |= {f"average:{name}": value for name, value in ema.state.items()}
    parameters = dict(state.named_parameters())
    moments: dict[str, dict[str, Tensor]] = {}
    # The optimizers are still empty after a restart: read moments into fresh tensors, then hand these over
    for name in [name for steps in saved.optimizers.values() for name in steps]:
        keys = [key for key in ("exp_avg", "exp_avg_sq") if f"{key}:{name}" in stored]
        moments[name] = {key: torch.zeros_like(parameters[name]).detach() for key in keys}
        wanted |= {f"{key}:{name}": value for key, value in moments[name].items()}
    sharded_checkpoint.read_into(folder, wanted)
    if ema is not None and not averaged:
        ema.load(model_weights(state.state_dict()))
    for phase, optimizer in optimizers.items():
        steps = saved.optimizers[phase]
        load_moments(optimizer, state, {name: moments[name] | {"step": torch.tensor(steps[name])} for name in steps})
