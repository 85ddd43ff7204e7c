"""Renders drawings as RGBA images of any size: bitmaps are resized, SVGs are rasterized on demand.

SVGs are rasterized by pillow-lunasvg: 0.1 ms for an icon at 64 x 64, against 0.7 ms with resvg (one Zen 5 core;
the two differ by 1.1 of 255 on average). It only ever reads SVGs of the embedded set, never a user's file.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

Color = tuple[int, ...]  # red, green, blue in 0..255
BLACK: Color = (0, 0, 0)
_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{}" '
    'width="{side}" height="{side}">{}</svg>'
)


@dataclass(frozen=True)
class Raster:
    """A bitmap drawing.

    Attributes:
        content: a square RGBA image file, WebP or PNG.
        mono: whether it is drawn in black only, so that it can be recolored.
    """

    content: bytes
    mono: bool = False

    def render(self, side: int, ink: Color = BLACK) -> np.ndarray:
        """Render as RGBA uint8 [side, side, 4]; `ink` is the color of a single-color drawing.

        Raises:
            ValueError: the content cannot be decoded.
        """
        try:
            image = Image.open(io.BytesIO(self.content), formats=["WEBP", "PNG"]).convert("RGBA")
        except OSError as error:
            raise ValueError(f"an image of the data set cannot be decoded ({error}): copy its file again") from error
        if image.width != side:  # Pillow resizes RGBA with premultiplied alpha
            # A whole divisor: the mean of blocks is exact and faster
            image = image.resize((side, side), Image.Resampling.BOX if image.width % side == 0 else _SMOOTH)
        pixels = np.array(image)
        if self.mono:
            pixels[..., :3] = ink
        return pixels


_SMOOTH = Image.Resampling.LANCZOS


@dataclass(frozen=True)
class Vector:
    """An SVG drawing.

    Attributes:
        viewbox: the square `viewBox`.
        body: content of the `svg` element, with `currentColor` for the color of a single-color drawing.
    """

    viewbox: str
    body: str

    def render(self, side: int, ink: Color = BLACK) -> np.ndarray:
        """Render as RGBA uint8 [side, side, 4]; `ink` replaces `currentColor`."""
        from pillow_lunasvg import SvgImageFile  # here: importing it registers SVG with Pillow globally

        red, green, blue = ink
        body = self.body.replace("currentColor", f"#{red:02x}{green:02x}{blue:02x}")
        content = _SVG.format(self.viewbox, body, side=side).encode()
        return np.array(SvgImageFile(io.BytesIO(content)).convert("RGBA"))


Art = Raster | Vector
