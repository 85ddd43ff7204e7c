"""Range checks of ids, before compiled code uses them as memory offsets."""

from __future__ import annotations

import torch
from torch import Tensor


def check_ids(ids: Tensor, count: int, what: str) -> None:
    """Raise an IndexError for ids outside [0, count).

    CPU only: on other devices reading the ids would block until they are computed, and PyTorch's own kernels check
    indices there.

    Args:
        ids: int, of any shape.
        count: number of valid ids.
        what: the plural noun for the message.

    Raises:
        IndexError: an id is below 0, or `count` or more.
    """
    if ids.device.type != "cpu" or not ids.numel() or torch.compiler.is_compiling() or not _has_values(ids):
        return
    low, high = (int(end) for end in ids.aminmax())  # one pass over the ids
    if low < 0 or high >= count:
        raise IndexError(f"{what} run from {low} to {high}; they must be at least 0 and below {count}")


def _has_values(ids: Tensor) -> bool:
    """Whether the tensor's numbers can be read: not those of fake tensors, nor those inside vmap."""
    return type(ids) is Tensor and torch._C._functorch.peek_interpreter_stack() is None
