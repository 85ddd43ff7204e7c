"""What AdamW keeps of each weight, by the names of the weights: torch numbers them, in the order of the groups."""

from __future__ import annotations

from typing import Any

from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from dalle.training.distributed.fsdp import is_sharded, shard_like

Moments = dict[str, dict[str, Tensor]]  # of each weight: exp_avg, exp_avg_sq, step


def optimizer_state_dict(optimizer: AcceleratedOptimizer, state: nn.Module) -> dict[str, Any]:
    """torch's own state dict; of shares the moments and step of each weight, by its name."""
    if not is_sharded(state.parameters()):
        return optimizer.state_dict()
    names = {id(parameter): name for name, parameter in state.named_parameters()}
    entry = optimizer.optimizer.state
    return {names[id(p)]: dict(entry[p]) for group in optimizer.param_groups for p in group["params"] if p in entry}


def moments_by_name(saved: dict[str, Any], optimizer: AcceleratedOptimizer, state: nn.Module) -> Moments:
    """Moments and steps of a state dict of whole weights, by the names of the weights, in shares as these are.

    `adamw` puts what decays into the first group, the rest in the module's order behind it; shares and scalars of the
    rest are in groups of their own.
    """
    order = {id(parameter): (place, name) for place, (name, parameter) in enumerate(state.named_parameters())}
    first, *rest = ([order[id(p)] + (p,) for p in group["params"]] for group in optimizer.param_groups)
    numbered = first + sorted((entry for group in rest for entry in group), key=lambda entry: entry[0])
    found: Moments = {}
    for number, (_, name, parameter) in enumerate(numbered):
        if number in saved["state"]:
            entry = saved["state"][number]
            found[name] = {k: v if k == "step" else shard_like(v, parameter) for k, v in entry.items()}
    return found


def load_moments(optimizer: AcceleratedOptimizer, state: nn.Module, moments: Moments) -> None:
    """Give an optimizer moments and steps by the names of its weights; its options stay those of the recipe."""
    names = {id(parameter): name for name, parameter in state.named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entry = {i: moments[names[id(p)]] for i, p in enumerate(parameters) if names[id(p)] in moments}
    optimizer.load_state_dict({"state": entry, "param_groups": optimizer.state_dict()["param_groups"]})
