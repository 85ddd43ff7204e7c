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
_LINE = round(1.6 * _TEXT)  # height of a line of text, in pixels
_COLUMNS = 8  # most images beside each other
_PAGE = 4000  # height of a page, in pixels
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


Row = tuple[str, Sequence[Image.Image], Sequence[str]]
"""A row of a labeled grid: its label, its images, and a caption for each image."""


def labeled_grid(rows: Sequence[Row], first: int = 1) -> Image.Image:
    """Arrange labeled rows of images, with a caption below each image.

    Small images are enlarged to about 128 pixels. Rows of more than 8 images are wrapped. A label for which this
    machine has no font is replaced by the row's number, with a warning in the log.

    Args:
        rows: label, images and captions of each row.
        first: number of the first row.
    """
    cell = _cell(rows)
    columns = min(_COLUMNS, max(len(images) for _, images, _ in rows))
    width = max(columns * (cell + _GAP) + _GAP, 3 * _CELL)  # room for a label above one small image
    texts = [_shown(label) for label, _, _ in rows]
    fonts = {text: font_for(text, _TEXT) for text in texts if text}
    _warn_of_fonts([text for text, font in fonts.items() if font is None])
    labels = [_label(text, fonts.get(text), number, width - 2 * _GAP) for number, text in enumerate(texts, first)]
    wrapped = [-(-len(images) // _COLUMNS) for _, images, _ in rows]  # lines of images in each row
    height = _GAP + sum(
        len(lines) * _LINE + count * (cell + _LINE) + _GAP for (lines, _), count in zip(labels, wrapped, strict=True)
    )
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    small = _latin(_TEXT - 3)
    top = _GAP
    for (lines, font), (_, images, captions), count in zip(labels, rows, wrapped, strict=True):
        for text in lines:
            draw.text((_GAP, top), text, fill="black", font=font)
            top += _LINE
        for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
            left, upper = _GAP + place % _COLUMNS * (cell + _GAP), top + place // _COLUMNS * (cell + _LINE)
            scale = cell / max(image.size)  # cells are square, and images need not be
            size = round(image.width * scale), round(image.height * scale)
            sheet.paste(image.resize(size, Image.Resampling.BICUBIC), (left, upper))
            draw.text((left, upper + cell + 2), caption, fill="dimgrey", font=small)
        top += count * (cell + _LINE) + _GAP
    return sheet


def labeled_columns(rows: Sequence[Row], columns: int = 2) -> Image.Image:
    """A labeled grid broken into columns beside each other, the first rows at the left."""
    count = -(-len(rows) // columns)
    grids = [labeled_grid(rows[first : first + count], first + 1) for first in range(0, len(rows), count)]
    sheet = Image.new("RGB", (sum(grid.width for grid in grids), max(grid.height for grid in grids)), "white")
    left = 0
    for grid in grids:
        sheet.paste(grid, (left, 0))
        left += grid.width
    return sheet


def split_to_pages(rows: Sequence[Row], first: int = 1) -> list[tuple[int, list[Row]]]:
    """Split rows to pages of about 4,000 pixels in height at most, which any viewer opens.

    A row that is too long for one page goes on, with its label, on the next.

    Args:
        rows: label, images and captions of each row.
        first: number of the first row.

    Returns:
        For each page the number of its first row, and its rows.
    """
    cell = _cell(rows)
    lines = max(1, (_PAGE - 2 * _GAP - _LINE) // (cell + _LINE))  # of images, on a page with one label
    pages: list[tuple[int, list[Row]]] = []
    left = 0
    for number, (label, images, captions) in enumerate(rows, first):
        for start in range(0, len(images), lines * _COLUMNS):
            part = slice(start, start + lines * _COLUMNS)
            needed = _LINE + -(-len(images[part]) // _COLUMNS) * (cell + _LINE) + _GAP
            if needed > left:
                pages.append((number, []))
                left = _PAGE - _GAP
            pages[-1][1].append((label, images[part], captions[part]))
            left -= needed
    return pages


def _cell(rows: Sequence[Row]) -> int:
    """Side of a cell in pixels."""
    side = max(max(image.size) for _, images, _ in rows for image in images)
    return side * max(1, _CELL // side)  # by a whole factor


def _label(text: str, font: Font | None, number: int, width: int) -> tuple[list[str], Font]:
    """A label wrapped to lines of at most `width` pixels, and its font; without a font the number of the row."""
    if font is None:
        return [f"prompt {number}" if text else f"prompt {number} (empty)"], _latin(_TEXT)
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines, font


def _shown(text: str) -> str:
    """A label without control characters, which have no glyphs."""
    return " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in text).split())


def _warn_of_fonts(labels: Sequence[str]) -> None:
    """Log what no font has glyphs for: one line for all labels that lack the same one."""
    lacking: dict[str, list[str]] = {}
    for text in labels:
        lacking.setdefault(_font_hint(text), []).append(text)
    for hint, texts in lacking.items():
        more = f" and {len(texts) - 1} more" * (len(texts) > 1)
        rows = "their rows of the grid are" if more else "its row of the grid is"
        logger.warning("no font found for %.60r%s: %s labeled by number; %s", texts[0], more, rows, hint)


def _font_hint(text: str) -> str:
    """What to install to have the label drawn."""
    # A Unicode name begins with its script (DEVANAGARI LETTER KA); Latin ends at U+024F
    named = (unicodedata.name(c, "").partition(" ")[0].capitalize() for c in text if ord(c) > 0x24F and c.isalpha())
    script = next(named, "")
    if script == "Devanagari":
        return "install a font with Devanagari, for example fonts-lohit-deva or fonts-noto-core"
    if not script and any(unicodedata.category(c) == "So" for c in text):
        # Outlines: fonts of colored bitmaps have a single size
        return "install a font with outlines of emoji, for example fonts-symbola"
    return f"install a font for it{f' ({script})' if script else ''}, for example fonts-noto-core or fonts-noto-cjk"


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
    # Invisible, they tell a layout engine how to join their neighbors, or which of two forms of an emoji is meant
    return all(c.isspace() or c in "\u200c\u200d\ufe0e\ufe0f" or bytes(font.getmask(c)) != lacking for c in set(text))


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
