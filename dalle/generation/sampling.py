"""From logits to a token, as pure functions. Randomness comes in as uniform numbers: nothing here draws any.

Letters: B batch, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from dalle.config import config
from dalle.kernels.sample import note_failure, sample_tokens


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
        note_failure(failed, largest)
        return drawn
    logits = logits.float()
    return sample_tokens(logits, uniform, temperature, top_k, top_p, failed)
