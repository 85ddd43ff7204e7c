"""The parts of one training step: seeding, gradient accumulation, all-reduce, optimizer step, evaluation mode."""

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

    Dropout, Gumbel noise and code revival then depend on (seed, step, rank) only. So a resumed run needs no generator
    states, and the random numbers that a validation uses up do not change the training.
    """
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)  # within an int64


def accumulate(
    task: Task, phase: Phase, micro: list[Any], accelerator: Accelerator, step: int
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Run forward and backward passes of a phase over micro-batches, leaving the accumulated gradients.

    A contrastive loss compares all pairs of the batch, so it is not a mean over micro-batches: it goes through
    GradCache instead.

    Returns:
        The sum of the micro-batches' losses (of a contrastive task the loss), and the values to log of each.
    """
    if isinstance(task, ContrastiveTask) and len(micro) > 1:
        loss, parts = accumulate_contrastive(task, micro, accelerator)
        return loss, [{phase.name + "_loss": loss} | parts]
    logs: list[dict[str, Tensor]] = []
    total = torch.zeros((), device=accelerator.device)  # summed on the device: nothing here waits for it
    for inputs in micro:
        with accelerator.autocast():
            loss, parts = task.loss(phase, inputs, step)
        accelerator.backward(loss / len(micro))  # gradients add up to those of the mean over the full batch
        total += loss.detach()
        logs.append({phase.name + "_loss": loss} | parts)
    return total, logs


def average_gradients(module: nn.Module, accelerator: Accelerator, compressor: PowerSGD | None = None) -> None:
    """All-reduce the gradients to their mean over all processes, once per step and in one flat buffer.

    Sharded gradients are skipped: FSDP has averaged them in the backward pass.

    Args:
        module: module with gradients.
        accelerator: the run's accelerator.
        compressor: PowerSGD state; None all-reduces in full.
    """
    gradients = [p.grad for p in module.parameters() if p.grad is not None and not is_sharded([p.grad])]
    if accelerator.num_processes == 1 or not gradients:
        return
    if compressor is not None:
        compressor.mean(gradients)
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
    compressor: PowerSGD | None = None,
) -> Tensor:
    """Average, clip and apply the accumulated gradients, without synchronizing host and device.

    Args:
        phase: module and options.
        loss: sum of the micro-batches' losses, a scalar.
        optimizer: optimizer of the phase.
        accelerator: the run's accelerator.
        step: number of completed steps.
        steps: total number of steps, for the learning-rate schedule.
        compressor: PowerSGD state of the phase; None all-reduces in full.

    Returns:
        The gradient norm before clipping, a scalar on the device. If it is not finite, because a loss or a gradient is
        not, the step was skipped: weights, moments and step counts are unchanged.
    """
    # A non-finite loss can have finite gradients. 0 * loss is 0, or NaN if the loss is not finite; added to a gradient
    # it reaches every process through the all-reduce, and the loss scaler, so that all of them skip the step
    gradients = (local(p.grad) for p in phase.module.parameters() if p.grad is not None)
    # Any gradient will do; a process's shard of the first may be empty
    next(gradient for gradient in gradients if gradient.numel()).add_(0 * loss.detach())
    average_gradients(phase.module, accelerator, compressor)
    scaler = accelerator.scaler
    if scaler is not None:
        unscale(scaler, optimizer.optimizer)
    norm = gradient_norm(phase.module.parameters())  # over all shards, if there are any
    set_learning_rate(optimizer.optimizer, learning_rate(phase.optim, step, steps))
    clipped_step(optimizer.optimizer, norm, phase.optim.clip_norm)
    if scaler is not None:
        scaler.update()
    optimizer.zero_grad()
    return norm


def step_metrics(phase: Phase, optimizer: AcceleratedOptimizer, compressor: PowerSGD | None = None) -> dict[str, float]:
    """Return values to log of the last step: learning rate, update ratio and, with PowerSGD, the compression ratio."""
    rate: float = max(group["lr"] for group in optimizer.param_groups)  # that of the top layer
    metrics = {phase.name + "_lr": rate, phase.name + "_update_ratio": update_ratio(optimizer.optimizer)}
    if compressor is not None and compressor.compression:
        metrics[phase.name + "_compression"] = compressor.compression
    return metrics


def mean_metrics(micro: list[dict[str, Tensor]], accelerator: Accelerator) -> dict[str, float]:
    """Average logged values over micro-batches and processes, with one transfer to the host."""
    means = torch.stack([torch.stack([m[name].detach().float() for m in micro]).mean() for name in micro[0]])
    if accelerator.num_processes > 1:
        means = accelerator.reduce(means, reduction="mean")
    return dict(zip(micro[0], means.tolist(), strict=True))


@contextmanager
def evaluated(model: nn.Module, ema: EMA | None) -> Iterator[nn.Module]:
    """Put a model into eval mode with its EMA weights for the time of a block, then restore it.

    Every process of a sharded run must do this alike, since each gathers weights from the others. Native kernels are
    off there, because they read weights directly and would see the local shards only.
    """
    sharded = is_sharded(model.parameters())
    # A copy in memory of the trained weights, put back at the end
    trained_weights = {} if ema is None else {name: value.clone() for name, value in model.state_dict().items()}
    if ema is not None:
        model.load_state_dict(ema.state)
    model.eval()
    try:
        # Each new shape (a last batch, a growing KV cache) would trigger another compilation
        with torch.compiler.set_stance("force_eager"), force_backend(native="off") if sharded else nullcontext():
            yield model
    finally:
        reshard(model)  # gathered by the last pass, and without a backward pass not freed
        if ema is not None:
            model.load_state_dict(trained_weights)
        model.train()
