"""Gradients of a loss over a batch whose activations do not fit: GradCache (Gao et al. 2021, arXiv 2101.06983).

The embeddings of all pieces are made without a graph; the gradient of the whole batch's loss with respect to them is
kept; then each piece is embedded once more, with a graph, and handed its part of that gradient. By the chain rule this
is the gradient of the loss itself (section 3.2 there), for the price of one more forward pass.
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
    """Leave the gradient of the loss that compares all pieces.

    Memory: the activations of one piece, and of all pieces their inputs and embeddings with their gradients. Of several
    processes each embeds its own pieces; embeddings meet in `batch_loss`, and no activations do.

    Args:
        task: embeds a piece, and compares embeddings.
        micro: inputs of this process's share of the batch, in order.
        accelerator: of the loop.

    Returns:
        The loss, detached, and what is logged of it.
    """
    device = accelerator.device
    states, per_micro = [], []
    for inputs in micro:
        states.append(_random_state(device))
        with torch.no_grad(), accelerator.autocast():
            per_micro.append(task.embed(inputs))
    final_state = _random_state(device)
    embeds = [torch.cat(parts).requires_grad_() for parts in zip(*per_micro, strict=True)]
    with accelerator.autocast():
        loss, metrics = task.batch_loss(tuple(embeds))
    accelerator.backward(loss)  # of what no tower has, such as the temperature, this is all; fp16's scale is in it
    gradient_parts = [
        _gradient(whole).split([len(inputs[kind]) for inputs in per_micro]) for kind, whole in enumerate(embeds)
    ]
    for inputs, state, *gradients in zip(micro, states, *gradient_parts, strict=True):
        _set_random_state(device, state)
        with accelerator.autocast():
            recomputed = task.embed(inputs)
        trained = [
            (embedding, gradient)
            for embedding, gradient in zip(recomputed, gradients, strict=True)
            if embedding.requires_grad
        ]
        torch.autograd.backward([embedding for embedding, _ in trained], [gradient for _, gradient in trained])
    _set_random_state(device, final_state)
    return loss.detach(), metrics


def _gradient(embeds: Tensor) -> Tensor:
    assert embeds.grad is not None, "the loss compares all kinds of embeddings"
    return embeds.grad


def _random_state(device: torch.device) -> tuple[Tensor, ...]:
    """States of the generators that dropout draws from: of the CPU, and of the device."""
    own = () if device.type == "cpu" else (torch.get_device_module(device).get_rng_state(device),)
    return (torch.get_rng_state(), *own)


def _set_random_state(device: torch.device, state: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(state[0])
    for own in state[1:]:
        torch.get_device_module(device).set_rng_state(own, device)
