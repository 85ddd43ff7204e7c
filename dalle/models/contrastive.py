"""Contrastive losses over all image-text pairs of a batch, also across processes: CLIP's softmax and SigLIP's sigmoid.

Shapes: B pairs, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(
    image_embeds: Tensor, text_embeds: Tensor, scale: Tensor, gather: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Symmetric cross-entropy over all pairs of a batch (CLIP paper, figure 3), with the matching pairs as targets.

    Args:
        image_embeds: [B, D], unit vectors.
        text_embeds: [B, D], unit vectors; row i belongs to image i.
        scale: scalar inverse temperature, `CLIP.scale`.
        gather: concatenates the batches of all processes, as `gather_with_gradient` does. Every process then computes
            the loss of the whole batch, and the mean of the processes' gradients, as DDP takes it, is its gradient.

    Returns:
        Scalar mean, in nats.
    """
    if gather is not None:
        image_embeds, text_embeds = gather(image_embeds), gather(text_embeds)  # all rows of all processes
    with torch.autocast(image_embeds.device.type, enabled=False):  # bf16's rounding error times a scale of 100 is large
        logits = scale.float() * image_embeds.float() @ text_embeds.float().T  # [B, B], images by texts
        targets = torch.arange(len(logits), device=logits.device)
        # Along texts, then along images
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def gather_with_gradient(local: Tensor) -> Tensor:
    """Concatenate the processes' [B, D] in rank order to [world * B, D]; each rank gets back the gradient of its rows.

    The identity without a process group. All processes must pass the same shape.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return local
    gathered: Tensor = _Gather.apply(local)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # All ranks computed the loss from the gathered rows: their gradients for a row add up
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]  # this process's rows


def sigmoid_loss(
    image_embeds: Tensor, text_embeds: Tensor, scale: Tensor, bias: Tensor, rows: int | None = None
) -> Tensor:
    """Binary classification of every image-text pair: do they match? (SigLIP, arXiv 2303.15343, section 3.2).

    No process ever holds all embeddings or all cosines: texts travel around the ring of processes together with their
    gradients, and each process compares its own images with the texts it currently holds (section 3.3, figure 1). The
    gradient is computed in the forward pass, so that only one block of cosines is in memory at a time.

    Args:
        image_embeds: [B, D], unit vectors, of this process. All processes must pass the same shape.
        text_embeds: [B, D], unit vectors; row i belongs to image i and to no other: two equal captions in a batch are
            negatives of each other's images, as in the paper.
        scale: scalar factor on cosines, `CLIP.scale`.
        bias: scalar added to them, `CLIP.logit_bias`.
        rows: images per block; None: as many as make a block of 4 million cosines.

    Returns:
        Scalar, in nats per image: the sum over the pairs of this process's images with all texts, divided by B. The
        mean over processes, of the loss and of its gradients, is that of the whole batch.
    """
    rows = rows or max(1, _BLOCK_COSINES // len(text_embeds))  # [rows, B] cosines at a time
    loss: Tensor = _Sigmoid.apply(image_embeds, text_embeds, scale, bias, rows)
    return loss


_BLOCK_COSINES = 1 << 22


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, rows: int) -> Tensor:
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        with torch.autocast(images.device.type, enabled=False):
            # Even under autocast: see `contrastive_loss`
            own, factor, offset = images.float(), scale.float(), bias.float()
            image_grads = torch.zeros_like(own)
            sums = torch.zeros(3, device=own.device)  # the loss, and its derivatives by scale and bias
            # The texts held now and their gradients, [2, B, D]: they move on to the next process together
            here = torch.stack([texts.float(), torch.zeros_like(texts, dtype=torch.float32)])
            for turn in range(world):
                for start in range(0, len(own), rows):
                    part = slice(start, start + rows)
                    cosines = own[part] @ here[0].T  # [rows, B]
                    logits = factor * cosines + offset
                    # -log sigmoid(-l) for every pair as if it were a negative ...
                    sums[0] += F.softplus(logits).sum()
                    slope = logits.sigmoid()
                    if turn == 0:  # ... less l for the positives, as -log sigmoid(l) = softplus(l) - l
                        positive = torch.arange(start, start + len(cosines), device=own.device)
                        sums[0] -= logits[positive - start, positive].sum()
                        slope[positive - start, positive] -= 1
                    sums[1] += (slope * cosines).sum()
                    sums[2] += slope.sum()
                    image_grads[part] += factor * (slope @ here[0])  # [rows, D]
                    here[1] += factor * (slope.T @ own[part])  # [B, D], the gradient of the texts held now
                if world > 1:  # after `world` turns, texts and their full gradients are home again
                    here = _ring_shift(here)
            count = len(own)
        ctx.save_for_backward(image_grads / count, here[1] / count, sums[1] / count, sums[2] / count)  # nats per image
        ctx.types = images.dtype, texts.dtype, scale.dtype, bias.dtype
        return sums[0] / count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # A text's gradient includes terms of other processes' losses, which this process's grads[0] scales as well:
        # right only if all processes pass the same grads[0], as the training loop does.
        gradients = (grads[0] * own for own in ctx.saved_tensors)
        return (*(one.to(kind) for one, kind in zip(gradients, ctx.types, strict=True)), None)  # no gradient for `rows`


def _ring_shift(tensor: Tensor) -> Tensor:
    """Send to the next rank and receive from the previous one; `world` calls bring each tensor back home."""
    rank, world = dist.get_rank(), dist.get_world_size()
    coming, going = torch.empty_like(tensor), tensor.contiguous()
    sent = dist.P2POp(dist.isend, going, (rank + 1) % world)
    received = dist.P2POp(dist.irecv, coming, (rank - 1) % world)
    # Both at once: blocking sends in a ring would wait for each other
    for work in dist.batch_isend_irecv([sent, received]):
        work.wait()
    return coming
