"""An image enlarged, turned and shifted, for videos."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def moved(image: Tensor, zoom: float, rotate: float, shift_x: float, shift_y: float) -> Tensor:
    """An image [1, 3, H, W] about its middle enlarged and turned, then shifted; what was outside is mirrored.

    Args:
        image: [1, 3, H, W] in [0, 1].
        zoom: above 1 enlarges.
        rotate: degrees, counter-clockwise.
        shift_x: pixels to the right.
        shift_y: pixels down.
    """
    height, width = image.shape[2:]
    angle = math.radians(rotate)
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    # Where a pixel comes from: the motion backwards, in units of half a side as grid_sample counts.
    x, y = 2 * shift_x / width, 2 * shift_y / height
    ratio = height / width
    rows = [[cos, -sin * ratio], [sin / ratio, cos]]
    matrix = [[*row, -(row[0] * x + row[1] * y)] for row in rows]
    grid = F.affine_grid(torch.tensor([matrix], device=image.device), list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
