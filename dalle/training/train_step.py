"""The small parts of one step: noise, gradients, and what several processes share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from dalle.kernels.switches import force_backend
from dalle.training.distributed.fsdp import is_sharded, local, reshard, unscale
from dalle.training.distributed.powersgd import PowerSGD
from dalle.training.grad_cache import accumulate_contrastive
from dalle.training.optim import EMA, clipped_step, gradient_norm, learning_rate, set_learning_rate, update_ratio
from dalle.training.tasks import ContrastiveTask, Phase, Task


def seed_noise(seed: int, step: int, rank: int) -> None:
    """Seed torch's global generators for one step.

    Dropout, Gumbel noise and code revival then depend on (seed, step, process) only, so a resumed run
    needs no generator states, and validation in between disturbs nothing.
    """
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def accumulate(
    task: Task, phase: Phase, micro: list[Any], accelerator: Accelerator, step: int
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Leave the gradients of a phase's mean loss over micro-batches, or of the loss that compares all of them.

    Returns:
        The sum of their losses, and what is logged of each.
    """
    if isinstance(task, ContrastiveTask) and len(micro) > 1:
        loss, parts = accumulate_contrastive(task, micro, accelerator)
        return loss, [{phase.name + "_loss": loss} | parts]
    noted: list[dict[str, Tensor]] = []
    total = torch.zeros((), device=accelerator.device)
    for inputs in micro:
        with accelerator.autocast():
            loss, parts = task.loss(phase, inputs, step)
        accelerator.backward(loss / len(micro))
        total += loss.detach()
        noted.append({phase.name + "_loss": loss} | parts)
    return total, noted


def average_gradients(module: nn.Module, accelerator: Accelerator, told: PowerSGD | None = None) -> None:
    """Replace every gradient by its mean over all processes: one call a step, whatever the micro-batches.

    Shares of gradients are means already: FSDP makes them in each backward pass.
    """
    gradients = [p.grad for p in module.parameters() if p.grad is not None and not is_sharded([p.grad])]
    if accelerator.num_processes == 1 or not gradients:
        return
    if told is not None:
        told.mean(gradients)
        return
    flat = accelerator.reduce(torch.cat([g.flatten() for g in gradients]), reduction="mean")
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def optimizer_step(
    phase: Phase,
    loss: Tensor,
    optimizer: AcceleratedOptimizer,
    accelerator: Accelerator,
    step: int,
    steps: int,
    told: PowerSGD | None = None,
) -> Tensor:
    """Clip and apply the gradients that the micro-batches left; `loss` is the sum of their losses.

    Nothing here waits for the device, which decides itself whether to take the step. `told` is how processes tell each
    other their gradients, if not whole.

    Returns:
        The norm before clipping, a scalar on the device. Where it is not finite, as a loss or a gradient was not,
        weights, moments and counts of steps are as before.
    """
    # 0 * loss is 0, or NaN where the loss is not finite: so every process and the loss scaler see it in the gradient
    gradients = (local(p.grad) for p in phase.module.parameters() if p.grad is not None)
    next(gradient for gradient in gradients if gradient.numel()).add_(0 * loss.detach())
    average_gradients(phase.module, accelerator, told)
    scaler = accelerator.scaler
    if scaler is not None:
        unscale(scaler, optimizer.optimizer)
    norm = gradient_norm(phase.module.parameters())
    set_learning_rate(optimizer.optimizer, learning_rate(phase.optim, step, steps))
    clipped_step(optimizer.optimizer, norm, phase.optim.clip_norm)
    if scaler is not None:
        scaler.update()
    optimizer.zero_grad()
    return norm


def step_figures(phase: Phase, optimizer: AcceleratedOptimizer, told: PowerSGD | None = None) -> dict[str, float]:
    """What is logged of the step that was taken last: its learning rate, and how far it moved the weights.

    Of gradients that are compressed also how many numbers stand for one that is told.
    """
    rate: float = max(group["lr"] for group in optimizer.param_groups)
    figures = {phase.name + "_lr": rate, phase.name + "_update_ratio": update_ratio(optimizer.optimizer)}
    if told is not None and told.compression:
        figures[phase.name + "_compression"] = told.compression
    return figures


def mean_figures(micro: list[dict[str, Tensor]], accelerator: Accelerator) -> dict[str, float]:
    """Means of logged figures over micro-batches and processes."""
    means = torch.stack([torch.stack([m[name].detach().float() for m in micro]).mean() for name in micro[0]])
    if accelerator.num_processes > 1:
        means = accelerator.reduce(means, reduction="mean")
    return dict(zip(micro[0], means.tolist(), strict=True))


@contextmanager
def evaluated(model: nn.Module, average: EMA | None) -> Iterator[nn.Module]:
    """The model in eval mode with its averaged weights, put back as it was afterwards.

    Of a sharded one all processes must call it with the same, as each gathers what the others hold. It then computes
    by torch's own functions: the others look at weights where they are, and only shares are there.
    """
    sharded = is_sharded(model.parameters())
    trained = {} if average is None else {name: value.clone() for name, value in model.state_dict().items()}
    if average is not None:
        model.load_state_dict(average.state)
    model.eval()
    try:
        # Batches and caches of a validation would all be compiled anew
        with torch.compiler.set_stance("force_eager"), force_backend(native="off") if sharded else nullcontext():
            yield model
    finally:
        reshard(model)
        if average is not None:
            model.load_state_dict(trained)
        model.train()
