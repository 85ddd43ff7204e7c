"""A linear head and its cross-entropy, some rows at a time: the logits of all rows never stand in memory together.

Letters: M rows (tokens), C width, V vocabulary.
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

# Logits at a time. Each piece adds its gradient to all of the head's weights, so pieces should not be small.
_AT_ONCE = {"cpu": 2**24, "cuda": 2**26}


class Scores(NamedTuple):
    """What a head thinks of the right answers."""

    nats: Tensor
    """[M] float32, cross-entropy of each row."""
    log_z: Tensor
    """[M] float32, logarithm of the softmax's denominator."""
    likeliest: Tensor
    """[M] int64, the likeliest answer."""


class MeanLoss(NamedTuple):
    """A head's loss over all rows. Scalars in float32."""

    loss: Tensor
    """Mean of cross-entropy with smoothed targets + z_weight log² Z: what is trained."""
    nats: Tensor
    """Mean cross-entropy with the targets as they are, without gradient."""
    z: Tensor
    """Mean of log² Z, without gradient."""
    hits: Tensor | None
    """Share of the rows whose right answer is the likeliest, without gradient; None if it was not asked for."""


def token_scores(head: nn.Module, hidden: Tensor, targets: Tensor, *, at_once: int | None = None) -> Scores:
    """Score each row; with gradients, the logits are computed again in the backward pass.

    Args:
        head: states [M, C] to logits [M, V].
        hidden: [M, C].
        targets: int [M], ids in [0, V).
        at_once: logits that may stand in memory at a time; None: what suits the device.

    Raises:
        IndexError: on a CPU, a target is out of range.
    """
    check_ids(targets, _codes(head), "targets")
    parts = []
    rows = piece_rows(len(hidden), _codes(head), hidden.device.type, at_once)
    for states, ids in zip(hidden.split(rows), targets.split(rows), strict=True):
        if torch.is_grad_enabled():
            parts.append(checkpoint(_scores, head, states, ids, use_reentrant=False))
        else:
            parts.append(_scores(head, states, ids))
    return Scores(*(torch.cat(part) for part in zip(*parts, strict=True)))


def mean_loss(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    z_weight: float = 0.0,
    *,
    smoothing: float = 0.0,
    hits: bool = False,
    at_once: int | None = None,
) -> MeanLoss:
    """Mean cross-entropy of all rows, and z-loss (PaLM, arXiv 2204.02311, section 5), which keeps Z near 1.

    Of a plain head the gradients are made beside the loss, as Liger Kernel does (arXiv 2410.10989, section 3.2): three
    products with the head in all, and no logits computed again.

    Args:
        head: states [M, C] to logits [M, V].
        hidden: [M, C], M >= 1.
        targets: int [M], ids in [0, V).
        z_weight: weight of log² Z; the paper's is 1e-4.
        smoothing: share of each target that is spread evenly over the vocabulary (label smoothing: Szegedy et al. 2015,
            arXiv 1512.00567, section 7), from 0 to below 1.
        hits: count how often the right answer is the likeliest; that takes one more look at the logits.
        at_once: logits that may stand in memory at a time; None: what suits the device.

    Raises:
        IndexError: on a CPU, a target is out of range.
    """
    check_ids(targets, _codes(head), "targets")
    if type(head) is Linear and torch.is_grad_enabled():
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        rows = piece_rows(len(hidden), _codes(head), hidden.device.type, at_once)
        loss, nats, z, found = _MeanLoss.apply(hidden, head.weight, head.bias, targets, z_weight, rows, dtype, hits)
        if smoothing:
            loss = loss + smoothing * _above_mean(hidden, head, targets)
        return MeanLoss(loss, nats, z, found if hits else None)
    nats, log_z, likeliest = token_scores(head, hidden, targets, at_once=at_once)
    mean, z = nats.mean(), log_z.square().mean()
    loss = mean + z_weight * z if z_weight else mean
    if smoothing:
        loss = loss + smoothing * ((log_z - nats).mean() - _mean_logit(head, hidden, at_once))
    return MeanLoss(loss, mean.detach(), z.detach(), (likeliest == targets).float().mean() if hits else None)


def _above_mean(hidden: Tensor, head: Linear, targets: Tensor) -> Tensor:
    """Mean of how far the logits of the right answers are above those of all: what smoothed targets add to the loss.

    Cross-entropy with a share e spread evenly is log Z - (1 - e) right - e mean. As logits are linear in the states,
    their mean is what the mean row of the weights gives, and no logits are needed: the fast ways stay as they are.
    """
    bias: Tensor | None = head.bias
    rows = F.embedding(targets, head.weight).float() - head.weight.float().mean(0)
    above = (hidden.float() * rows).sum(-1).mean()
    return above if bias is None else above + bias.float()[targets].mean() - bias.float().mean()


def _mean_logit(head: nn.Module, hidden: Tensor, at_once: int | None) -> Tensor:
    """Mean of all logits of a head of any form, which are made once more."""
    pieces = hidden.split(piece_rows(len(hidden), _codes(head), hidden.device.type, at_once))

    def mean_of(states: Tensor) -> Tensor:
        return head(states).float().mean(-1)

    if not torch.is_grad_enabled():
        return torch.cat([mean_of(piece) for piece in pieces]).mean()
    return torch.cat([checkpoint(mean_of, piece, use_reentrant=False) for piece in pieces]).mean()


def piece_rows(rows: int, codes: int, device: str, at_once: int | None = None) -> int:
    """Rows of a piece, as many in each but for the last.

    Args:
        rows: M.
        codes: V.
        device: kind of device, "cpu" or "cuda".
        at_once: logits of a piece, at most (one row at least); None: what suits the device.
    """
    most = max(1, (_AT_ONCE.get(device, _AT_ONCE["cuda"]) if at_once is None else at_once) // codes)
    pieces = max(1, -(-rows // most))
    return max(1, -(-rows // pieces))


def _codes(head: nn.Module) -> int:
    weight = head.weight
    assert isinstance(weight, Tensor)
    return len(weight)


def _scores(head: nn.Module, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits: Tensor = head(hidden)
    likeliest = logits.argmax(-1)
    logits = logits.float()
    log_z = logits.logsumexp(-1)
    return log_z - logits.gather(1, targets[:, None])[:, 0], log_z, likeliest


class _MeanLoss(torch.autograd.Function):
    """Loss and gradients of a piece of the rows at a time; the backward pass only scales the gradients."""

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
        hits: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        count = len(hidden)
        matrix = weight.to(dtype)
        offset = None if bias is None else bias.to(dtype)
        sums = torch.zeros(2, dtype=torch.float32, device=hidden.device)
        found = torch.zeros((), dtype=torch.int64, device=hidden.device)
        hidden_gradient = torch.empty_like(hidden) if of_hidden else None
        weight_gradient: Tensor | None = None
        bias_gradient = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and of_bias else None
        for start in range(0, count, rows):
            states, ids = hidden[start : start + rows].to(dtype), targets[start : start + rows]
            made, right, slope = _slopes(matmul.forward(states, matrix, offset), ids, z_weight, bias_gradient, hits)
            sums, found = sums + made, found + right
            if hidden_gradient is not None:
                hidden_gradient[start : start + rows] = matmul.backward(slope, states, matrix)
            if of_weight:
                part = slope.t() @ states
                weight_gradient = part.float() if weight_gradient is None else weight_gradient.add_(part)
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)
        ctx.dtypes, ctx.count = (weight.dtype, None if bias is None else bias.dtype), count
        nats, z = (sums / count).unbind()
        loss, share = nats + z_weight * z, found / count
        ctx.mark_non_differentiable(nats, z, share)
        return loss, nats, z, share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        of_weight, of_bias = ctx.dtypes
        scale = gradient / ctx.count
        return (
            None if hidden is None else hidden * scale.to(hidden.dtype),
            None if weight is None else (weight * scale).to(of_weight),
            None if bias is None else (bias * scale).to(of_bias),
            *[None] * 5,
        )


def _slopes(
    logits: Tensor, ids: Tensor, z_weight: float, bias_gradient: Tensor | None, hits: bool
) -> tuple[Tensor, Tensor | int, Tensor]:
    """Of logits [m, V]: sums of cross-entropy and of log² Z [2], hits if wanted, and the gradient of the loss's sum.

    The gradient takes the place of the logits, which the caller must not hold, lest there be two copies. The mean's
    1/M, and a loss scale, come last: in float16 a small share of a small probability would be 0.
    """
    found = (logits.argmax(-1) == ids).sum() if hits else 0
    fast = cross_entropy_slopes(logits, ids, z_weight, bias_gradient)
    if fast is not None:
        nats, log_z = fast
        return torch.stack((nats.sum(), log_z.square().sum())), found, logits
    dtype, ids, logits = logits.dtype, ids[:, None], logits.float()  # of 16 bits, the memory is given back here
    right = logits.gather(1, ids)
    log_z = logits.logsumexp(-1, keepdim=True)
    sums = torch.stack(((log_z - right).sum(), log_z.square().sum()))
    slope = logits.sub_(log_z).exp_()
    if z_weight:
        slope.mul_(1 + 2 * z_weight * log_z)
    slope.scatter_add_(1, ids, torch.full_like(right, -1))
    if bias_gradient is not None:
        bias_gradient += slope.sum(0)
    return sums, found, slope.to(dtype)


@accelerated
def cross_entropy_slopes(
    logits: Tensor, ids: Tensor, z_weight: float, bias_gradient: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Put the gradient of the summed cross-entropy + z_weight log² Z in the place of logits, in one pass.

    PyTorch has no such function; what it does instead stands in `_slopes`, which must not hold the logits twice.

    Args:
        logits: [M, V]; overwritten.
        ids: int64 [M], the right answers, each at least 0 and below V.
        z_weight: weight of log² Z.
        bias_gradient: float32 [V], to which the gradient's sum over rows is added before it is rounded; None: nobody
            wants it.

    Returns:
        Cross-entropy and log Z of each row, float32 [M] each; None if nothing was done.
    """
    return None
