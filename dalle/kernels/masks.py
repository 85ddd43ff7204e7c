"""Attention masks: which token may attend to which, for the paper's kinds of attention."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Mask = Tensor | Literal["causal"] | None

Kind = Literal["full", "row", "column", "conv"]


def mask(kind: Kind, text_length: int, height: int, width: int, kernel: int = 11) -> Tensor:
    """The mask of one of the paper's kinds of attention.

    The sequence is the text followed by the image in raster order. Text is causal. An image token attends to all text
    and, in the image, to itself and (Ramesh et al. 2021, arXiv 2102.12092, appendix B.1 and figure 11):

    * full: every earlier token.
    * row (mask a): the tokens before it in raster order, back to the one directly above: `width + 1` including itself.
      A sliding window that continues across line ends, not a single line.
    * column (mask b): the tokens above it in its own column, in all earlier rows. (The paper transposes the grid and
      uses mask c, which is equivalent and faster to compute.)
    * conv (mask d): the causal half of a `kernel` x `kernel` window centered on it: the left part of its own row and
      the `kernel // 2` rows above. Like the row kind it wraps around: the window is a fixed set of raster offsets
      `dy * width + dx`, so what sticks out on the left is the end of the line above, and on the right the start of
      the line below.

    Args:
        kind: "full", "row", "column" or "conv".
        text_length: text tokens, 0 or more.
        height: rows of the image grid.
        width: columns of the image grid.
        kernel: side of the window, odd; used by "conv" only.

    Returns:
        bool [S, S] with S = text_length + height * width; True where the query (row) may attend to the key (column).

    Raises:
        ValueError: the kind is unknown, or the kernel is even or below 1.
    """
    position = torch.arange(text_length + height * width)
    distance = position[:, None] - position[None, :]  # [S, S] how far the key is before the query
    is_text = position < text_length
    return visible(kind, distance, width, kernel) | ((distance >= 0) & is_text[None, :])


def visible(kind: Kind, distance: Tensor, width: int, kernel: int = 11) -> Tensor:
    """Whether an image token attends to the one `distance` before it in raster order, which defines each kind.

    Args:
        kind: as in `mask`.
        distance: int, of any shape; negative: after the query, never visible.
        width: columns of the image grid.
        kernel: as in `mask`.

    Returns:
        bool, shaped like `distance`.

    Raises:
        ValueError: as in `mask`.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"the window of conv attention is {kernel} wide; it must be odd and at least 1")
    earlier = distance >= 0
    if kind == "full":
        return earlier
    if kind == "row":
        return earlier & (distance <= width)  # back to the token directly above
    if kind == "column":
        return earlier & (distance % width == 0)  # the same column
    if kind == "conv":
        reach = kernel // 2
        lines = [(distance - rows * width).abs() <= reach for rows in range(reach + 1)]  # dy = -rows, |dx| <= reach
        return earlier & torch.stack(lines).any(0)
    raise ValueError(f"unknown attention {kind!r}; it must be one of full, row, column, conv")
