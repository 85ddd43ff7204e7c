"""Operations in C++ that is compiled for this machine's CPU; where there is no compiler, each of them declines.

Only `dalle.kernels.dispatch` may import it, which lets these go first.
"""

from collections.abc import Callable
from typing import Any

from dalle.kernels.native import (
    attention,
    cross_entropy,
    decode_attention,
    decode_step,
    group_norm,
    linear,
    sample,
    winograd,
)

operations: dict[str, Callable[..., Any]] = {
    operation.__name__: operation
    for operation in (
        *(attention.attend, attention.attend_packed, winograd.conv3x3, winograd.image_layout),
        *(cross_entropy.cross_entropy_slopes, group_norm.group_norm, linear.linear, sample.sample_tokens),
        *(decode_attention.decode_attention, decode_step.decode_step),
    )
}

__all__ = ["operations"]
