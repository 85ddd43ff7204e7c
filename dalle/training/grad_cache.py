"""GradCache: contrastive loss over a batch whose activations do not fit in memory (Gao et al. 2021, arXiv 2101.06983).

All micro-batches are embedded without a graph; the loss of the full batch gives the gradient with respect to the
embeddings; then each micro-batch is embedded again, with a graph, and its part of that gradient is backpropagated. By
the chain rule this is the exact gradient (section 3.2 of the paper), at the cost of one more forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from dalle.training.tasks import ContrastiveTask


def accumulate_contrastive(
    task: ContrastiveTask, micro: list[Any], accelerator: Accelerator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the contrastive loss over all micro-batches, leaving its gradients.

    Peak memory is the activations of one micro-batch, plus inputs, embeddings and embedding gradients of all. Each
    process embeds its own micro-batches; `batch_loss` gathers the embeddings of all processes.

    Args:
        task: embeds micro-batches and compares embeddings.
        micro: inputs of this process's micro-batches, in order.
        accelerator: the run's accelerator.

    Returns:
        The loss, detached, and the values to log.
    """
    device = accelerator.device
    states, per_micro = [], []
    for inputs in micro:
        # Before each micro-batch: dropout must be repeated in the second pass
        states.append(_random_state(device))
        with torch.no_grad(), accelerator.autocast():
            per_micro.append(task.embed(inputs))
    final_state = _random_state(device)
    # Leaves, to collect the gradient
    embeds = [torch.cat(parts).requires_grad_() for parts in zip(*per_micro, strict=True)]
    with accelerator.autocast():
        loss, metrics = task.batch_loss(tuple(embeds))
    accelerator.backward(loss)  # complete for parameters outside the towers (temperature); includes the fp16 scale
    gradient_parts = [
        _gradient(whole).split([len(inputs[kind]) for inputs in per_micro]) for kind, whole in enumerate(embeds)
    ]
    for inputs, state, *gradients in zip(micro, states, *gradient_parts, strict=True):
        _set_random_state(device, state)  # the second forward pass must drop the same units as the first
        with accelerator.autocast():
            recomputed = task.embed(inputs)
        trained = [
            (embedding, gradient)
            for embedding, gradient in zip(recomputed, gradients, strict=True)
            if embedding.requires_grad  # a frozen tower gets none
        ]
        torch.autograd.backward([embedding for embedding, _ in trained], [gradient for _, gradient in trained])
    _set_random_state(device, final_state)  # as if there had been one forward pass
    return loss.detach(), metrics


def _gradient(embeds: Tensor) -> Tensor:
    assert embeds.grad is not None, "the loss depends on all kinds of embeddings"
    return embeds.grad


def _random_state(device: torch.device) -> tuple[Tensor, ...]:
    """Return the states of the generators that dropout uses: the CPU's and the device's."""
    own = () if device.type == "cpu" else (torch.get_device_module(device).get_rng_state(device),)
    return (torch.get_rng_state(), *own)


def _set_random_state(device: torch.device, state: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(state[0])
    for own in state[1:]:
        torch.get_device_module(device).set_rng_state(own, device)
