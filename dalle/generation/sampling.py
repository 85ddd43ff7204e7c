"""From logits to a token, as pure functions. Randomness comes in as uniform numbers: nothing here draws any.

Letters: B batch, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dalle.config import config
from dalle.kernels import native


@config
class SamplingConfig:
    guidance: float = 1.0
    """Classifier-free guidance scale; 1 is none."""
    guidance_until: int | None = None
    """Draw so many image tokens with guidance and the others, twice as fast, without; null: all with it."""
    temperature: float = 1.0
    """0 always takes the most likely code; 1 is the model's own distribution."""
    top_k: int | None = None
    """Draw from the k most likely codes only; null from all."""
    top_p: float | None = None
    """Draw from the most likely codes that together have this probability; null from all."""

    def __post_init__(self) -> None:
        check(self.temperature, self.top_k, self.top_p, self.guidance, self.guidance_until)

    def updated(
        self,
        guidance: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_until: int | None = None,
    ) -> SamplingConfig:
        """These options where they are given, its own elsewhere."""
        given: dict[str, Any] = {"guidance": guidance, "guidance_until": guidance_until}
        given |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        return replace(self, **{name: value for name, value in given.items() if value is not None})


def check(
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    guidance: float = 1.0,
    guidance_until: int | None = None,
) -> None:
    """Refuse sampling options out of range.

    Raises:
        ValueError: guidance or temperature below 0 or not finite, guidance_until below 0, top_k below 1, or top_p
            outside (0, 1].
    """
    if not 0 <= guidance < float("inf"):
        raise ValueError(f"guidance is {guidance}; it must be 0 or more (1 is no guidance)")
    if guidance_until is not None and guidance_until < 0:
        raise ValueError(f"guidance_until is {guidance_until}; it must be 0 or more image tokens")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; it must be 0 (the most likely token) or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be at least 1 (leave it out to keep all codes)")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be above 0 and at most 1")


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance on logits (Ho & Salimans 2022, arXiv 2207.12598): `u + scale * (c - u)`."""
    return unconditional + scale * (conditional - unconditional)


def sample(
    logits: Tensor,
    uniform: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    failed: Tensor | None = None,
) -> Tensor:
    """Draw one token a row: temperature, then top-k, then nucleus, then the inverse of the distribution function.

    Args:
        logits: [B, V], the largest of each row finite, none nan.
        uniform: [B] in [0, 1), one number a row.
        temperature: divides the logits; 0 takes the most likely token (the lowest id of several).
        top_k: keep the k most likely tokens; None, or k above V, keeps all.
        top_p: keep the fewest most likely tokens that together have at least this probability; None or 1 keeps all.
        failed: bool scalar on the logits' device, set where a row is no distribution; nothing waits for it.

    Returns:
        int64 [B]; of rows that are no distribution some token.

    Raises:
        ValueError: an option is out of range.
    """
    check(temperature, top_k, top_p)
    if temperature == 0:
        largest, drawn = logits.max(-1)
        _note(failed, largest)
        return drawn
    logits = logits.float()
    fast = native.sample(logits, uniform, temperature, top_k, top_p, failed)
    if fast is not None:
        return fast
    largest = logits.amax(-1, keepdim=True)
    _note(failed, largest)
    # The shift keeps tiny temperatures from overflowing
    logits = (logits - largest) / temperature
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    return draw(logits.softmax(-1), uniform)


def _note(failed: Tensor | None, largest: Tensor) -> None:
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


def _keep(logits: Tensor, ordered: Tensor, count: Tensor) -> Tensor:
    """Keep the `count` [B, 1] largest of each row, given the largest in falling order; ties go to the lower ids."""
    threshold = ordered.gather(-1, count - 1)  # [B, 1]
    above, equal = logits > threshold, logits == threshold
    places = count - above.sum(-1, keepdim=True)
    return logits.masked_fill(~(above | (equal & (equal.cumsum(-1) <= places))), -torch.inf)


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
