"""Camera motion between the frames of a video: zoom, rotation and shift of an image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def move_camera(image: Tensor, zoom: float, rotate: float, shift_x: float, shift_y: float) -> Tensor:
    """Zoom and rotate an image about its center, then shift it; reflection fills what comes in at the borders.

    Args:
        image: [1, 3, H, W] in [0, 1].
        zoom: above 1 enlarges.
        rotate: degrees, counterclockwise.
        shift_x: pixels to the right.
        shift_y: pixels down.

    Returns:
        [1, 3, H, W]
    """
    height, width = image.shape[2:]
    angle = math.radians(rotate)
    # grid_sample asks for each output pixel where it comes from, so this is the inverse motion. Its coordinates are
    # half sides (-1 to 1 along each axis), hence the aspect ratio in the rotation and the 2 / side in the shift.
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    x, y = 2 * shift_x / width, 2 * shift_y / height
    ratio = height / width
    rows = [[cos, -sin * ratio], [sin / ratio, cos]]
    matrix = [[*row, -(row[0] * x + row[1] * y)] for row in rows]
    grid = F.affine_grid(torch.tensor([matrix], device=image.device), list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
