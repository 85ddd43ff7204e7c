"""Whether a code depends on its own cell only: pure functions of images and codes. Knows nothing of tokenizers.

A transformer learns from codes what goes with what. Codes that depend on the whole image (through attention or norms of
the encoder) tell each image apart from all others, so that it can be looked up; codes of their own cell cannot.

Shapes: B images, H W pixels, h w cells, K size of the codebook. A cell is H / h by W / w pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def blank_cells(images: Tensor, factor: int) -> Tensor:
    """Which cells are purely white.

    Args:
        images: float [B, 3, H, W] in [0, 1].
        factor: pixels a side of a cell; divides H and W.

    Returns:
        bool [B, H / factor, W / factor]
    """
    darkest = -F.max_pool2d(-images, factor)  # [B, 3, h, w]
    return (darkest == 1).all(1)


def shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Images moved by so many pixels (0 or more); what comes in at the top and left repeats the border.

    Args:
        images: float [B, 3, H, W].
        down: pixels, less than H.
        right: pixels, less than W.

    Returns:
        [B, 3, H, W]
    """
    moved = images[..., : images.shape[-2] - down, : images.shape[-1] - right]
    return F.pad(moved, (right, 0, down, 0), mode="replicate")


def unchanged(codes: Tensor, others: Tensor, down: int = 0, right: int = 0) -> Tensor:
    """Which codes reappear `down` and `right` cells further on; only cells that are in both grids count.

    Args:
        codes: int64 [B, h, w].
        others: int64 [B, h, w], of the images moved `down` and `right`.
        down: cells, less than h.
        right: cells, less than w.

    Returns:
        bool [B, h - down, w - right]
    """
    rows, columns = codes.shape[-2:]
    return codes[..., : rows - down, : columns - right] == others[..., down:, right:]


def entropy_given_place(counts: Tensor) -> float:
    """Empirical entropy of codes given their place, in nats: 0 where each place has one code always.

    The plug-in estimate, which is too low where a place has been seen few times beside its number of codes.

    Args:
        counts: int64 [P, K], how often each of P places had each code.

    Returns:
        Mean over all that was counted; nan if that is nothing.
    """
    by_place = counts.double()
    totals = by_place.sum(1, keepdim=True)  # [P, 1]
    entropies = torch.special.entr(by_place / totals.clamp(min=1)).sum(1)  # [P]
    return float((entropies * totals[:, 0]).sum() / totals.sum())
