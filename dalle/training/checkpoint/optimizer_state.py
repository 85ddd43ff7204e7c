"""AdamW state keyed by parameter name (torch keys it by index, in the order of the parameter groups)."""

from __future__ import annotations

from typing import Any

from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from dalle.training.distributed.fsdp import is_sharded, shard_like

Moments = dict[str, dict[str, Tensor]]  # parameter name -> exp_avg, exp_avg_sq, step


def optimizer_state_dict(optimizer: AcceleratedOptimizer, state: nn.Module) -> dict[str, Any]:
    """Return torch's own state dict; for a sharded model the moments and step count by parameter name instead."""
    if not is_sharded(state.parameters()):
        return optimizer.state_dict()
    names = {id(parameter): name for name, parameter in state.named_parameters()}
    entry = optimizer.optimizer.state
    return {names[id(p)]: dict(entry[p]) for group in optimizer.param_groups for p in group["params"] if p in entry}


def moments_by_name(saved: dict[str, Any], optimizer: AcceleratedOptimizer, state: nn.Module) -> Moments:
    """Convert torch's index-keyed state of an unsharded run to names, sharded like the parameters of this run.

    Relies on the order of `build_optimizer`: first the group with weight decay, then everything else in module order.
    A sharded run splits the latter into two groups (shards and scalars), which are merged here to recover the indices.
    """
    order = {id(parameter): (place, name) for place, (name, parameter) in enumerate(state.named_parameters())}
    # The first group decays, the others do not
    first, *rest = ([order[id(p)] + (p,) for p in group["params"]] for group in optimizer.param_groups)
    numbered = first + sorted((entry for group in rest for entry in group), key=lambda entry: entry[0])
    found: Moments = {}
    for number, (_, name, parameter) in enumerate(numbered):
        if number in saved["state"]:
            entry = saved["state"][number]
            found[name] = {k: v if k == "step" else shard_like(v, parameter) for k, v in entry.items()}
    return found


def load_moments(optimizer: AcceleratedOptimizer, state: nn.Module, moments: Moments) -> None:
    """Load moments and step counts by parameter name; hyperparameters stay those of the recipe."""
    names = {id(parameter): name for name, parameter in state.named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # torch's numbering of this run
    entry = {i: moments[names[id(p)]] for i, p in enumerate(parameters) if names[id(p)] in moments}
    optimizer.load_state_dict({"state": entry, "param_groups": optimizer.state_dict()["param_groups"]})
