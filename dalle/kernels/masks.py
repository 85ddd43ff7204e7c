"""Which token may look at which: the masks of the paper's kinds of attention."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Mask = Tensor | Literal["causal"] | None

Kind = Literal["full", "row", "column", "conv"]


def mask(kind: Kind, text_length: int, height: int, width: int, kernel: int = 11) -> Tensor:
    """Which token may look at which, for one of the paper's kinds of attention.

    The sequence is the text followed by the image in raster order. Text is causal. An image token sees all of the text
    and, of the image, itself and (Ramesh et al. 2021, arXiv 2102.12092, appendix B.1 and figure 11):

    * full: every earlier token.
    * row (mask a): the tokens before it in raster order, back to the one right above it: `width + 1` with itself. It is
      a sliding window that runs on over the line's end, not one line.
    * column (mask b): the tokens above it in its own column, in all earlier rows. (The paper transposes the grid and
      uses mask c, which is the same thing computed faster.)
    * conv (mask d): the causal half of a `kernel` x `kernel` window centred on it, the row's own left part and the
      `kernel // 2` rows above. Like the row kind it wraps around: the window is a fixed set of raster offsets
      `dy * width + dx`, so what sticks out at the left is the end of the line above, and at the right the start of
      the line below.

    Args:
        kind: "full", "row", "column" or "conv".
        text_length: text tokens, 0 or more.
        height: rows of the image grid.
        width: columns of the image grid.
        kernel: the window's side, odd; used by "conv" only.

    Returns:
        bool [S, S] with S = text_length + height * width; True where query (row) may look at key (column).

    Raises:
        ValueError: the kind is unknown, or the kernel is even or below 1.
    """
    position = torch.arange(text_length + height * width)
    back = position[:, None] - position[None, :]  # [S, S] how far the key lies behind the query
    is_text = position < text_length
    return visible(kind, back, width, kernel) | ((back >= 0) & is_text[None, :])


def visible(kind: Kind, back: Tensor, width: int, kernel: int = 11) -> Tensor:
    """Whether an image token sees the one that lies so far behind it in raster order: all that tells the kinds apart.

    Args:
        kind: as in `mask`.
        back: int, of any shape; below 0 lies ahead, which is never seen.
        width: columns of the image grid.
        kernel: as in `mask`.

    Returns:
        bool, in the shape of `back`.

    Raises:
        ValueError: as in `mask`.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"the convolution kernel of attention is {kernel}; it must be odd and at least 1")
    reached = back >= 0
    if kind == "full":
        return reached
    if kind == "row":
        return reached & (back <= width)
    if kind == "column":
        return reached & (back % width == 0)
    if kind == "conv":
        reach = kernel // 2
        lines = [(back - rows * width).abs() <= reach for rows in range(reach + 1)]
        return reached & torch.stack(lines).any(0)
    raise ValueError(f"unknown attention {kind!r}; it must be one of full, row, column, conv")
