"""Image grids: plain ones for training samples, and rows labeled with prompts in any script."""

from __future__ import annotations

import logging
import shutil
import subprocess
import unicodedata
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont, features
from torch import Tensor

logger = logging.getLogger(__name__)

_GAP = 8  # pixels between the cells of a grid
_CELL = 128  # smallest side of a cell, in pixels
_TEXT = 15  # font size of the labels
# Fonts with scripts beyond Latin, for systems without fontconfig (Pillow finds them by name)
_FONTS = (
    "DejaVuSans.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "Lohit-Devanagari.ttf",
    "Nirmala.ttc",
    "Nirmala.ttf",
    "mangal.ttf",
    "Kohinoor.ttc",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
)

Font = ImageFont.FreeTypeFont


def image_grid(rows: list[Tensor], gap: int = 2) -> Image.Image:
    """Arrange rows of images, each [N, 3, H, W] in [0, 1], on a white background."""
    count = max(len(row) for row in rows)
    height, width = rows[0].shape[-2:]
    sheet = torch.ones(3, len(rows) * (height + gap) + gap, count * (width + gap) + gap)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            top, left = gap + r * (height + gap), gap + c * (width + gap)
            sheet[:, top : top + height, left : left + width] = image.detach().float().cpu()
    pixels = sheet.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels)


def labeled_grid(rows: Sequence[tuple[str, Sequence[Image.Image], Sequence[str]]]) -> Image.Image:
    """Arrange labeled rows of images of one size, with a caption below each image.

    Small images are enlarged to about 128 pixels. A label for which this machine has no font is replaced by the row's
    number, with a warning in the log.

    Args:
        rows: (label, images, captions) of each row.
    """
    side = max(image.width for _, images, _ in rows for image in images)
    cell = side * max(1, _CELL // side)
    columns = max(len(images) for _, images, _ in rows)
    width = max(columns * (cell + _GAP) + _GAP, 3 * _CELL)
    line = round(1.6 * _TEXT)
    labels = [_label(label, number, width - 2 * _GAP) for number, (label, _, _) in enumerate(rows, 1)]
    height = _GAP + sum(len(lines) * line + cell + line + _GAP for lines, _ in labels)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    small = _latin(_TEXT - 3)
    top = _GAP
    for (lines, font), (_, images, captions) in zip(labels, rows, strict=True):
        for text in lines:
            draw.text((_GAP, top), text, fill="black", font=font)
            top += line
        for column, (image, caption) in enumerate(zip(images, captions, strict=True)):
            left = _GAP + column * (cell + _GAP)
            sheet.paste(image.resize((cell, cell), Image.Resampling.BICUBIC), (left, top))
            draw.text((left, top + cell + 2), caption, fill="dimgrey", font=small)
        top += cell + line + _GAP
    return sheet


def _label(text: str, number: int, width: int) -> tuple[list[str], Font]:
    """A label wrapped to lines of at most `width` pixels, and its font."""
    text = " ".join(text.split())
    font = font_for(text, _TEXT) if text else None
    if font is None:
        if text:
            logger.warning("no font found for %r: its row of the grid is labeled by number", text)
        return [f"prompt {number}" if text else f"prompt {number} (empty)"], _latin(_TEXT)
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines, font


def font_for(text: str, size: int) -> Font | None:
    """A font with glyphs for all of `text`: Pillow's own for Latin, else one of this machine's; None without one."""
    own = _latin(size)
    if _covers(own, text):
        return own
    # Combining marks are reordered and joined: without a layout engine (Raqm) they would be drawn in the wrong order
    if any(unicodedata.category(c) in ("Mc", "Mn") for c in text) and not features.check("raqm"):
        return None
    for name in [*_fontconfig(text), *_FONTS]:
        try:
            font = ImageFont.truetype(name, size)
        except OSError:
            continue
        if _covers(font, text):
            return font
    return None


def _latin(size: int) -> Font:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _covers(font: Font, text: str) -> bool:
    """Whether the font has a glyph for every character: none is drawn like a code point that it certainly lacks."""
    lacking = bytes(font.getmask("\U0010ffff"))
    # U+200C and U+200D are invisible: they tell a layout engine how to join their neighbors
    return all(c.isspace() or c in "\u200c\u200d" or bytes(font.getmask(c)) != lacking for c in set(text))


def _fontconfig(text: str) -> list[str]:
    """The best font file for the characters of `text`, according to fontconfig if it is installed."""
    program = shutil.which("fc-match")
    if program is None:
        return []
    characters = " ".join(f"{ord(c):x}" for c in sorted(set(text)) if not c.isspace())
    found = subprocess.run(
        [program, "--format=%{file}", f":charset={characters}"], capture_output=True, text=True, check=False
    )
    return [found.stdout] if found.returncode == 0 and found.stdout else []
