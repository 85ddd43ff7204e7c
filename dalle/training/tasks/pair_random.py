"""What is left to chance in a pair, from its own seed: whatever process or micro-batch has it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dalle.device import to_device


class PairRandom:
    """Random numbers of the pairs of a batch.

    Args:
        seeds: of the pairs.
        use: what the numbers are for, so that others of the same pairs are not the same.
        device: where they go.
    """

    def __init__(self, seeds: Sequence[int], use: int, device: torch.device):
        self._generators = [np.random.default_rng((seed, use)) for seed in seeds]
        self._device = device

    def uniform(self, count: int) -> Tensor:
        """The next float32 [B, count] in [0, 1)."""
        return self._stacked([one.random(count, dtype=np.float32) for one in self._generators])

    def normal(self, *shape: int) -> Tensor:
        """The next float32 [B, *shape], unit Gaussian."""
        return self._stacked([one.standard_normal(shape, dtype=np.float32) for one in self._generators])

    def _stacked(self, rows: Sequence[np.ndarray]) -> Tensor:
        return to_device(self._device, torch.from_numpy(np.stack(rows)))
