"""Finds the words of a prompt that a model has hardly seen in training, by how improbable its text head finds them."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence

import torch

from dalle.files import printable
from dalle.models.dalle import DALLE
from dalle.text_tokenizers import SentencePieceTokenizer, TextTokenizer
from dalle.text_tokenizers.t5 import T5Encoder

log = logging.getLogger(__name__)

THRESHOLD = 16.0
"""Nats of a word above which it counts as unfamiliar (measured in docs/log.md)."""

_SHOWN = 10  # words of the line at most
_TOGETHER = 16  # prompts that run together


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
    words = [tokenizer.words(prompt) for prompt in prompts]
    # The last place is the end token's
    rows = [[token for _, ids in own for token in ids][: model.config.text_length - 1] for own in words]
    found: list[list[tuple[str, float]]] = [[] for _ in prompts]
    # Those of about one length together, as padding takes as long as tokens
    order = sorted((i for i, row in enumerate(rows) if row), key=lambda i: len(rows[i]))
    for first in range(0, len(order), _TOGETHER):
        part = order[first : first + _TOGETHER]
        text = tokenizer.pad([rows[i] for i in part], len(rows[part[-1]])).to(model.image_head.weight.device)
        for i, nats in zip(part, model.text_losses(text).tolist(), strict=True):
            found[i] = _summed(tokenizer, words[i], nats[: len(rows[i])])
    return found


def _summed(
    tokenizer: SentencePieceTokenizer, words: Sequence[tuple[str, list[int]]], nats: Sequence[float]
) -> list[tuple[str, float]]:
    """Nats of the words of a prompt, from those of its first tokens."""
    found, place = [], 0
    for word, ids in words:
        place += len(ids)
        if place > len(nats):  # cut off
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


def warning(words: Sequence[str]) -> str | None:
    """The line that names such words; None if there are none."""
    if not words:
        return None
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    shown = printable(", ".join(words[:_SHOWN]))
    return f"words that the model has hardly seen in training, so that images may not show them: {shown}{more}"


def warn_of_unfamiliar_words(
    model: DALLE, tokenizer: TextTokenizer | T5Encoder, prompts: Sequence[str], threshold: float = THRESHOLD
) -> None:
    """Log the words of prompts that the model has hardly seen, in one line."""
    words = [word for own in unfamiliar_words(model, tokenizer, prompts, threshold) for word in own]
    line = warning(list(dict.fromkeys(words)))
    if line is not None:
        log.warning("%s", line)


def stripped(word: str) -> str:
    """A word without punctuation and spaces around it."""
    # By category, as str.isalnum is false for Devanagari's vowel signs
    kept = [i for i, character in enumerate(word) if unicodedata.category(character)[0] not in "PZC"]
    return word[kept[0] : kept[-1] + 1] if kept else ""
