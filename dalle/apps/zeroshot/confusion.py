"""A confusion matrix as an image."""

from __future__ import annotations

from PIL import Image, ImageDraw
from torch import Tensor

from dalle.images.fonts import font_for

_FONT_SIZE = 14
_GAP = 8
_MAX_SIDE = 2000  # of the matrix in pixels, but every cell has at least 2
_DARKEST = (32, 84, 160)  # a cell with all images of its class


def confusion_image(counts: Tensor, labels: list[str]) -> Image.Image:
    """Draw a confusion matrix: rows are classes, columns predictions; darker cells hold more of their row.

    Counts are written into the cells, and names beside the matrix, where there is room. A number replaces a name that
    no font of this machine can show.

    Args:
        counts: int64 [L, L].
        labels: L names.
    """
    classes = len(labels)
    cell = max(2, min(44, _MAX_SIDE // classes))
    has_names = cell > _FONT_SIZE
    empty = Image.new("L", (1, 1))
    names = [_text_mask(label, number) if has_names else empty for number, label in enumerate(labels, 1)]
    margin = max(name.width for name in names) + 2 * _GAP
    side = classes * cell
    sheet = Image.new("RGB", (margin + side + _GAP, margin + side + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = font_for("0", _FONT_SIZE - 2)
    fractions = counts / counts.sum(1, keepdim=True).clamp(min=1)
    for row in range(classes):
        for column in range(classes):
            fraction = float(fractions[row, column])
            color = tuple(round(255 + (darkest - 255) * fraction) for darkest in _DARKEST)
            left, top = margin + column * cell, margin + row * cell
            draw.rectangle(
                (left, top, left + cell - 1, top + cell - 1), fill=color, outline="lightgrey" if has_names else None
            )
            if counts[row, column] and cell >= 32:
                center = (left + cell / 2, top + cell / 2)
                ink = "white" if fraction > 0.5 else "black"
                draw.text(center, str(int(counts[row, column])), fill=ink, font=font, anchor="mm")
    for number, name in enumerate(names):
        middle = margin + number * cell + cell // 2
        sheet.paste("black", (margin - _GAP - name.width, middle - name.height // 2), name)
        vertical = name.rotate(90, expand=True)
        sheet.paste("black", (middle - vertical.width // 2, margin - _GAP - vertical.height), vertical)
    return sheet


def _text_mask(label: str, number: int) -> Image.Image:
    """A label, or its number if no font has its letters, as a mask to paste a color through."""
    text = label if len(label) <= 32 else f"{label[:31]}…"
    font = font_for(text, _FONT_SIZE)
    if font is None:
        text, font = str(number), font_for("0", _FONT_SIZE)
    assert font is not None
    left, top, right, bottom = font.getbbox(text)
    mask = Image.new("L", (round(right - left) + 1, round(bottom - top) + 1))
    ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=font)
    return mask
