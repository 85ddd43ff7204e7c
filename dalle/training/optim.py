"""Optimization: AdamW and Muon's parameter groups, schedules as functions of the step, gradient clipping, EMA."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dalle.config import config
from dalle.config.ranges import Decay, NonNegativeInt, Probability, Range, Weight
from dalle.training.distributed.fsdp import is_sharded, local, sum_of_squares
from dalle.training.muon import Muon, sections_of_matrices

_FUSED = {"cpu", "cuda", "mps", "xpu"}  # devices with a fused AdamW kernel
_READS_FOUND_INF = {"cpu", "cuda"}  # devices whose fused kernel skips the step if `found_inf` is set


@runtime_checkable
class Layered(Protocol):
    """A module that knows the depth of its parameters, as layer-wise learning-rate decay needs it."""

    def layers_from_top(self) -> dict[str, int]:
        """Return for each parameter name the number of layers above it; 0 is the top."""
        ...


@config
class OptimConfig:
    """Options of the optimizer, its learning-rate schedule, clipping and EMA."""

    kind: Literal["adamw", "muon"] = "adamw"
    """muon: the matrices of transformer blocks take orthogonalized steps (Jordan et al. 2024), everything else those of
    AdamW, at the same learning rate; it keeps one moment of a matrix in place of two."""
    lr: Annotated[float, Range(0, ceiling=1000)] = 3e-4
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.96)
    """Decay rates of Adam's two moments."""
    eps: Annotated[float, Range(0, 1, above=True)] = 1e-8
    """Adam's epsilon."""
    weight_decay: Annotated[float, Range(0, ceiling=1000)] = 4.5e-2
    """Decoupled weight decay of matrices and convolutions; norms, biases and embeddings are not decayed."""
    layer_decay: Annotated[float, Range(0, 1, above=True, hint="1: all alike")] = 1.0
    """Layer-wise learning-rate decay: factor from each block to the one below it, in both towers (stage clip; BEiT,
    arXiv 2106.08254, appendix). 1 uses the same rate everywhere."""
    warmup: NonNegativeInt = 500
    """Steps over which the learning rate rises linearly from 0."""
    warmup_tokens: Annotated[float, Range(0, ceiling=10**18, hint="null counts in steps")] | None = None
    """Warm-up in text and image tokens; if given, it determines `warmup`."""
    final_lr: Probability = 0.1
    """Learning rate at the end of the cosine, as a fraction of the peak."""
    clip_norm: Annotated[float, Range(0, above=True, ceiling=10**18, hint="null does not clip")] | None = 4.0
    """Maximum gradient norm; null disables clipping."""
    ema: Annotated[float, Range(0, 1, below=True, hint="null keeps no average")] | None = 0.999
    """Decay of the EMA weights, which are validated and exported; null uses the trained weights."""


@config
class CosineSchedule:
    """A value that moves from `first` to `last` along half a cosine (appendix A.2 of the DALL-E paper)."""

    first: Weight
    """Value at step 0."""
    last: Weight
    """Value from `steps` on."""
    steps: NonNegativeInt
    """Number of steps from `first` to `last`."""

    def at(self, step: int) -> float:
        """Return the value at `step`."""
        progress = min(1.0, step / self.steps) if self.steps else 1.0
        return self.last + (self.first - self.last) * 0.5 * (1 + math.cos(math.pi * progress))


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine decay from `lr`, which reaches `lr * final_lr` after the last step."""
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    decay = CosineSchedule(first=optim.lr, last=optim.lr * optim.final_lr, steps=max(1, steps - optim.warmup))
    return decay.at(step - optim.warmup)


def build_optimizer(module: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """Build the optimizer, with weight decay on matrices, convolutions and positions only.

    Norms, biases, embeddings and codebooks are not decayed. Uses the fused implementation where PyTorch has one.

    Raises:
        ValueError: `layer_decay` is below 1 and the module is not `Layered`, or `kind` is muon and the module has no
            transformer; or either of them and the module is sharded.
    """
    tables = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    tables |= {id(p) for name, p in module.named_parameters() if name.endswith("codebook")}
    parameters = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim >= 2 and id(p) not in tables]  # matrices, convolutions and positions
    rest = [p for p in parameters if p.ndim < 2 or id(p) in tables]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": optim.weight_decay}]
    # torch's foreach and fused kernels take all tensors of a group at once and cannot mix DTensors with plain ones
    if is_sharded(rest):
        groups += [{"params": [p for p in rest if is_sharded([p])], "weight_decay": 0.0}]
        rest = [p for p in rest if not is_sharded([p])]
    groups += [{"params": rest, "weight_decay": 0.0}]
    if optim.layer_decay != 1:
        groups = _by_layer(groups, module, optim.layer_decay)
    if optim.kind == "muon":
        groups = _with_matrices(groups, module)
    optimizer = (Muon if optim.kind == "muon" else torch.optim.AdamW)(
        [g for g in groups if g["params"]],
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        fused={p.device.type for p in parameters} <= _FUSED,
    )
    optimizer.register_load_state_dict_pre_hook(_keep_options)
    return optimizer


def _with_matrices(groups: list[dict[str, Any]], module: nn.Module) -> list[dict[str, Any]]:
    """Split the matrices of transformer blocks from each group, with the sections that Muon steps one by one."""
    sections = sections_of_matrices(module)
    if not sections:
        raise ValueError(
            f"optim.kind is muon, which trains transformer blocks, and {type(module).__name__} has none: use adamw"
        )
    if is_sharded(module.parameters()):
        raise ValueError("optim.kind is muon, which fsdp does not support: set run.sharding=none or optim.kind=adamw")
    split = []
    for group in groups:
        matrices = [p for p in group["params"] if id(p) in sections]
        split += [group | {"params": [p for p in group["params"] if id(p) not in sections]}]
        split += [group | {"params": matrices, "sections": [sections[id(p)] for p in matrices]}] if matrices else []
    return split


def _by_layer(groups: list[dict[str, Any]], module: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Split parameter groups by distance from the top, each with its learning-rate factor."""
    if not isinstance(module, Layered):
        raise ValueError(f"optim.layer_decay is {decay}, but only stage clip supports it: set optim.layer_decay=1")
    if is_sharded(module.parameters()):
        raise ValueError(f"optim.layer_decay is {decay}, which fsdp does not support: set run.sharding=none")
    steps = module.layers_from_top()
    of = {id(parameter): steps[name] for name, parameter in module.named_parameters()}
    return [
        {"params": own, "weight_decay": group["weight_decay"], "lr_factor": decay**step}
        for group in groups
        for step in sorted(set(of.values()))
        if (own := [p for p in group["params"] if of[id(p)] == step])  # no empty groups
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of an optimizer from `build_optimizer`; with `layer_decay` it is that of the top layer."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_factor", 1.0)


def clipped_step(optimizer: torch.optim.Optimizer, norm: Tensor, largest: float | None) -> None:
    """Clip the gradients and take an optimizer step, or skip it if the gradient norm is not finite.

    A skipped step leaves weights, moments and step counts unchanged. The fused kernel reads `found_inf` and
    `grad_scale` on the device, as it does for torch's GradScaler. So the host does not synchronize to learn whether
    the norm is finite, and clipping needs no extra pass over the gradients.

    Args:
        optimizer: optimizer from `build_optimizer`; its gradients may be scaled in place.
        norm: norm of all gradients, a scalar on their device.
        largest: maximum norm; None does not clip.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    divisor = None if largest is None else ((norm + 1e-6) / largest).clamp(min=1.0)  # as torch's clip_grad_norm_
    if not (optimizer.defaults["fused"] and {p.device.type for p in parameters} <= _READS_FOUND_INF):
        # The slow way, which synchronizes: no fused kernel, or one that ignores `found_inf`
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


def _keep_options(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Load-hook: keep this optimizer's options: those of the recipe, which may have changed, and of its device."""
    groups = zip(state["param_groups"], optimizer.param_groups, strict=True)
    return state | {"param_groups": [own | {"params": saved["params"]} for saved, own in groups]}


class EMA:
    """Exponential moving average of a module's parameters; buffers are copied without averaging."""

    def __init__(self, module: nn.Module, decay: float):
        self.module, self.decay = module, decay
        self.state = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, steps_done: int, applied: Tensor | None = None) -> None:
        """Move the average toward the module's weights.

        The decay is limited to (1 + n) / (10 + n) at step n, so that the random initial weights are forgotten quickly.

        Args:
            steps_done: number of completed steps, n.
            applied: bool scalar on the device, False for a skipped step, which must not move the average. It is
                multiplied in on the device, so that the host need not synchronize. None is True.
        """
        decay = min(self.decay, (1 + steps_done) / (10 + steps_done))
        averaged = {name for name, _ in self.module.named_parameters()}
        state = self.module.state_dict()
        weight = torch.as_tensor(1 - decay) if applied is None else applied * (1 - decay)
        for name in averaged:  # of a sharded weight, this process's rows
            own = local(self.state[name])
            own.lerp_(local(state[name]), weight.to(own.dtype))
        for name, value in state.items():  # buffers, such as codebooks
            if name not in averaged:
                self.state[name].copy_(value)

    def load(self, state: dict[str, Tensor]) -> None:
        """Replace the average by a stored one, in place."""
        for name, value in self.state.items():
            value.copy_(state[name])


@torch.no_grad()
def update_ratio(optimizer: torch.optim.Optimizer) -> float:
    """Return the norm of the last optimizer step divided by the norm of the weights; about 1e-3 is usual.

    The step is recomputed from the moments, one tensor at a time, so no copy of the old weights is needed.
    """
    squares: list[Tensor] = []  # squared norms of (step, weights), [2] per parameter; one transfer for all at the end
    sharded = is_sharded(weight for group in optimizer.param_groups for weight in group["params"])
    replicated: list[Tensor] = []  # the same for replicated scalars of a sharded run, which are not summed over ranks
    for group in optimizer.param_groups:
        rate, (first, second) = group["lr"], group["betas"]
        for weight in group["params"]:
            state = optimizer.state.get(weight)
            if not state:
                continue
            if "moved" in state:  # of Muon, which stores the norm: its step cannot be had again without the gradient
                squares.append(torch.stack([state["moved"].square(), weight.square().sum()]).float())
                continue
            steps_taken, decay = state["step"], rate * group["weight_decay"]
            # AdamW gives the new weights w' = (1 - d) w - s, where d is the decay and s the step of Adam, of the
            # bias-corrected moments. Only w' is known; solved for the total step: w - w' = (s + d w') / (1 - d)
            average, square, own = (local(t) for t in (state["exp_avg"], state["exp_avg_sq"], weight))
            denominator = (square / (1 - second**steps_taken)).sqrt_().add_(group["eps"])
            step_taken = (average / denominator).mul_(rate / (1 - first**steps_taken))
            step_taken.add_(own, alpha=decay).div_(1 - decay)
            is_replicated = sharded and not is_sharded([weight])
            (replicated if is_replicated else squares).append(
                torch.stack([step_taken.square().sum(), own.square().sum()]).float()
            )
    if not squares:
        return 0.0
    total = torch.stack(squares).sum(0)
    if sharded:
        torch.distributed.all_reduce(total)
    step_norm, weight_norm = torch.stack([total, *replicated]).sum(0).sqrt().tolist()
    return step_norm / weight_norm if weight_norm else 0.0


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the norm of all gradients together, a scalar on their device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if is_sharded(gradients):
        return sum_of_squares(gradients).sqrt()
    return nn.utils.get_total_norm(gradients)
