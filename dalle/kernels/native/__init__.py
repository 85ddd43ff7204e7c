"""Operations in C++ compiled for this machine's CPU; without a compiler, each of them declines by returning None.

Only `dalle.kernels.dispatch` may import this; it tries these before the plain PyTorch versions.
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
from dalle.kernels.native.bindings import functions

operations: dict[str, Callable[..., Any]] = {
    operation.__name__: operation
    for operation in (
        *(attention.attend, attention.attend_packed, winograd.conv3x3, winograd.image_layout),
        *(cross_entropy.cross_entropy_grad_, group_norm.group_norm, linear.linear, sample.sample_tokens),
        *(decode_attention.decode_attention, decode_step.decode_step),
    )
}


def prepare() -> None:
    """Compile the kernels now if they are not yet, so that no operation waits for a compiler."""
    functions()


__all__ = ["operations", "prepare"]
