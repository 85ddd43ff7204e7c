"""Random weights that are drawn by their names, so that a fixture need not hold them."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def weight(name: str, shape: list[int], gain: float = 1.0) -> Tensor:
    """Random numbers that depend on the name and nothing else, of a size that keeps signals alive at a gain of 1."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if len(shape) == 1:
        return 1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise
    return gain * noise / torch.Size(shape[1:]).numel() ** 0.5
