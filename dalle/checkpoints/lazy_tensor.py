# One memory-mapped source can be larger than memory: only the tensor in use is made
"""State dicts between file and module, whose tensors are in memory or are computed one at a time, when read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is computed when called, so that it takes no memory before.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        make: computes it.
    """

    shape: torch.Size
    dtype: torch.dtype
    make: Callable[[], Tensor]

    def __call__(self) -> Tensor:
        """Compute the tensor."""
        return self.make()


Tensors = Mapping[str, "Tensor | LazyTensor"]


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor contains neither nan nor infinity.

    `aminmax` propagates nan and needs no temporary tensor, unlike `isfinite().all()`.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(end.isfinite()) for end in tensor.aminmax())


class NotFiniteError(ValueError):
    """Weights contain nan or infinity."""
