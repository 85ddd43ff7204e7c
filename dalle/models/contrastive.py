"""Losses over the pairs of a batch that towers of images and texts learn from, also over several processes.

Letters of shapes: B pairs, D dimensions.
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
    """Symmetric cross-entropy over all pairs of a batch (CLIP paper, figure 3): pair i is right, all others wrong.

    Args:
        image_embeds: [B, D], unit length.
        text_embeds: [B, D], unit length; row i belongs to image i.
        scale: Scalar inverse temperature, `CLIP.scale`.
        gather: Joins the batches of all processes, as `gather_with_gradient` does. Every process then has the loss of
            the whole batch, and the mean of the processes' gradients, as DDP takes it, is that loss's gradient.

    Returns:
        Scalar mean, in nats.
    """
    if gather is not None:
        image_embeds, text_embeds = gather(image_embeds), gather(text_embeds)
    with torch.autocast(image_embeds.device.type, enabled=False):  # a scale of 100 times bf16's error is too coarse
        logits = scale.float() * image_embeds.float() @ text_embeds.float().T  # [B, B], images by texts
        targets = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def gather_with_gradient(local: Tensor) -> Tensor:
    """Concatenate the processes' [B, D] in rank order to [world * B, D]; gradients go back to the rank they came from.

    Without process group it is the identity. Every process must bring the same shape.
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
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def sigmoid_loss(
    image_embeds: Tensor, text_embeds: Tensor, scale: Tensor, bias: Tensor, rows: int | None = None
) -> Tensor:
    """Each pair of an image and a text judged alone: do they belong together (SigLIP, arXiv 2303.15343, section 3.2).

    No process ever holds all embeddings, nor all cosines: texts go round the processes together with their gradients,
    and each process compares its images with those that it holds (section 3.3 there, figure 1). What is computed is
    the gradient at once, so that of the cosines only a block is in memory at a time.

    Args:
        image_embeds: [B, D], unit length, of this process. Every process must bring the same shape.
        text_embeds: [B, D], unit length; row i belongs to image i, and to no other: two equal captions of a batch
            count as strangers to each other's images, as in the paper.
        scale: Scalar that cosines are multiplied by, `CLIP.scale`.
        bias: Scalar that is added, `CLIP.logit_bias`.
        rows: Images of a block; None: as many as make a block of 4 million cosines.

    Returns:
        Scalar, in nats an image: the sum over the pairs of this process's images with the texts of all, over B. The
        mean over processes, of it and of its gradients, is that of the whole batch.
    """
    rows = rows or max(1, _BLOCK // len(text_embeds))
    found: Tensor = _Sigmoid.apply(image_embeds, text_embeds, scale, bias, rows)
    return found


_BLOCK = 1 << 22


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, rows: int) -> Tensor:
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        with torch.autocast(images.device.type, enabled=False):
            own, factor, offset = images.float(), scale.float(), bias.float()
            of_images = torch.zeros_like(own)
            sums = torch.zeros(3, device=own.device)  # of the loss, and of its derivatives by scale and bias
            # Texts and their gradients [2, B, D]: those that are here, which move on to the next process
            here = torch.stack([texts.float(), torch.zeros_like(texts, dtype=torch.float32)])
            for turn in range(world):
                for start in range(0, len(own), rows):
                    part = slice(start, start + rows)
                    cosines = own[part] @ here[0].T  # [rows, B]
                    logits = factor * cosines + offset
                    # -log sigmoid(-l) for strangers; own pairs have sigmoid(l), which is l less
                    sums[0] += F.softplus(logits).sum()
                    slope = logits.sigmoid()
                    if turn == 0:
                        right = torch.arange(start, start + len(cosines), device=own.device)
                        sums[0] -= logits[right - start, right].sum()
                        slope[right - start, right] -= 1
                    sums[1] += (slope * cosines).sum()
                    sums[2] += slope.sum()
                    of_images[part] += factor * (slope @ here[0])
                    here[1] += factor * (slope.T @ own[part])
                if world > 1:
                    here = _passed_on(here)
            count = len(own)
        ctx.save_for_backward(of_images / count, here[1] / count, sums[1] / count, sums[2] / count)
        ctx.types = images.dtype, texts.dtype, scale.dtype, bias.dtype
        return sums[0] / count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Texts were compared elsewhere too: that their gradients may be multiplied here, the loop must want the same of
        # every process's loss, as it does
        gradients = (grads[0] * own for own in ctx.saved_tensors)
        return (*(one.to(kind) for one, kind in zip(gradients, ctx.types, strict=True)), None)


def _passed_on(tensor: Tensor) -> Tensor:
    """What the process before held; after as many calls as there are processes each has its own again."""
    rank, world = dist.get_rank(), dist.get_world_size()
    coming, going = torch.empty_like(tensor), tensor.contiguous()
    sent = dist.P2POp(dist.isend, going, (rank + 1) % world)
    received = dist.P2POp(dist.irecv, coming, (rank - 1) % world)
    for work in dist.batch_isend_irecv([sent, received]):
        work.wait()
    return coming
