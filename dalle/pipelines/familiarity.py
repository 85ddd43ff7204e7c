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


@torch.no_grad()
def word_nats(model: DALLE, tokenizer: SentencePieceTokenizer, prompt: str) -> list[tuple[str, float]]:
    """How improbable each word of a prompt is to the model: the sum over its tokens, given those before them.

    The first token of a prompt counts nothing unless the model has a begin token, as nothing stands before it; nor does
    punctuation, which says nothing about a word. Words that the model's text length cuts off are left out.

    Args:
        model: a model with a text head.
        tokenizer: the one that it was trained with.
        prompt: in any language.

    Returns:
        The words, without punctuation around them, and their nats.
    """
    words = tokenizer.words(prompt)
    length = min(model.config.text_length, 1 + sum(len(ids) for _, ids in words))
    # Alone and without padding, so that a model which moves padding to the left keeps the places
    text = tokenizer.pad(tokenizer.encode_ragged([prompt]), length).to(model.image_head.weight.device)
    # Any code will do, and one is enough: the text stands before the image
    image_ids = text.new_zeros(1, 1)
    nats = model.token_losses(text, image_ids)[0][0].tolist()
    values = nats if model.config.begin_id is not None else [0.0, *nats]
    found, place = [], 0
    for word, ids in words:
        place += len(ids)
        if place >= length:  # the last token is the end's
            break
        name = stripped(word)
        if name:
            own = zip(ids, values[place - len(ids) : place], strict=True)
            found.append((name, sum(value for token, value in own if stripped(tokenizer.decode([[token]])[0]))))
    return found


def warn_of_unfamiliar_words(
    model: DALLE, tokenizer: TextTokenizer | T5Encoder, prompts: Sequence[str], threshold: float = THRESHOLD
) -> None:
    """Log the words of prompts that the model has hardly seen, in one line.

    Nothing is said of models without a text head, nor of those with a tokenizer of another project, on whose captions
    the threshold was not measured.
    """
    if model.text_head is None or not isinstance(tokenizer, SentencePieceTokenizer):
        return
    scored = [pair for prompt in dict.fromkeys(prompts) for pair in word_nats(model, tokenizer, prompt)]
    words = list(dict.fromkeys(word for word, nats in scored if nats > threshold))
    if words:
        more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
        log.warning(
            "words that the model has hardly seen in training, so that images may not show them: %s%s",
            ", ".join(words[:_SHOWN]),
            more,
        )


def stripped(word: str) -> str:
    """A word without punctuation and spaces around it."""
    # By category, as str.isalnum is false for Devanagari's vowel signs
    kept = [i for i, character in enumerate(word) if unicodedata.category(character)[0] not in "PZC"]
    return word[kept[0] : kept[-1] + 1] if kept else ""
