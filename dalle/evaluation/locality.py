"""Whether codes are local, that is, depend on their own cell only. Pure functions; knows nothing of tokenizers.

Codes that depend on the whole image (through attention or norms of the encoder) identify the image: a transformer can
memorize which codes go together. Codes of their own cell only do not make that possible.

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
    darkest = -F.max_pool2d(-images, factor)  # [B, 3, h, w]; a minimum is a maximum of the negative
    return (darkest == 1).all(1)


def shift(images: Tensor, down: int, right: int) -> Tensor:
    """Shift images down and to the right by 0 or more pixels; the border is repeated where nothing was.

    Args:
        images: float [B, 3, H, W].
        down: pixels, less than H.
        right: pixels, less than W.

    Returns:
        [B, 3, H, W]
    """
    visible = images[..., : images.shape[-2] - down, : images.shape[-1] - right]
    return F.pad(visible, (right, 0, down, 0), mode="replicate")


def unchanged_codes(codes: Tensor, others: Tensor, down: int = 0, right: int = 0) -> Tensor:
    """Which codes are the same in the shifted image; compares the cells that are in both grids.

    Args:
        codes: int64 [B, h, w].
        others: int64 [B, h, w], of the images shifted by `down` and `right` cells.
        down: cells, less than h.
        right: cells, less than w.

    Returns:
        bool [B, h - down, w - right]
    """
    rows, columns = codes.shape[-2:]
    return codes[..., : rows - down, : columns - right] == others[..., down:, right:]


def entropy_given_position(counts: Tensor) -> float:
    """Empirical entropy of codes given their position, in nats: 0 if every position always has the same code.

    The plug-in estimate, which is biased low where a position was counted few times relative to its number of codes.

    Args:
        counts: int64 [P, K], how often each of P positions had each code.

    Returns:
        Mean over everything counted; nan if that is nothing.
    """
    by_position = counts.double()
    totals = by_position.sum(1, keepdim=True)  # [P, 1]
    # entr is -p log p, and 0 at 0
    entropies = torch.special.entr(by_position / totals.clamp(min=1)).sum(1)  # [P]
    return float((entropies * totals[:, 0]).sum() / totals.sum())
