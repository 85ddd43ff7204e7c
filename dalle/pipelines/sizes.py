"""A model and its text tokenizer for images of another size than the one it was trained on most."""

from __future__ import annotations

from dalle.images.size import Size
from dalle.models.dalle import DALLE
from dalle.models.grids import with_grid
from dalle.text_tokenizers import JSONTokenizer, TextTokenizer
from dalle.text_tokenizers.t5 import T5Encoder

_Words = TextTokenizer | T5Encoder


def draws(model: DALLE, cell: int, size: Size) -> bool:
    """Whether a model draws images of a size, with image tokens of `cell` pixels."""
    return _problem(model, cell, size) is None


def sized(model: DALLE, words: _Words, cell: int, size: Size) -> tuple[DALLE, _Words]:
    """The model and its text tokenizer for images of a size; their weights and vocabularies are shared.

    Args:
        model: the model.
        words: its text tokenizer, whose prompt may say the size.
        cell: pixels of the side of an image token.
        size: width and height in pixels.

    Raises:
        ValueError: the model does not draw it.
    """
    problem = _problem(model, cell, size)
    if problem is not None:
        raise ValueError(f"size is {size[0]}x{size[1]}: {problem}")
    grid = size[1] // cell, size[0] // cell
    null = None
    if isinstance(words, JSONTokenizer):
        words = words.sized(grid)
        null = words.null_ids() or None
    return with_grid(model, grid, null), words


def _problem(model: DALLE, cell: int, size: Size) -> str | None:
    width, height = size
    rows, columns = model.config.grid
    if (height, width) == (rows * cell, columns * cell):
        return None
    if model.config.grids is None:
        return f"this model draws images of {columns * cell}x{rows * cell} pixels only: leave it out"
    if height % cell or width % cell:
        return f"both sides must be multiples of {model.config.grids.multiple * cell}"
    return model.config.grids.problem((height // cell, width // cell), cell)
