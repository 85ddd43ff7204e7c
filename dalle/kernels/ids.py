"""Ids that must lie in a range, checked before compiled code takes them for places in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def check_ids(ids: Tensor, count: int, what: str) -> None:
    """Refuse ids outside [0, count), by one look at the least and the largest.

    On other devices nothing is read, lest a step waits for them: there torch's own kernels check what they index with.

    Args:
        ids: int, of any shape.
        count: how many there are.
        what: what the message calls them, in the plural.

    Raises:
        IndexError: one is below 0 or not below `count`.
    """
    if ids.device.type != "cpu" or not ids.numel() or torch.compiler.is_compiling() or not _has_values(ids):
        return
    low, high = (int(end) for end in ids.aminmax())
    if low < 0 or high >= count:
        raise IndexError(f"{what} run from {low} to {high}; they must be at least 0 and below {count}")


def _has_values(ids: Tensor) -> bool:
    """Whether a tensor has numbers that can be asked for: fake ones have not, nor have those within vmap."""
    return type(ids) is Tensor and torch._C._functorch.peek_interpreter_stack() is None
