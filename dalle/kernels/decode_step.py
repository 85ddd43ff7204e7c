"""A fused decode step: all blocks of a transformer over a few new tokens in one call, where native code exists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from dalle.kernels.block_weights import LayerWeights, Rope
from dalle.kernels.dispatch import accelerated
from dalle.kernels.kv_cache import KVCache
from dalle.kernels.pattern import LayerMask


class DecodeStep(Protocol):
    """All blocks over one KV cache, prepared for a fixed number of rows."""

    def run(self, x: Tensor, masks: Sequence[LayerMask], rope: Rope | None, cache: KVCache) -> Tensor:
        """Run new tokens [B, T, C] through all blocks, to [B, T, C]; appends their keys and values to the cache."""
        ...

    def serves(self, cache: KVCache, rows: int) -> bool:
        """Whether it was prepared for this cache and this many rows, B T."""
        ...


@accelerated
def decode_step(
    layers: Sequence[LayerWeights], cache: KVCache, rows: int, activation: str, rotate_values: bool
) -> DecodeStep | None:
    """Prepare a fused step over `rows` new tokens; None: there is none, and the blocks run one by one.

    Args:
        layers: the weights of the blocks.
        cache: the cache it will work on.
        rows: new tokens per step, over the whole batch.
        activation: `TransformerConfig.feed_forward`.
        rotate_values: whether rotary positions apply to values too.
    """
    return None
