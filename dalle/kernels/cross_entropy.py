"""Fused linear head and cross-entropy, in chunks of rows: the logits of all rows are never in memory together.

Shapes: M rows (tokens), C width, V vocabulary, m rows of a chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from dalle.kernels import matmul
from dalle.kernels.dispatch import accelerated
from dalle.kernels.ids import check_ids
from dalle.kernels.linear import Linear

# Logits in memory at once. Each chunk adds its gradient to that of the whole head weight, so chunks must not be small.
_MAX_LOGITS = {"cpu": 2**24, "cuda": 2**26}


class Scores(NamedTuple):
    """Per-row results of a linear head and its targets."""

    nats: Tensor
    """[M] float32, cross-entropy."""
    lse: Tensor
    """[M] float32, log-sum-exp of the logits: the logarithm of the softmax's denominator Z."""
    argmax: Tensor
    """[M] int64, the prediction."""


class MeanLoss(NamedTuple):
    """A head's loss over all rows. Scalars in float32."""

    loss: Tensor
    """The training loss: mean of cross-entropy with smoothed targets + z_weight log² Z."""
    nats: Tensor
    """Mean cross-entropy without smoothing, without gradient."""
    z: Tensor
    """Mean of log² Z, without gradient."""
    accuracy: Tensor | None
    """Share of rows whose prediction is the target, without gradient; None if not asked for."""


def token_scores(head: nn.Module, hidden: Tensor, targets: Tensor, *, max_logits: int | None = None) -> Scores:
    """Score each row; the backward pass computes the logits again.

    Args:
        head: maps states [M, C] to logits [M, V].
        hidden: [M, C].
        targets: int [M], ids in [0, V).
        max_logits: maximum number of logits in memory; None: the device's default.

    Raises:
        IndexError: a target is out of range (checked on a CPU only).
    """
    check_ids(targets, _vocabulary(head), "targets")
    chunks = []
    rows = chunk_rows(len(hidden), _vocabulary(head), hidden.device.type, max_logits)
    for states, ids in zip(hidden.split(rows), targets.split(rows), strict=True):
        # Without checkpointing, autograd would keep the float32 logits of every chunk
        if torch.is_grad_enabled():
            chunks.append(checkpoint(_scores, head, states, ids, use_reentrant=False))
        else:
            chunks.append(_scores(head, states, ids))
    return Scores(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


def mean_loss(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    z_weight: float = 0.0,
    *,
    smoothing: float = 0.0,
    accuracy: bool = False,
    max_logits: int | None = None,
) -> MeanLoss:
    """Mean cross-entropy, and z-loss, which keeps Z near 1 (PaLM, arXiv 2204.02311, section 5).

    For a plain `Linear` head the gradients are computed in the forward pass, like Liger Kernel's fused linear
    cross-entropy (arXiv 2410.10989, section 3.2): three products with the head in all, instead of four.

    Args:
        head: maps states [M, C] to logits [M, V].
        hidden: [M, C], M >= 1.
        targets: int [M], ids in [0, V).
        z_weight: weight of log² Z; 1e-4 in the paper.
        smoothing: share of each target that is spread evenly over the vocabulary (label smoothing: Szegedy et al. 2015,
            arXiv 1512.00567, section 7), from 0 to below 1.
        accuracy: also compute the accuracy, which takes another pass over the logits.
        max_logits: maximum number of logits in memory; None: the device's default.

    Raises:
        IndexError: a target is out of range (checked on a CPU only).
    """
    check_ids(targets, _vocabulary(head), "targets")
    if type(head) is Linear and torch.is_grad_enabled():  # not a subclass or an adapter, whose gradients may differ
        kind = hidden.device.type
        # What autocast would multiply in
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        rows = chunk_rows(len(hidden), _vocabulary(head), hidden.device.type, max_logits)
        loss, nats, z, share = _MeanLoss.apply(hidden, head.weight, head.bias, targets, z_weight, rows, dtype, accuracy)
        if smoothing:
            loss = loss + smoothing * _above_mean(hidden, head, targets)
        return MeanLoss(loss, nats, z, share if accuracy else None)
    nats, lse, argmax = token_scores(head, hidden, targets, max_logits=max_logits)
    mean, z = nats.mean(), lse.square().mean()
    loss = mean + z_weight * z if z_weight else mean
    if smoothing:
        # Lse - nats is the target's logit
        loss = loss + smoothing * ((lse - nats).mean() - _mean_logit(head, hidden, max_logits))
    return MeanLoss(loss, mean.detach(), z.detach(), (argmax == targets).float().mean() if accuracy else None)


def _above_mean(hidden: Tensor, head: Linear, targets: Tensor) -> Tensor:
    """Mean difference between the targets' logits and the mean logit: what label smoothing adds to the loss.

    Cross-entropy with a share e of the target spread evenly is log Z - (1 - e) target logit - e mean logit. As logits
    are linear in the states, the mean logit comes from the mean row of the weight: no logits have to be computed.
    """
    bias: Tensor | None = head.bias
    rows = F.embedding(targets, head.weight).float() - head.weight.float().mean(0)
    above = (hidden.float() * rows).sum(-1).mean()
    return above if bias is None else above + bias.float()[targets].mean() - bias.float().mean()


def _mean_logit(head: nn.Module, hidden: Tensor, max_logits: int | None) -> Tensor:
    """The mean of all logits of a head of any kind, which computes them once more."""
    chunks = hidden.split(chunk_rows(len(hidden), _vocabulary(head), hidden.device.type, max_logits))

    def mean_of(states: Tensor) -> Tensor:
        return head(states).float().mean(-1)

    if not torch.is_grad_enabled():
        return torch.cat([mean_of(chunk) for chunk in chunks]).mean()
    return torch.cat([checkpoint(mean_of, chunk, use_reentrant=False) for chunk in chunks]).mean()


def chunk_rows(rows: int, vocabulary: int, device: str, max_logits: int | None = None) -> int:
    """Rows per chunk, such that all chunks but the last are equal and the last is not much smaller.

    Args:
        rows: M.
        vocabulary: V.
        device: device type, "cpu" or "cuda".
        max_logits: maximum number of logits in a chunk, which has at least one row; None: the device's default.
    """
    # Other accelerators have memory like a GPU's
    limit = _MAX_LOGITS.get(device, _MAX_LOGITS["cuda"]) if max_logits is None else max_logits
    # A row may have more logits than the limit: then a chunk is one row
    chunks = max(1, -(-rows // max(1, limit // vocabulary)))
    return max(1, -(-rows // chunks))


def _vocabulary(head: nn.Module) -> int:
    weight = head.weight
    assert isinstance(weight, Tensor)
    return len(weight)


def _scores(head: nn.Module, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits: Tensor = head(hidden)
    argmax = logits.argmax(-1)
    logits = logits.float()  # 16 bits are too few for sums over a whole vocabulary
    lse = logits.logsumexp(-1)
    return lse - logits.gather(1, targets[:, None])[:, 0], lse, argmax  # [m] each


class _MeanLoss(torch.autograd.Function):
    """Computes loss and gradients chunk by chunk in the forward pass; the backward pass only scales the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        z_weight: float,
        rows: int,
        dtype: torch.dtype,
        accuracy: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        count = len(hidden)
        matrix = weight.to(dtype)  # cast once, not in each chunk
        offset = None if bias is None else bias.to(dtype)
        sums = torch.zeros(2, dtype=torch.float32, device=hidden.device)  # of cross-entropy and log^2 Z
        correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        hidden_gradient = torch.empty_like(hidden) if needs_hidden else None
        weight_gradient: Tensor | None = None
        bias_gradient = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs_bias else None
        for start in range(0, count, rows):
            states, ids = hidden[start : start + rows].to(dtype), targets[start : start + rows]
            # The logits are passed on without a name here, so that `_loss_and_grad` can free or overwrite them
            chunk_sums, chunk_correct, slope = _loss_and_grad(
                matmul.forward(states, matrix, offset), ids, z_weight, bias_gradient, accuracy
            )
            sums, correct = sums + chunk_sums, correct + chunk_correct
            if hidden_gradient is not None:
                hidden_gradient[start : start + rows] = matmul.backward(slope, states, matrix)
            if needs_weight:
                part = slope.t() @ states
                # bfloat16 sums would lose late chunks
                weight_gradient = part.float() if weight_gradient is None else weight_gradient.add_(part)
        # Shaped [M, C], [V, C], [V], in place of logits [M, V]
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)
        ctx.dtypes, ctx.count = (weight.dtype, None if bias is None else bias.dtype), count
        nats, z = (sums / count).unbind()
        loss, share = nats + z_weight * z, correct / count
        # Only the loss has a gradient; the others are for the log
        ctx.mark_non_differentiable(nats, z, share)
        return loss, nats, z, share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        scale = gradient / ctx.count  # the mean's 1 / M, put off until here: see `_loss_and_grad`
        return (
            None if hidden is None else hidden * scale.to(hidden.dtype),
            None if weight is None else (weight * scale).to(weight_dtype),
            None if bias is None else (bias * scale).to(bias_dtype),
            *[None] * 5,  # targets and options have none
        )


def _loss_and_grad(
    logits: Tensor, ids: Tensor, z_weight: float, bias_gradient: Tensor | None, accuracy: bool
) -> tuple[Tensor, Tensor | int, Tensor]:
    """Of logits [m, V]: sums of cross-entropy and of log² Z [2], correct predictions, and the gradient of the loss sum.

    The gradient replaces the logits; the caller must not keep them, or there are two copies. The mean's 1/M and any
    loss scale are applied afterward: in float16, 1/M times a small probability would underflow to 0.
    """
    # Before the next line overwrites the logits
    correct = (logits.argmax(-1) == ids).sum() if accuracy else 0
    fast = cross_entropy_grad_(logits, ids, z_weight, bias_gradient)
    if fast is not None:
        nats, lse = fast
        return torch.stack((nats.sum(), lse.square().sum())), correct, logits
    dtype, ids, logits = logits.dtype, ids[:, None], logits.float()  # frees 16-bit logits here
    right = logits.gather(1, ids)  # [m, 1]
    lse = logits.logsumexp(-1, keepdim=True)
    sums = torch.stack(((lse - right).sum(), lse.square().sum()))
    # d/dl of (lse - l_target) + z lse^2 is softmax (1 + 2 z lse) - onehot(target)
    slope = logits.sub_(lse).exp_()  # softmax, in the memory of the logits
    if z_weight:
        slope.mul_(1 + 2 * z_weight * lse)
    slope.scatter_add_(1, ids, torch.full_like(right, -1))
    if bias_gradient is not None:
        bias_gradient += slope.sum(0)
    return sums, correct, slope.to(dtype)


@accelerated
def cross_entropy_grad_(
    logits: Tensor, ids: Tensor, z_weight: float, bias_gradient: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Overwrite logits by the gradient of the summed cross-entropy + z_weight log² Z, in one pass.

    Has no PyTorch equivalent; `_loss_and_grad` has the plain version, as only it can free the logits in between.

    Args:
        logits: [M, V]; overwritten.
        ids: int64 [M], the targets, each in [0, V).
        z_weight: weight of log² Z.
        bias_gradient: float32 [V], to which the sum of the gradient over the rows is added, before rounding; None: not
            needed.

    Returns:
        Cross-entropy and log Z of each row, float32 [M] each; None if nothing was done.
    """
    return None
