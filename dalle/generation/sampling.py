"""From logits to a token, as pure functions. Randomness comes in as uniform numbers: nothing here is random by itself.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from dalle.generation.options import SamplingConfig
from dalle.kernels.sample import flag_nonfinite, sample_tokens


def guide(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance on logits (Ho & Salimans 2022, arXiv 2207.12598): `u + scale * (c - u)`."""
    return unconditional + scale * (conditional - unconditional)


def sample(
    logits: Tensor, uniform: Tensor, config: SamplingConfig = SamplingConfig(), failed: Tensor | None = None
) -> Tensor:
    """Sample one token per row: temperature, then top-k, then nucleus, then inverse-CDF sampling.

    Args:
        logits: [B, V]; the largest of each row must be finite.
        uniform: [B] in [0, 1), one number per row.
        config: temperature (0 takes the most likely token, ties to the lowest id), top_k, top_p.
        failed: bool scalar on the logits' device, set if the logits of any row are not finite, without synchronizing.

    Returns:
        int64 [B]; an arbitrary token for rows whose logits are not finite.
    """
    if config.temperature == 0:
        # Greedy decoding needs no division by 0 and no uniform numbers; of equals argmax takes the lowest id
        largest, tokens = logits.max(-1)
        flag_nonfinite(failed, largest)
        return tokens
    return sample_tokens(logits.float(), uniform, config.temperature, config.top_k, config.top_p, failed)
