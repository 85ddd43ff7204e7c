"""Captions as rows of ids: their lengths, padding, null captions, and the prefix of an image that they become.

Shapes: B captions, T ids, P prefix length, F width of text features. Padding are the ids `pad_id` at the end of a row;
the same id may stand inside of a caption.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.kernels.ids import check_ids
from dalle.models.dalle_config import DALLEConfig


def lengths(text: Tensor, pad_id: int) -> Tensor:
    """The number of ids of each caption [B, T] up to its padding, int64 [B]."""
    # From the end: the running product stays 1 up to the last id that is no padding
    return text.shape[1] - (text == pad_id).flip(1).cumprod(1).sum(1)


def padded_left(text: Tensor, pad_id: int) -> Tensor:
    """Captions [B, T] with their padding in front."""
    places = torch.arange(text.shape[1], device=text.device) + lengths(text, pad_id)[:, None]
    # Position i takes id i + length, modulo T: the padding at the end comes round to the front
    return text.gather(1, places % text.shape[1])


def null_of(text: Tensor, config: DALLEConfig) -> Tensor:
    """The null captions of classifier-free guidance that correspond to captions [B, T], padded as these are.

    Raises:
        ValueError: the null caption has more than T ids.
    """
    if config.null_ids:
        return repeated(config.null_ids, text, config)
    if config.null_keeps_ends:
        # The position of the last id, which is EOS
        places, ends = torch.arange(text.shape[1], device=text.device), lengths(text, config.pad_id)[:, None] - 1
        return text.where((places == 0) | (places == ends), config.pad_id)
    return torch.full_like(text, config.pad_id)


def repeated(ids: Sequence[int], text: Tensor, config: DALLEConfig) -> Tensor:
    """A null caption in place of each of captions [B, T], padded as these are.

    Raises:
        ValueError: it has more than T ids.
    """
    if text.shape[1] < len(ids):
        raise ValueError(
            f"the text has {text.shape[1]} positions, but the null caption {len(ids)} ids: pad the text to the model's "
            "text_length"
        )
    null = torch.tensor(ids, dtype=text.dtype, device=text.device)
    return F.pad(null, (0, text.shape[1] - len(null)), value=config.pad_id).expand(len(text), -1)


def prefix(text: Tensor, config: DALLEConfig) -> Tensor:
    """The tokens before the image: ids [B, P] with padding replaced per position, or features [B, P, F].

    Raises:
        IndexError: an id is out of range (checked on a CPU only).
        ValueError: more tokens than the model has text positions, or features of another width.
    """
    length = config.text_length
    if text.shape[1] > length:
        raise ValueError(f"the text has {text.shape[1]} tokens, but the model only {length} text positions: cut it")
    if config.text_features is not None:
        if text.shape[2:] != (config.text_features,):
            raise ValueError(
                f"the text is {list(text.shape)}; this model takes features [B, T, {config.text_features}]"
            )
        # The features end right before the image, so padding comes first, as in LlamaGen
        return F.pad(text, (0, 0, length - text.shape[1], 0))  # [B, P, F]
    check_ids(text, config.text_vocab, "text ids")
    if config.padding == "left":  # as many columns as there are: positions count from wherever a text begins
        return padded_left(text, config.pad_id)
    text = F.pad(text, (0, length - text.shape[1]), value=config.pad_id)
    if config.padding == "positional":  # the paper's: one padding token per position (section 2.2)
        # Ids from text_vocab on, which no tokenizer produces
        own = torch.arange(config.text_vocab, config.text_vocab + length, device=text.device)
        text = torch.where(text == config.pad_id, own, text)
    return text if config.begin_id is None else F.pad(text, (1, 0), value=config.begin_id)


def padding(tokens: Tensor, config: DALLEConfig) -> Tensor | None:
    """Which tokens of a prefix must not be attended to, bool [B, P]; None: all may, as padding ids are real tokens."""
    if config.padding == "left":
        return (tokens == config.pad_id).cumprod(1).bool()  # pad_id inside of a caption is attended to
    return None if config.text_features is None else ~tokens.any(-1)  # features of padding are zero vectors
