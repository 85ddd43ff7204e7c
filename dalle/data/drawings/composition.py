"""Where drawings lie in an image and what lies behind them: geometry and painting, without words.

Letters: S pixels a side of the image.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dalle.data.drawings.captions import COLORS, INKS, ROWS
from dalle.data.drawings.render import Color

WHITE: Color = COLORS["white"].rgb
_CONTRAST = 140  # Euclidean distance of two colors, of 441, that are easily told apart
_SAME = 40  # colors that differ by less in every channel are hard to tell apart
_TRIES = 8


@dataclass(frozen=True)
class Composition:
    """An image and its caption before it is painted.

    Attributes:
        layer: the objects, uint8 [S, S, 4], RGBA.
        color: what lies behind them.
        caption: the caption.
        sources: numbers of the drawings used, in the order in which the caption names them.
        boxes: (top, left, side) of each object's square, in pixels.
        inks: name of the color of each object; None where the caption says nothing of it.
        relation: how the first object of a scene lies to the second, or how three lie; None for one object.
        background: the name by which the caption calls the color; None where it says nothing, on white.
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
    """RGBA uint8 [H, W, 4] over a color -> uint8 [H, W, 3]."""
    alpha = layer[..., 3:].astype(np.uint16)
    over = layer[..., :3] * alpha + np.asarray(color, dtype=np.uint16) * (255 - alpha)
    return ((over + 127) // 255).astype(np.uint8)


def scene_boxes(relation: str, side: int, rng: random.Random, shift: float) -> tuple[tuple[int, int, int], ...]:
    """Squares (top, left, side) of the two or three objects of a scene, none over another.

    Args:
        relation: how they lie, one of `captions.RELATIONS` (two) or `captions.ROWS` (three).
        side: pixels a side of the image.
        rng: where chance comes from.
        shift: how far they may lie off the middle line, as a share of the side, at most.
    """
    count = 3 if relation in ROWS else 2
    own = side // count
    most = min(round(shift * side), (side - own) // 2)
    across = (side - own) // 2 + rng.randint(-most, most)  # the same for all: they stand in one line
    along = [number * own + (side - count * own) // 2 for number in range(count)]
    if relation in ("right", "below"):
        along.reverse()
    if relation in ("left", "right", "left to right"):
        return tuple((across, at, own) for at in along)
    return tuple((at, across, own) for at in along)


def place(layer: np.ndarray, object_: np.ndarray, top: int, left: int) -> None:
    """Lay an RGBA object [s, s, 4] into a transparent part of a layer [S, S, 4]."""
    side = object_.shape[0]
    layer[top : top + side, left : left + side] = object_


def kept_inside(object_: np.ndarray, side: int, top: int, left: int) -> tuple[int, int]:
    """(top, left), moved as little as keeps all that is drawn of an object [s, s, 4] inside an image of `side`."""
    rows, columns = np.nonzero(object_[..., 3].any(1))[0], np.nonzero(object_[..., 3].any(0))[0]
    if not len(rows):
        return top, left
    top = max(min(top, side - 1 - int(rows[-1])), -int(rows[0]))
    left = max(min(left, side - 1 - int(columns[-1])), -int(columns[0]))
    return top, left


def lay(object_: np.ndarray, side: int, top: int, left: int) -> np.ndarray:
    """An object [s, s, 4] alone in a transparent layer [S, S, 4]; what is transparent of it may lie outside."""
    layer = np.zeros((side, side, 4), dtype=np.uint8)
    own = object_.shape[0]
    rows = slice(max(0, -top), min(own, side - top))
    columns = slice(max(0, -left), min(own, side - left))
    layer[top + rows.start : top + rows.stop, left + columns.start : left + columns.stop] = object_[rows, columns]
    return layer


def rotated(object_: np.ndarray, degrees: float) -> np.ndarray:
    """An object turned about its middle, counterclockwise; what would leave its square is cut."""
    image = Image.fromarray(object_).convert("RGBa")  # or transparent pixels' colors would bleed in
    return np.array(image.rotate(degrees, Image.Resampling.BICUBIC).convert("RGBA"))


def choose_ink(rng: random.Random) -> str:
    """The name of a color for a drawing of one color."""
    return rng.choice(INKS)


def choose_background(rng: random.Random, layer: np.ndarray, inks: list[Color]) -> str:
    """The name of a color on which the objects can be seen: far from every ink, and not that of most that is drawn."""
    far = [name for name, color in COLORS.items() if all(distance(color.rgb, ink) >= _CONTRAST for ink in inks)]
    choice = far or list(COLORS)
    for _ in range(_TRIES):
        background = rng.choice(choice)
        if not hidden(layer, COLORS[background].rgb):
            break
    return background


def distance(a: Color, b: Color) -> float:
    """Euclidean distance of two colors, 0 to 441."""
    return float(np.linalg.norm(np.subtract(a, b, dtype=np.float64)))


def hidden(layer: np.ndarray, color: Color) -> bool:
    """Whether most of what is drawn has nearly this color; looks at one pixel of sixteen."""
    few = layer[::4, ::4]
    drawn = few[few[..., 3] > 127, :3].astype(np.int16)
    near = (abs(drawn - np.asarray(color, dtype=np.int16)) < _SAME).all(-1)
    return bool(near.sum() * 2 > len(drawn))
