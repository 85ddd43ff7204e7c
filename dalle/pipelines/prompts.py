"""Prompts as a model reads them: token ids, or the features of a text encoder; whether the two fit together.

Shapes: P prompts, T text length, C channels of the features.
"""

from __future__ import annotations

import logging

from torch import Tensor

from dalle.models.dalle import DALLE
from dalle.text_tokenizers import TextTokenizer
from dalle.text_tokenizers.t5 import T5Encoder

log = logging.getLogger(__name__)


def encode_prompts(model: DALLE, tokenizer: TextTokenizer | T5Encoder, prompts: list[str]) -> Tensor:
    """Encode prompts to ids [P, T], or to features [P, T, C]; those that are cut are named in the log.

    A blank prompt becomes the null caption (padding only) where caption dropout has trained it: an empty caption
    (EOS and padding) never stands in the data.
    """
    length = model.config.text_length
    if isinstance(tokenizer, T5Encoder):
        return tokenizer.encode(prompts, length)
    rows = tokenizer.encode_ragged(prompts)
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row) > length:
            log.warning("prompt of %d tokens cut to the model's %d: %.60r", len(row), length, prompt)
    if tokenizer.blank_is_null:
        rows = [row if prompt.strip() else [] for prompt, row in zip(prompts, rows, strict=True)]
    return tokenizer.pad(rows, length)


def check_text(model: DALLE, text: TextTokenizer | T5Encoder) -> None:
    """Check that a text tokenizer or encoder is of the kind and size that the model was trained with.

    Raises:
        ValueError: it is not.
    """
    config = model.config
    if isinstance(text, T5Encoder):
        if config.text_features != text.width:
            wanted = "text ids" if config.text_features is None else f"features of {config.text_features} channels"
            raise ValueError(f"the model reads {wanted}, the text encoder gives features of {text.width} channels")
    elif config.text_features is not None:
        raise ValueError(f"the model reads features of {config.text_features} channels: give a text encoder (T5)")
    elif config.text_vocab != text.vocab_size:
        raise ValueError(
            f"the model reads {config.text_vocab} text tokens, its text tokenizer has {text.vocab_size}: use the one "
            "that it was trained with"
        )
