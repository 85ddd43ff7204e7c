"""All blocks of a transformer over few new tokens in one call: what such a call is given, and whether there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from dalle.kernels.block_weights import LayerWeights, Rope
from dalle.kernels.dispatch import accelerated
from dalle.kernels.kv_cache import KVCache
from dalle.kernels.pattern import LayerMask


class DecodeStep(Protocol):
    """The blocks on top of one cache, for one number of rows."""

    def run(self, x: Tensor, masks: Sequence[LayerMask], rope: Rope | None, cache: KVCache) -> Tensor:
        """What the blocks make of new tokens [B, T, C]; their keys and values are stored behind the others."""
        ...

    def serves(self, cache: KVCache, rows: int) -> bool:
        """Whether it was made for this cache, and for so many rows B T."""
        ...


@accelerated
def decode_step(
    layers: Sequence[LayerWeights], cache: KVCache, rows: int, activation: str, rotate_values: bool
) -> DecodeStep | None:
    """Prepare one call for all blocks over `rows` new tokens; None: there is none, and the blocks run one by one.

    Args:
        layers: the blocks.
        cache: the cache that it will work on.
        rows: new tokens of a step, over the batch.
        activation: kind of feed-forward part, as `TransformerConfig.feed_forward`.
        rotate_values: whether rotary positions turn values too.
    """
    return None
