"""Row ends: a token behind each row of an image's codes, which some models read and which is never drawn.

Shapes: B images, h x w codes, N = h w, L = h (w + 1) - 1 tokens: all codes with the row ends between them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def insert(ids: Tensor, columns: int, end: int) -> Tensor:
    """Codes [B, n] of a grid with `columns` columns, with the token `end` behind each whole row: [B, n + n // w]."""
    places = code_places(ids.shape[1], columns, ids.device)
    tokens = ids.new_full((len(ids), ids.shape[1] + ids.shape[1] // columns), end)
    return tokens.index_copy(1, places, ids)


def code_places(count: int, columns: int, device: torch.device) -> Tensor:
    """Where the first `count` codes are among the tokens, int64 [count]."""
    index = torch.arange(count, device=device)
    return index + index // columns
