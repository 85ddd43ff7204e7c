"""The colors of an image, judged exactly: its background's by the border, a one-color icon's by what lies on it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dalle.data.drawings.captions import COLORS as NAMED

COLORS: dict[str, tuple[int, ...]] = {name: color.rgb for name, color in NAMED.items()}
"""Name -> red, green, blue in 0..255, as training images have them."""
_DRAWN = 24 / 255  # what differs from the background by more in any channel is drawn


def border_color(image: Tensor) -> Tensor:
    """Median of the outermost ring of pixels, a 32nd of the side wide: [3, H, W] in [0, 1] -> [3].

    The median, as a drawing that touches the border is no part of the background.
    """
    width = max(1, image.shape[-1] // 32)
    inside = torch.zeros(image.shape[-2:], dtype=torch.bool)
    inside[width:-width, width:-width] = True
    return image[:, ~inside].median(1).values


def drawn_color(image: Tensor) -> Tensor | None:
    """Median of the pixels that are not background, [3]; None where less than 1 % of them is."""
    away = (image - border_color(image)[:, None, None]).abs().amax(0) > _DRAWN  # [H, W]
    if away.double().mean() < 0.01:
        return None
    return image[:, away].median(1).values


def named_color(color: Tensor, colors: Mapping[str, tuple[int, ...]] = COLORS) -> str:
    """The name of the nearest color in CIELAB, for [3] in [0, 1]."""
    names = list(colors)
    table = torch.tensor([colors[name] for name in names], dtype=torch.float64) / 255  # [K, 3]
    distances = (lab(table) - lab(color.double())).square().sum(-1)
    return names[int(distances.argmin())]


def lab(colors: Tensor) -> Tensor:
    """CIELAB (D65) of sRGB [..., 3] in [0, 1]: distances in it are about as people see them."""
    linear = torch.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    to_xyz = torch.tensor(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], dtype=torch.float64
    )
    ratio = (linear @ to_xyz.T) / torch.tensor([0.95047, 1.0, 1.08883], dtype=torch.float64)
    cube = torch.where(ratio > (6 / 29) ** 3, ratio.clamp(min=1e-12) ** (1 / 3), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = cube.unbind(-1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), -1)
