"""Image grids: plain ones for training samples, and rows labeled with prompts in any script."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dalle.images.fonts import Font, Word, font_hint, latin, words_for

logger = logging.getLogger(__name__)

_GAP = 8  # pixels between the cells of a grid
_CELL = 128  # smallest side of a cell, in pixels
_TEXT = 15  # font size of the labels
_LINE = round(1.6 * _TEXT)  # height of a line of text, in pixels
_COLUMNS = 8  # most images beside each other
_PAGE = 4000  # height of a page, in pixels


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
    words = {text: words_for(text, _TEXT) for text in texts if text}
    _warn_of_fonts([text for text, found in words.items() if found is None])
    labels = [_label(text, words.get(text), number, width - 2 * _GAP) for number, text in enumerate(texts, first)]
    wrapped = [-(-len(images) // _COLUMNS) for _, images, _ in rows]  # lines of images in each row
    height = _GAP + sum(
        len(lines) * _LINE + count * (cell + _LINE) + _GAP for lines, count in zip(labels, wrapped, strict=True)
    )
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    small = latin(_TEXT - 3)
    top = _GAP
    for lines, (_, images, captions), count in zip(labels, rows, wrapped, strict=True):
        for line in lines:
            _draw_line(draw, top, line)
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


def _label(text: str, words: list[Word] | None, number: int, width: int) -> list[list[Word]]:
    """A label wrapped to lines of at most `width` pixels, each of runs of one font; without fonts the row's number."""
    if words is None:
        return [[(f"prompt {number}" if text else f"prompt {number} (empty)", latin(_TEXT))]]
    lines: list[list[Word]] = [[]]
    for word, font in words:
        longer = _appended(lines[-1], word, font)
        if not lines[-1] or _length(longer) <= width:
            lines[-1] = longer
        else:
            lines.append([(word, font)])
    return lines


def _appended(line: list[Word], word: str, font: Font) -> list[Word]:
    """A line with another word, in the run before it if that is of the same font."""
    if line and line[-1][1] is font:
        return [*line[:-1], (f"{line[-1][0]} {word}", font)]
    return [*line, (word, font)]


def _length(line: Sequence[Word]) -> float:
    """Width of a line in pixels."""
    return sum(font.getlength(run) for run, font in line) + sum(font.getlength(" ") for _, font in line[:-1])


def _draw_line(draw: ImageDraw.ImageDraw, top: int, line: Sequence[Word]) -> None:
    """Draw a line of runs side by side, on the baseline of the first."""
    left, baseline = float(_GAP), top + line[0][1].getmetrics()[0]
    for run, font in line:
        draw.text((left, baseline), run, fill="black", font=font, anchor="ls")
        left += font.getlength(run) + font.getlength(" ")


def _shown(text: str) -> str:
    """A label without control characters, which have no glyphs."""
    return " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in text).split())


def _warn_of_fonts(labels: Sequence[str]) -> None:
    """Log what no font has glyphs for: one line for all labels that lack the same one."""
    lacking: dict[str, list[str]] = {}
    for text in labels:
        lacking.setdefault(font_hint(text), []).append(text)
    for hint, texts in lacking.items():
        more = f" and {len(texts) - 1} more" * (len(texts) > 1)
        rows = "their rows of the grid are" if more else "its row of the grid is"
        logger.warning("no font found for %.60r%s: %s labeled by number; %s", texts[0], more, rows, hint)
