"""Layout and compositing of drawings: positions, backgrounds, alpha blending. Knows nothing of captions.

Shapes: S side of the image, s side of an object, in pixels.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dalle.data.drawings.captions import COLORS, INKS, ROWS
from dalle.data.drawings.render import Color

WHITE: Color = COLORS["white"].rgb
_CONTRAST = 140  # Euclidean RGB distance (at most 441) at which two colors are easy to tell apart
_SAME = 40  # colors that differ by less in every channel are hard to tell apart
_TRIES = 8  # random backgrounds to try for one on which the objects are visible


@dataclass(frozen=True)
class Composition:
    """A composed image before alpha blending, its caption, and how both were made.

    Attributes:
        layer: the objects, uint8 [S, S, 4], RGBA.
        color: background color.
        caption: the caption.
        sources: indices of the drawings, in the order of the caption.
        boxes: (top, left, side) of each object's square, in pixels.
        inks: color name of each object; None if the caption does not name it.
        relation: spatial relation of two objects or arrangement of three; None for one object.
        background: color name of the background; None if the caption does not name it (white).
    """

    layer: np.ndarray
    color: Color
    caption: str
    sources: tuple[int, ...]
    boxes: tuple[tuple[int, int, int], ...]
    inks: tuple[str | None, ...]
    relation: str | None = None
    background: str | None = None

    def paint(self) -> np.ndarray:
        """The image, uint8 [S, S, 3]."""
        return paint(self.layer, self.color)


def paint(layer: np.ndarray, color: Color) -> np.ndarray:
    """Blend RGBA uint8 [H, W, 4] over a color -> uint8 [H, W, 3]."""
    alpha = layer[..., 3:].astype(np.uint16)
    # In 16 bits: 255 * 255 does not fit in 8. Adding 127 rounds to nearest
    over = layer[..., :3] * alpha + np.asarray(color, dtype=np.uint16) * (255 - alpha)
    return ((over + 127) // 255).astype(np.uint8)


def scene_boxes(relation: str, side: int, rng: random.Random, shift: float) -> tuple[tuple[int, int, int], ...]:
    """Non-overlapping squares (top, left, side) for the two or three objects of a scene, in the order of the caption.

    Args:
        relation: one of `captions.RELATIONS` (two objects) or `captions.ROWS` (three).
        side: side of the image, in pixels.
        rng: source of all randomness.
        shift: largest distance from the center line, as a fraction of the side.
    """
    count = 3 if relation in ROWS else 2
    size = side // count
    most = min(round(shift * side), (side - size) // 2)  # objects stay inside the image
    across = (side - size) // 2 + rng.randint(-most, most)  # the same for all objects, so that they form a line
    # What does not divide evenly is left at both ends
    along = [number * size + (side - count * size) // 2 for number in range(count)]
    if relation in ("right", "below"):
        along.reverse()
    if relation in ("left", "right", "left to right"):
        return tuple((across, at, size) for at in along)
    return tuple((at, across, size) for at in along)


def place(layer: np.ndarray, object_: np.ndarray, top: int, left: int) -> None:
    """Copy an RGBA object [s, s, 4] into a transparent region of a layer [S, S, 4], in place."""
    side = object_.shape[0]
    layer[top : top + side, left : left + side] = object_


def clamp_inside(object_: np.ndarray, side: int, top: int, left: int) -> tuple[int, int]:
    """The position nearest to (top, left) at which all visible pixels of an object [s, s, 4] lie inside the image."""
    rows, columns = np.nonzero(object_[..., 3].any(1))[0], np.nonzero(object_[..., 3].any(0))[0]
    if not len(rows):
        return top, left
    top = max(min(top, side - 1 - int(rows[-1])), -int(rows[0]))
    left = max(min(left, side - 1 - int(columns[-1])), -int(columns[0]))
    return top, left


def place_alone(object_: np.ndarray, side: int, top: int, left: int) -> np.ndarray:
    """An object [s, s, 4] alone on a transparent layer [S, S, 4]; its transparent margin may lie outside."""
    layer = np.zeros((side, side, 4), dtype=np.uint8)
    size = object_.shape[0]
    rows = slice(max(0, -top), min(size, side - top))
    columns = slice(max(0, -left), min(size, side - left))
    # Only the part inside the image; the rest is transparent
    layer[top + rows.start : top + rows.stop, left + columns.start : left + columns.stop] = object_[rows, columns]
    return layer


def rotate(object_: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate an RGBA object about its center, counterclockwise; corners that leave its square are cut off."""
    # Premultiplied alpha ("RGBa"), or the colors of transparent pixels would bleed into the interpolated edges.
    image = Image.fromarray(object_).convert("RGBa")
    return np.array(image.rotate(degrees, Image.Resampling.BICUBIC).convert("RGBA"))


def choose_ink(rng: random.Random) -> str:
    """A random color name for a single-color drawing."""
    return rng.choice(INKS)


def choose_background(rng: random.Random, layer: np.ndarray, inks: list[Color]) -> str:
    """A random background color name on which the objects are visible.

    Args:
        rng: source of all randomness.
        layer: the objects, RGBA uint8 [S, S, 4].
        inks: colors of the single-color objects, all of which the background must contrast with.
    """
    # Colors that contrast with all inks; if there are none, any color, of which the tries below choose
    far = [name for name, color in COLORS.items() if all(color_distance(color.rgb, ink) >= _CONTRAST for ink in inks)]
    choice = far or list(COLORS)
    for _ in range(_TRIES):
        background = rng.choice(choice)
        if not blends_in(layer, COLORS[background].rgb):
            break
    return background


def color_distance(a: Color, b: Color) -> float:
    """Euclidean distance of two RGB colors, 0 to 441."""
    return float(np.linalg.norm(np.subtract(a, b, dtype=np.float64)))


def blends_in(layer: np.ndarray, color: Color) -> bool:
    """Whether most visible pixels have nearly this color; samples one pixel in sixteen for speed."""
    few = layer[::4, ::4]
    visible = few[few[..., 3] > 127, :3].astype(np.int16)  # signed, as differences of uint8 wrap around
    similar = (abs(visible - np.asarray(color, dtype=np.int16)) < _SAME).all(-1)
    return bool(similar.sum() * 2 > len(visible))  # more than half
