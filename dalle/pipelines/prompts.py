"""Encodes prompts to what a model reads, token ids or features of a T5; checks that tokenizer and model fit.

Shapes: P prompts, T text length, C channels of the features.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence

from torch import Tensor

from dalle.models.dalle import DALLE
from dalle.text_tokenizers import JSONTokenizer, TextTokenizer
from dalle.text_tokenizers.base import first_report
from dalle.text_tokenizers.t5 import T5Encoder

log = logging.getLogger(__name__)

_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})  # categories of Unicode
_SHOWN = 3  # prompts of a line


def encode_prompts(model: DALLE, tokenizer: TextTokenizer | T5Encoder, prompts: list[str]) -> Tensor:
    """Encode prompts to ids, int64 [P, T], or to features, float [P, T, C]; prompts that are cut are logged, each once.

    A blank prompt becomes the null caption (padding only), which caption dropout trains; an empty caption (EOS and
    padding) does not occur in training.
    """
    length = model.config.text_length
    if isinstance(tokenizer, T5Encoder):
        return tokenizer.encode(prompts, length)
    rows = tokenizer.encode_ragged(prompts)  # unpadded, as padding would hide what is cut
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row) > length and first_report(prompt):
            log.warning("prompt of %d tokens cut to the model's %d: %.60r", len(row), length, prompt)
    if tokenizer.blank_is_null:
        rows = [[] if is_blank(prompt) else row for prompt, row in zip(prompts, rows, strict=True)]
    return tokenizer.pad(rows, length)


def is_blank(prompt: str) -> bool:
    """Whether a prompt has no visible character: white space, control and format characters (U+200B, U+202E) alone."""
    return all(unicodedata.category(character) in _INVISIBLE for character in prompt)


def warn_of_blank_prompts(prompts: Sequence[str]) -> None:
    """Log in one line that prompts without a visible character, which may be a mistake, are drawn without a caption.

    An empty one asks for that.
    """
    blank = list(dict.fromkeys(prompt for prompt in prompts if prompt and is_blank(prompt)))
    if blank:
        shown = ", ".join(ascii(prompt)[:60] for prompt in blank[:_SHOWN])
        more = f" and {len(blank) - _SHOWN} more" if len(blank) > _SHOWN else ""
        log.warning("drawn without a caption, as no character of the prompt is visible: %s%s", shown, more)


def encode_negatives(
    model: DALLE, tokenizer: TextTokenizer | T5Encoder, text: Tensor, negatives: Sequence[str | None]
) -> Tensor | None:
    """Encode negative prompts, one for each row of `text`; None if there is none.

    Args:
        model: the model.
        tokenizer: its text tokenizer.
        text: ids of the prompts, int64 [P, T].
        negatives: for each prompt its negative prompt, or None for the model's null caption.

    Returns:
        int64 [P, T].

    Raises:
        ValueError: the model takes no negative prompt, or one is too long.
    """
    if all(negative is None for negative in negatives):
        return None
    found = model.null_text(text).clone()  # rows without one keep it
    for row, negative in enumerate(negatives):
        if negative is not None:
            found[row] = encode_negative(tokenizer, negative, text.shape[1])
    return found


def encode_negative(tokenizer: TextTokenizer | T5Encoder, negative: str, length: int) -> Tensor:
    """The ids of a negative prompt, padded to int64 [length].

    Raises:
        ValueError: the model takes none, or it has more than `length` ids.
    """
    if not isinstance(tokenizer, JSONTokenizer):
        raise ValueError("this model takes no negative prompt: leave it out")
    ids = tokenizer.encode_negative(negative)
    if len(ids) > length:
        raise ValueError(f"the negative prompt has {len(ids)} tokens, the model reads {length}: cut it")
    return tokenizer.pad([ids], length)[0]


def takes_negative(tokenizer: TextTokenizer | T5Encoder) -> bool:
    """Whether a model with this tokenizer takes negative prompts."""
    return isinstance(tokenizer, JSONTokenizer) and bool(tokenizer.config.negative_template)


def check_tokenizer(model: DALLE, text: TextTokenizer | T5Encoder) -> None:
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
