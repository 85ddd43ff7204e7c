"""From logits to one token a row. Randomness comes in as uniform numbers: nothing here draws any.

Letters: B batch, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dalle.kernels.dispatch import accelerated


@accelerated
def sample_tokens(
    logits: Tensor,
    uniform: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    failed: Tensor | None = None,
) -> Tensor:
    """`dalle.generation.sampling.sample` for a temperature above 0, of float32 logits [B, V]: int64 [B]."""
    largest = logits.amax(-1, keepdim=True)
    note_failure(failed, largest)
    # The shift keeps tiny temperatures from overflowing
    logits = (logits - largest) / temperature
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    return draw(logits.softmax(-1), uniform)


def note_failure(failed: Tensor | None, largest: Tensor) -> None:
    """Set `failed` where one of the largest logits is not finite: a nan is the largest of all."""
    if failed is not None:
        failed.logical_or_(largest.isfinite().all().logical_not_())


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all but the k largest of each row to -inf; of equal ones the lower ids stay.

    Args:
        logits: [B, V].
        k: at least 1.

    Returns:
        [B, V].
    """
    if k >= logits.shape[-1]:
        return logits
    largest = logits.topk(k, dim=-1).values  # [B, k] descending
    return _keep(logits, largest, torch.full_like(logits[:, :1], k, dtype=torch.int64))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Nucleus (Holtzman et al. 2019, arXiv 1904.09751): keep the fewest of the largest whose probabilities sum to p.

    Args:
        logits: [B, V]; -inf where a token is out already.
        p: in (0, 1].

    Returns:
        [B, V], -inf where dropped; of equal ones the lower ids stay. At least one stays in each row.
    """
    if p >= 1:
        return logits
    ordered = logits.sort(dim=-1, descending=True).values
    before = ordered.softmax(-1).cumsum(-1) < p  # [B, V] the mass up to here does not suffice
    count = (before.sum(-1, keepdim=True) + 1).clamp(max=logits.shape[-1])
    return _keep(logits, ordered, count)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Inverse-CDF sampling: the first token up to which the summed probability exceeds the uniform number.

    Args:
        probabilities: [B, V] float, not necessarily summing to exactly 1.
        uniform: [B] in [0, 1).

    Returns:
        int64 [B]; never a token of probability 0.
    """
    cdf = probabilities.cumsum(-1)
    total = cdf[:, -1:]
    # Rounding can lift the target to the total itself: then the last token that adds anything is meant.
    last = (cdf < total).sum(-1)
    return torch.minimum((cdf <= uniform[:, None].to(cdf.dtype) * total).sum(-1), last)


def _keep(logits: Tensor, ordered: Tensor, count: Tensor) -> Tensor:
    """Keep the `count` [B, 1] largest of each row, given the largest in falling order; ties go to the lower ids."""
    threshold = ordered.gather(-1, count - 1)  # [B, 1]
    above, equal = logits > threshold, logits == threshold
    places = count - above.sum(-1, keepdim=True)
    return logits.masked_fill(~(above | (equal & (equal.cumsum(-1) <= places))), -torch.inf)
