"""From logits to one token per row. Randomness comes in as uniform numbers: nothing here is random by itself.

Shapes: B batch, V vocabulary.
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
    """`dalle.generation.sampling.sample` for a temperature above 0, given float32 logits [B, V]: int64 [B]."""
    largest = logits.amax(-1, keepdim=True)
    flag_nonfinite(failed, largest)
    # Subtracting the maximum first keeps tiny temperatures from overflowing
    logits = (logits - largest) / temperature
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    return inverse_cdf_sample(logits.softmax(-1), uniform)


def flag_nonfinite(failed: Tensor | None, largest: Tensor) -> None:
    """Set `failed` if the largest logit of any row is not finite; nan counts as the largest. Does not synchronize."""
    if failed is not None:
        failed.logical_or_(largest.isfinite().all().logical_not_())


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all but the k largest of each row to -inf; ties go to the lower ids.

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
    """Nucleus (Holtzman et al. 2019, arXiv 1904.09751): keep the fewest of the largest with a total probability of p.

    Args:
        logits: [B, V]; -inf for tokens that are excluded already.
        p: in (0, 1].

    Returns:
        [B, V], -inf where excluded; ties go to the lower ids. At least one token remains in each row.
    """
    if p >= 1:
        return logits
    ordered = logits.sort(dim=-1, descending=True).values
    before = ordered.softmax(-1).cumsum(-1) < p  # [B, V] the total up to here is not enough yet
    count = (before.sum(-1, keepdim=True) + 1).clamp(max=logits.shape[-1])  # with the one that reaches p
    return _keep(logits, ordered, count)


def inverse_cdf_sample(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Inverse-CDF sampling: the first token at which the cumulative probability exceeds the uniform number.

    Args:
        probabilities: [B, V] float, summing to 1 up to rounding.
        uniform: [B] in [0, 1).

    Returns:
        int64 [B]; never a token of probability 0.
    """
    cdf = probabilities.cumsum(-1)
    total = cdf[:, -1:]
    # Rounding can raise the target to the total itself: then take the last token with a positive probability.
    last = (cdf < total).sum(-1)
    return torch.minimum((cdf <= uniform[:, None].to(cdf.dtype) * total).sum(-1), last)


def _keep(logits: Tensor, ordered: Tensor, count: Tensor) -> Tensor:
    """Keep the `count` [B, 1] largest of each row, given the largest in descending order; ties go to the lower ids."""
    threshold = ordered.gather(-1, count - 1)  # [B, 1]
    above, equal = logits > threshold, logits == threshold
    # Ties share the places that larger values leave, and a running count gives these to the lower ids
    places = count - above.sum(-1, keepdim=True)
    return logits.masked_fill(~(above | (equal & (equal.cumsum(-1) <= places))), -torch.inf)
