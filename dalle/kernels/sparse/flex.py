"""Sparse attention by PyTorch's FlexAttention, compiled, which skips fully masked blocks of 128 x 128.

For whole sequences only, as in training: every other length would be compiled anew.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from dalle.kernels.pattern import Pattern

logger = logging.getLogger(__name__)

_RECOMPILE_LIMIT = 64


def attend(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    """Attention over a whole sequence of text and image: [B, H, S, D] each, to [B, H, S, D]."""
    order, blocks = _blocks(pattern, q.shape[2], q.device)
    if order is None:
        return _run(q, k, v, blocks)
    q, k, v = (x.index_select(2, order) for x in (q, k, v))
    return _run(q, k, v, blocks).index_select(2, order.argsort())


@functools.cache
def runs(dtype: torch.dtype, device: torch.device, width: int, backward: bool) -> bool:
    """Whether FlexAttention compiles here for this head width: tried once, with a warning if it does not."""
    try:
        with torch.set_grad_enabled(backward):
            # More than one block of 128
            q, k, v = torch.ones(3, 1, 1, 200, width, dtype=dtype, device=device, requires_grad=backward)
            mixed = attend(q, k, v, Pattern("row", 5, 15))
            if backward:
                mixed.sum().backward()
    except (RuntimeError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        logger.warning("sparse attention uses dense masks, as FlexAttention does not run here: %s", reason)
        return False
    return True


def _run(q: Tensor, k: Tensor, v: Tensor, blocks: BlockMask) -> Tensor:
    if torch.compiler.is_compiling():
        return flex_attention(q, k, v, block_mask=blocks)
    # Compiled anew for each batch size, dtype and direction: more often than torch expects of one function
    with torch._dynamo.config.patch(recompile_limit=_RECOMPILE_LIMIT, accumulated_recompile_limit=_RECOMPILE_LIMIT):
        return _compiled()(q, k, v, block_mask=blocks)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    """With static shapes: torch 2.13 generates faulty CPU code for dynamic ones."""
    return torch.compile(flex_attention, dynamic=False)


@functools.lru_cache(maxsize=16)
def _blocks(pattern: Pattern, length: int, device: torch.device) -> tuple[Tensor | None, BlockMask]:
    """The order to put tokens in (None: as they are), and the block mask in that order.

    A column is spread over the whole image, so columns are put one after the other, as in the paper's figure 11: only
    then are whole blocks masked.
    """
    seen = pattern.mask(length)
    if pattern.kind != "column":
        return None, _block_mask(seen.to(device))
    rows = -(-(length - pattern.text) // pattern.width)
    image = torch.arange(rows * pattern.width).view(rows, pattern.width).T.flatten() + pattern.text  # column by column
    order = torch.cat((torch.arange(pattern.text), image[image < length]))  # the last line may be incomplete
    return order.to(device), _block_mask(seen[order][:, order].to(device))


def _block_mask(seen: Tensor) -> BlockMask:
    """From a mask, bool [S, S]; in partly masked blocks the kernel looks up each pair."""

    def look(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return seen[query, key]

    queries, keys = seen.shape
    return create_block_mask(look, None, None, queries, keys, device=str(seen.device))
