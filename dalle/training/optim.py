"""Optimisation: AdamW groups, schedules as functions of the step, weight averaging. Knows nothing of the stages."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dalle.config import config
from dalle.ranges import Decay, NonNegativeInt, Probability, Range, Weight
from dalle.training.distributed.fsdp import is_sharded, local, sum_of_squares

_FUSED = {"cpu", "cuda", "mps", "xpu"}  # devices with a kernel for all of AdamW
_DECIDES = {"cpu", "cuda"}  # those whose kernel looks at `found_inf`


@runtime_checkable
class Layered(Protocol):
    """A module that tells how far each of its parameters is from its top."""

    def steps_from_top(self) -> dict[str, int]: ...


@config
class OptimConfig:
    lr: Annotated[float, Range(0, ceiling=1000)] = 3e-4
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.96)
    """Decay of the two moments of Adam."""
    eps: Annotated[float, Range(0, 1, above=True)] = 1e-8
    """Adam's epsilon."""
    weight_decay: Annotated[float, Range(0, ceiling=1000)] = 4.5e-2
    """Decoupled weight decay of matrices and kernels; gains, biases and embeddings have none."""
    layer_decay: Annotated[float, Range(0, 1, above=True, hint="1: all alike")] = 1.0
    """Factor of the learning rate from each block to the one below it, in both towers (stage clip; BEiT, arXiv
    2106.08254, appendix): what was learned first moves least. 1 has one rate for all."""
    warmup: NonNegativeInt = 500
    """Steps over which the learning rate rises linearly from 0."""
    warmup_tokens: Annotated[float, Range(0, ceiling=10**18, hint="null counts in steps")] | None = None
    """The same in tokens of text and image: where given, `warmup` is as many steps as that takes."""
    final_lr: Probability = 0.1
    """Learning rate at the end of the cosine, as a fraction of the peak."""
    clip_norm: Annotated[float, Range(0, above=True, ceiling=10**18, hint="null does not clip")] | None = 4.0
    """Largest norm of the gradient; null does not clip."""
    ema: Annotated[float, Range(0, 1, below=True, hint="null keeps no average")] | None = 0.999
    """Decay of the averaged weights, which are validated and exported; null uses the trained ones."""


@config
class CosineSchedule:
    """A number that goes from `first` to `last` along half a cosine (appendix A.2 of the DALL-E paper)."""

    first: Weight
    """Value at step 0."""
    last: Weight
    """Value from `steps` on."""
    steps: NonNegativeInt
    """Length of the ramp."""


def ramp(schedule: CosineSchedule, step: int) -> float:
    """The value of `schedule` at `step`."""
    done = min(1.0, step / schedule.steps) if schedule.steps else 1.0
    return schedule.last + (schedule.first - schedule.last) * 0.5 * (1 + math.cos(math.pi * done))


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine from `lr`, which reaches `lr * final_lr` after the last step."""
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    decay = CosineSchedule(first=optim.lr, last=optim.lr * optim.final_lr, steps=max(1, steps - optim.warmup))
    return ramp(decay, step - optim.warmup)


def adamw(module: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices, kernels and positions: not on gains, biases, embeddings, codebooks.

    Where torch has a kernel that reads and writes each number once (CPUs too), it takes that.

    Raises:
        ValueError: `layer_decay` is below 1 for a module that does not tell its layers, or is in shares.
    """
    tables = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    tables |= {id(p) for name, p in module.named_parameters() if name.endswith("codebook")}
    parameters = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim >= 2 and id(p) not in tables]
    rest = [p for p in parameters if p.ndim < 2 or id(p) in tables]
    groups = [{"params": decayed, "weight_decay": optim.weight_decay}]
    if is_sharded(rest):  # torch takes the tensors of a group all at once: shares apart from scalars, which are none
        groups += [{"params": [p for p in rest if is_sharded([p])], "weight_decay": 0.0}]
        rest = [p for p in rest if not is_sharded([p])]
    groups += [{"params": rest, "weight_decay": 0.0}]
    if optim.layer_decay != 1:
        groups = _by_layer(groups, module, optim.layer_decay)
    optimizer = torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        fused={p.device.type for p in parameters} <= _FUSED,
    )
    optimizer.register_load_state_dict_pre_hook(_step_as_made)
    return optimizer


def _by_layer(groups: list[dict[str, Any]], module: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Groups of parameters cut by their distance from the top, each with its factor of the learning rate."""
    if not isinstance(module, Layered):
        raise ValueError(f"optim.layer_decay is {decay}, which is for stage clip: set optim.layer_decay=1")
    if is_sharded(module.parameters()):
        raise ValueError(f"optim.layer_decay is {decay}, which shares of a model have not: set run.sharding=none")
    steps = module.steps_from_top()
    of = {id(parameter): steps[name] for name, parameter in module.named_parameters()}
    return [
        {"params": own, "weight_decay": group["weight_decay"], "lr_factor": decay**step}
        for group in groups
        for step in sorted(set(of.values()))
        if (own := [p for p in group["params"] if of[id(p)] == step])
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give an optimizer of `adamw` its learning rate; with `layer_decay` that of the top."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_factor", 1.0)


def clipped_step(optimizer: torch.optim.Optimizer, norm: Tensor, largest: float | None) -> None:
    """Take a step of `adamw`, or none: then weights, moments and counts of steps stay as they are.

    Where AdamW is one kernel it reads both the flag and the factor of the gradients from the device, as it does for
    torch's GradScaler: the host does not wait for them, and clipping is no pass over the gradients of its own.

    Args:
        optimizer: of `adamw`; its gradients may be scaled down in place.
        norm: of all gradients together, a scalar on their device; no step is taken where it is not finite.
        largest: norm down to which the gradients are scaled where it is above; None does not clip.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    divisor = None if largest is None else ((norm + 1e-6) / largest).clamp(min=1.0)
    if not (optimizer.defaults["fused"] and {p.device.type for p in parameters} <= _DECIDES):
        if norm.isfinite():
            if divisor is not None:
                torch._foreach_div_([local(p.grad) for p in parameters if p.grad is not None], divisor)
            optimizer.step()
        return
    optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
    optimizer.grad_scale = divisor  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf, optimizer.grad_scale  # type: ignore[attr-defined]


def _step_as_made(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The state of a run with another kernel, which would bring that kernel along, for this one's."""
    groups = zip(state["param_groups"], optimizer.param_groups, strict=True)
    return state | {"param_groups": [saved | {"fused": own["fused"]} for saved, own in groups]}


class EMA:
    """Exponential moving average of a module's parameters; its buffers are copied as they are."""

    def __init__(self, module: nn.Module, decay: float):
        self.module, self.decay = module, decay
        self.state = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, steps_done: int, applied: Tensor | None = None) -> None:
        """Move towards the module; early on faster, so that the first weights are forgotten.

        Args:
            steps_done: how many there were.
            applied: bool scalar on the device: False moves nothing, and the host does not wait for it. None is True.
        """
        decay = min(self.decay, (1 + steps_done) / (10 + steps_done))
        averaged = {name for name, _ in self.module.named_parameters()}
        state = self.module.state_dict()
        weight = torch.as_tensor(1 - decay) if applied is None else applied * (1 - decay)
        for name in averaged:
            own = local(self.state[name])
            own.lerp_(local(state[name]), weight.to(own.dtype))
        for name, value in state.items():
            if name not in averaged:
                self.state[name].copy_(value)

    def load(self, state: dict[str, Tensor]) -> None:
        for name, value in self.state.items():
            value.copy_(state[name])


@torch.no_grad()
def update_ratio(optimizer: torch.optim.Optimizer) -> float:
    """Norm of the last step of `adamw` over the norm of the weights that it came to; about 1e-3 is usual.

    The step is computed again from the moments, a tensor at a time, so that no copy of the weights is needed.
    """
    squares: list[Tensor] = []  # of step, of weights: [2] each, read once for all
    sharded = is_sharded(weight for group in optimizer.param_groups for weight in group["params"])
    of_all: list[Tensor] = []  # the same of scalars that all processes of a sharded run have
    for group in optimizer.param_groups:
        rate, (first, second) = group["lr"], group["betas"]
        for weight in group["params"]:
            state = optimizer.state.get(weight)
            if not state:
                continue
            done, decay = state["step"], rate * group["weight_decay"]
            average, square, own = (local(t) for t in (state["exp_avg"], state["exp_avg_sq"], weight))
            spread = (square / (1 - second**done)).sqrt_().add_(group["eps"])
            moved = (average / spread).mul_(rate / (1 - first**done))
            moved.add_(own, alpha=decay).div_(1 - decay)  # of the weights before, which decayed before Adam's step
            whole = sharded and not is_sharded([weight])
            (of_all if whole else squares).append(torch.stack([moved.square().sum(), own.square().sum()]).float())
    if not squares:
        return 0.0
    total = torch.stack(squares).sum(0)
    if sharded:
        torch.distributed.all_reduce(total)
    of_step, of_weights = torch.stack([total, *of_all]).sum(0).sqrt().tolist()
    return of_step / of_weights if of_weights else 0.0


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Norm of all gradients together, a scalar on their device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if is_sharded(gradients):
        return sum_of_squares(gradients).sqrt()
    return nn.utils.get_total_norm(gradients)
