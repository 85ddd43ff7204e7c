"""Captions as rows of ids: their lengths, padding on the left instead of on the right, and null captions.

Shapes: B captions, T ids. Padding are the ids `pad_id` at the end of a row; the same id may stand inside of a caption.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.models.dalle_config import DALLEConfig


def lengths(text: Tensor, pad_id: int) -> Tensor:
    """The number of ids of each caption [B, T] up to its padding, int64 [B]."""
    return text.shape[1] - (text == pad_id).flip(1).cumprod(1).sum(1)


def padded_left(text: Tensor, pad_id: int) -> Tensor:
    """Captions [B, T] with their padding in front."""
    places = torch.arange(text.shape[1], device=text.device) + lengths(text, pad_id)[:, None]
    return text.gather(1, places % text.shape[1])


def null_of(text: Tensor, config: DALLEConfig) -> Tensor:
    """The null captions of classifier-free guidance that correspond to captions [B, T], padded as these are.

    Raises:
        ValueError: the null caption has more than T ids.
    """
    if config.null_ids:
        if text.shape[1] < len(config.null_ids):
            raise ValueError(
                f"the text has {text.shape[1]} positions, but the null caption {len(config.null_ids)} ids: pad the "
                "text to the model's text_length"
            )
        null = torch.tensor(config.null_ids, dtype=text.dtype, device=text.device)
        return F.pad(null, (0, text.shape[1] - len(null)), value=config.pad_id).expand(len(text), -1)
    if config.null_keeps_ends:
        places, ends = torch.arange(text.shape[1], device=text.device), lengths(text, config.pad_id)[:, None] - 1
        return text.where((places == 0) | (places == ends), config.pad_id)
    return torch.full_like(text, config.pad_id)
