"""Finds the words of a prompt that a model has hardly seen in training, by how improbable its text head finds them."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence

import torch

from dalle.models.dalle import DALLE
from dalle.text_tokenizers import SentencePieceTokenizer, TextTokenizer
from dalle.text_tokenizers.t5 import T5Encoder

log = logging.getLogger(__name__)

THRESHOLD = 16.0
"""Nats of a word above which it counts as unfamiliar (measured in docs/log.md)."""

_SHOWN = 10  # words of the line at most
_TOGETHER = 64  # prompts that run together


@torch.no_grad()
def word_nats(model: DALLE, tokenizer: SentencePieceTokenizer, prompts: Sequence[str]) -> list[list[tuple[str, float]]]:
    """How improbable each word of a prompt is to the model: the sum over its tokens, given those before them.

    The first token of a prompt counts nothing unless the model has a begin token, as nothing stands before it; nor does
    punctuation, which says nothing about a word. Words that the model's text length cuts off are left out.

    Args:
        model: a model with a text head.
        tokenizer: the one that it was trained with.
        prompts: in any language.

    Returns:
        For each prompt its words, without punctuation around them, and their nats.
    """
    limit = model.config.text_length
    words = [tokenizer.words(prompt) for prompt in prompts]
    lengths = [min(limit, 1 + sum(len(ids) for _, ids in own)) for own in words]
    rows = tokenizer.encode_ragged(list(prompts))
    found: list[list[tuple[str, float]]] = [[] for _ in prompts]
    # Those of one length together: without padding, a model that moves padding to the left keeps the places
    for length in sorted(set(lengths)):
        group = [i for i, own in enumerate(lengths) if own == length]
        for first in range(0, len(group), _TOGETHER):
            part = group[first : first + _TOGETHER]
            text = tokenizer.pad([rows[i] for i in part], length).to(model.image_head.weight.device)
            # Any code will do, and one is enough: the text stands before the image
            nats = model.token_losses(text, text.new_zeros(len(part), 1))[0].tolist()
            for i, own in zip(part, nats, strict=True):
                # Without a begin token nothing precedes the first one, so that it has no loss
                values = own if model.config.begin_id is not None else [0.0, *own]
                found[i] = _summed(tokenizer, words[i], values, length)
    return found


def _summed(
    tokenizer: SentencePieceTokenizer, words: Sequence[tuple[str, list[int]]], nats: Sequence[float], length: int
) -> list[tuple[str, float]]:
    """Nats of the words of a prompt, from those of its first `length` tokens."""
    found, place = [], 0
    for word, ids in words:
        place += len(ids)
        if place >= length:  # the last token is the end's
            break
        name = stripped(word)
        if name:
            own = zip(ids, nats[place - len(ids) : place], strict=True)
            found.append((name, sum(value for token, value in own if stripped(tokenizer.decode([[token]])[0]))))
    return found


def unfamiliar_words(
    model: DALLE, tokenizer: TextTokenizer | T5Encoder, prompts: Sequence[str], threshold: float = THRESHOLD
) -> list[tuple[str, ...]]:
    """The words of each prompt that the model has hardly seen in training.

    None are found for models without a text head, nor for those with a tokenizer of another project, on whose captions
    the threshold was not measured.
    """
    if model.text_head is None or not isinstance(tokenizer, SentencePieceTokenizer):
        return [()] * len(prompts)
    once = list(dict.fromkeys(prompts))
    words = [
        tuple(dict.fromkeys(word for word, nats in own if nats > threshold))
        for own in word_nats(model, tokenizer, once)
    ]
    found = dict(zip(once, words, strict=True))
    return [found[prompt] for prompt in prompts]


def told(words: Sequence[str]) -> str | None:
    """The line that names such words; None if there are none."""
    if not words:
        return None
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    shown = ", ".join(words[:_SHOWN])
    return f"words that the model has hardly seen in training, so that images may not show them: {shown}{more}"


def warn_of_unfamiliar_words(
    model: DALLE, tokenizer: TextTokenizer | T5Encoder, prompts: Sequence[str], threshold: float = THRESHOLD
) -> None:
    """Log the words of prompts that the model has hardly seen, in one line."""
    words = [word for own in unfamiliar_words(model, tokenizer, prompts, threshold) for word in own]
    line = told(list(dict.fromkeys(words)))
    if line is not None:
        log.warning("%s", line)


def stripped(word: str) -> str:
    """A word without punctuation and spaces around it."""
    # By category, as str.isalnum is false for Devanagari's vowel signs
    kept = [i for i, character in enumerate(word) if unicodedata.category(character)[0] not in "PZC"]
    return word[kept[0] : kept[-1] + 1] if kept else ""
