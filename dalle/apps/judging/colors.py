"""Names the color of an image's background, by its border, and of a one-color icon, by its foreground pixels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dalle.data.drawings.captions import COLORS as NAMED

COLORS: dict[str, tuple[int, ...]] = {name: color.rgb for name, color in NAMED.items()}
"""Name -> red, green, blue in 0..255, as in the training images."""
_FOREGROUND = 24 / 255  # pixels that differ from the background by more, in any channel, are foreground


def border_color(image: Tensor) -> Tensor:
    """Median color of the outermost ring of pixels, 1/32 of the side wide: [3, H, W] in [0, 1] -> [3].

    The median, because a drawing that touches the border would shift a mean.
    """
    width = max(1, image.shape[-1] // 32)
    inside = torch.zeros(image.shape[-2:], dtype=torch.bool)
    inside[width:-width, width:-width] = True
    return image[:, ~inside].median(1).values


def foreground_color(image: Tensor) -> Tensor | None:
    """Median color of the foreground pixels, [3]; None where they are less than 1 % of the image."""
    foreground = (image - border_color(image)[:, None, None]).abs().amax(0) > _FOREGROUND  # [H, W]
    if foreground.double().mean() < 0.01:
        return None
    return image[:, foreground].median(1).values


def named_color(color: Tensor, colors: Mapping[str, tuple[int, ...]] = COLORS) -> str:
    """The name of the nearest color in CIELAB, for sRGB [3] in [0, 1]."""
    names = list(colors)
    table = torch.tensor([colors[name] for name in names], dtype=torch.float64) / 255  # [K, 3]
    distances = (srgb_to_lab(table) - srgb_to_lab(color.double())).square().sum(-1)
    return names[int(distances.argmin())]


def srgb_to_lab(colors: Tensor) -> Tensor:
    """CIELAB (D65) of sRGB [..., 3] in [0, 1]: its distances approximate perceived differences (IEC 61966-2-1)."""
    # sRGB's transfer function
    linear = torch.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    # Linear RGB to XYZ, then relative to the white of D65
    to_xyz = torch.tensor(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], dtype=torch.float64
    )
    ratio = (linear @ to_xyz.T) / torch.tensor([0.95047, 1.0, 1.08883], dtype=torch.float64)
    # CIE's f: a cube root, but linear near black, where its slope would be infinite
    cube = torch.where(ratio > (6 / 29) ** 3, ratio.clamp(min=1e-12) ** (1 / 3), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = cube.unbind(-1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), -1)
