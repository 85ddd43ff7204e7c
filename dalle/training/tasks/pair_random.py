"""Random numbers from each pair's own seed, so that they do not depend on the process or micro-batch it is in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dalle.device import to_device


class PairRandom:
    """Random numbers for a batch, one generator per pair.

    Args:
        seeds: seed of each pair.
        stream: number of the use, as pairs have one seed for all uses (caption dropout, diffusion noise, ...).
        device: device of the tensors.
    """

    def __init__(self, seeds: Sequence[int], stream: int, device: torch.device):
        # On the CPU, as the same numbers are wanted on every kind of device
        self._generators = [np.random.default_rng((seed, stream)) for seed in seeds]
        self._device = device

    def uniform(self, count: int) -> Tensor:
        """Uniform numbers in [0, 1), float32 [B, count]."""
        return self._stack([one.random(count, dtype=np.float32) for one in self._generators])

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, float32 [B, *shape]."""
        return self._stack([one.standard_normal(shape, dtype=np.float32) for one in self._generators])

    def _stack(self, rows: Sequence[np.ndarray]) -> Tensor:
        return to_device(self._device, torch.from_numpy(np.stack(rows)))
