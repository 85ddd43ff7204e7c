"""A table of which class was taken for which, as an image."""

from __future__ import annotations

from PIL import Image, ImageDraw
from torch import Tensor

from dalle.images.grid import font_for

_TEXT = 14  # size of the letters
_GAP = 8
_LARGEST = 2000  # pixels a side of the squares of all classes together, and at least 2 a class
_SHADE = (32, 84, 160)  # of a class whose images all went there


def confusion_image(counts: Tensor, labels: list[str]) -> Image.Image:
    """Rows are classes, columns the labels that their images were given; the darker, the larger the share of the row.

    Numbers are written into the squares where there is room, and names beside them (a number stands for a name that
    this machine has no font for).

    Args:
        counts: int64 [L, L].
        labels: L names.
    """
    classes = len(labels)
    cell = max(2, min(44, _LARGEST // classes))
    named = cell > _TEXT
    names = [_name(label, number) if named else Image.new("L", (1, 1)) for number, label in enumerate(labels, 1)]
    margin = max(name.width for name in names) + 2 * _GAP
    side = classes * cell
    sheet = Image.new("RGB", (margin + side + _GAP, margin + side + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = font_for("0", _TEXT - 2)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    for row in range(classes):
        for column in range(classes):
            share = float(shares[row, column])
            colour = tuple(round(255 + (end - 255) * share) for end in _SHADE)
            left, top = margin + column * cell, margin + row * cell
            draw.rectangle(
                (left, top, left + cell - 1, top + cell - 1), fill=colour, outline="lightgrey" if named else None
            )
            if counts[row, column] and cell >= 32:
                centre = (left + cell / 2, top + cell / 2)
                ink = "white" if share > 0.5 else "black"
                draw.text(centre, str(int(counts[row, column])), fill=ink, font=font, anchor="mm")
    for number, name in enumerate(names):
        middle = margin + number * cell + cell // 2
        sheet.paste("black", (margin - _GAP - name.width, middle - name.height // 2), name)
        upright = name.rotate(90, expand=True)
        sheet.paste("black", (middle - upright.width // 2, margin - _GAP - upright.height), upright)
    return sheet


def _name(label: str, number: int) -> Image.Image:
    """A name as a mask to paint through."""
    text = label if len(label) <= 32 else f"{label[:31]}…"
    font = font_for(text, _TEXT)
    if font is None:
        text, font = str(number), font_for("0", _TEXT)
    assert font is not None
    left, top, right, bottom = font.getbbox(text)
    mask = Image.new("L", (round(right - left) + 1, round(bottom - top) + 1))
    ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=font)
    return mask
