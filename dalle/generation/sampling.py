"""From logits to a token, as pure functions. Randomness comes in as uniform numbers: nothing here draws any.

Letters: B batch, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from dalle.generation.options import SamplingConfig
from dalle.kernels.sample import note_failure, sample_tokens


def guide(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance on logits (Ho & Salimans 2022, arXiv 2207.12598): `u + scale * (c - u)`."""
    return unconditional + scale * (conditional - unconditional)


def sample(
    logits: Tensor, uniform: Tensor, config: SamplingConfig = SamplingConfig(), failed: Tensor | None = None
) -> Tensor:
    """Draw one token a row: temperature, then top-k, then nucleus, then the inverse of the distribution function.

    Args:
        logits: [B, V], the largest of each row finite, none nan.
        uniform: [B] in [0, 1), one number a row.
        config: temperature (0 takes the lowest id of the most likely tokens), top_k, top_p.
        failed: bool scalar on the logits' device, set where a row is no distribution; nothing waits for it.

    Returns:
        int64 [B]; of rows that are no distribution some token.
    """
    if config.temperature == 0:
        largest, drawn = logits.max(-1)
        note_failure(failed, largest)
        return drawn
    return sample_tokens(logits.float(), uniform, config.temperature, config.top_k, config.top_p, failed)
