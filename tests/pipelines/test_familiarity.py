"""Nats of a prompt's words against a slow loop, and the line that names those the model has hardly seen."""

from __future__ import annotations

import logging

import pytest
import torch

from dalle.pipelines.familiarity import unfamiliar_words, warn_of_unfamiliar_words, warning, word_nats
from dalle.pipelines.text_to_image import TextToImage
from dalle.text_tokenizers import SentencePieceTokenizer

PROMPT = "a red heart, लाल zebra!"


def slow_nats(pipe: TextToImage, ids: list[int]) -> list[float]:
    """Minus log of each token's share of the model's probability, every id of the vocabulary tried in its place."""
    length, vocabulary = pipe.model.config.text_length, pipe.model.config.text_embeddings
    found = [0.0]
    for place in range(1, len(ids)):
        rows = torch.zeros(vocabulary - length, length, dtype=torch.int64)
        rows[:, :place] = torch.tensor(ids[:place])
        rows[:, place] = torch.arange(len(rows))
        codes = torch.zeros(len(rows), pipe.model.config.image_length, dtype=torch.int64)
        likelihoods = pipe.model.token_losses_and_predictions(rows, codes)[0][:, place - 1].neg().exp()
        # What is left is for the other places' padding tokens
        assert 0 < float(likelihoods.sum()) <= 1 + 1e-5
        found.append(-float(likelihoods[ids[place]].log()))
    return found


@torch.no_grad()
def test_word_nats_equal_a_slow_loop(tiny_pipe: TextToImage) -> None:
    tokenizer = tiny_pipe.text_tokenizer
    assert isinstance(tokenizer, SentencePieceTokenizer)
    for prompt, names in (("red heart, a", ["red", "heart", "a"]), ("red red", ["red", "red"])):
        (ids,) = tokenizer.encode_ragged([prompt])
        assert len(ids) <= tiny_pipe.model.config.text_length
        nats, pieces = slow_nats(tiny_pipe, ids), [tokenizer.decode([[token]])[0] for token in ids[:-1]]
        expected, place = [], 0
        for word in prompt.split():
            count = len(tokenizer.encode_ragged([word])[0]) - 1
            own = range(place, place + count)
            expected.append(sum(nats[i] for i in own if pieces[i] not in (",", "")))
            place += count
        (got,) = word_nats(tiny_pipe.model, tokenizer, [prompt])
        assert [name for name, _ in got] == names
        assert [value for _, value in got] == pytest.approx(expected, abs=1e-3)


def test_words_are_those_between_spaces_and_their_ids_are_the_captions(tiny_pipe: TextToImage) -> None:
    tokenizer = tiny_pipe.text_tokenizer
    assert isinstance(tokenizer, SentencePieceTokenizer)
    for prompt in (PROMPT, "  two  spaces ", "▁", "", "ﬁsh 12"):
        words = tokenizer.words(prompt)
        assert [i for _, ids in words for i in ids] == tokenizer.encode_ragged([prompt])[0][:-1]
    assert [word for word, _ in tokenizer.words(PROMPT)] == PROMPT.split()


def test_long_prompts_leave_out_the_words_that_are_cut_off(tiny_pipe: TextToImage) -> None:
    tokenizer = tiny_pipe.text_tokenizer
    assert isinstance(tokenizer, SentencePieceTokenizer)
    many, *none = word_nats(tiny_pipe.model, tokenizer, ["a red heart " * 20, "", "!?"])
    assert 0 < len(many) < 60 and none == [[], []]


def test_words_of_prompts_together_are_those_of_each_alone(tiny_pipe: TextToImage) -> None:
    model, tokenizer = tiny_pipe.model, tiny_pipe.text_tokenizer
    assert isinstance(tokenizer, SentencePieceTokenizer)
    prompts = [PROMPT, "a red heart", "a red heart " * 20, "", "two green stars", "a red heart"]
    for prompt, together in zip(prompts, word_nats(model, tokenizer, prompts), strict=True):
        (alone,) = word_nats(model, tokenizer, [prompt])
        assert [word for word, _ in together] == [word for word, _ in alone]
        assert [value for _, value in together] == pytest.approx([value for _, value in alone], abs=1e-4)
    assert unfamiliar_words(model, tokenizer, prompts, -1) == [
        tuple(dict.fromkeys(word for word, _ in own)) for own in word_nats(model, tokenizer, prompts)
    ]
    assert unfamiliar_words(model, tokenizer, prompts, 1e9) == [()] * len(prompts)


def test_one_line_names_the_words_above_the_threshold(
    tiny_pipe: TextToImage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny_pipe.model, tiny_pipe.text_tokenizer
    assert isinstance(tokenizer, SentencePieceTokenizer)
    (scored,) = word_nats(model, tokenizer, ["a red heart"])
    most = max(scored, key=lambda pair: pair[1])
    between = (sorted(value for _, value in scored)[1] + most[1]) / 2
    with caplog.at_level(logging.WARNING):
        warn_of_unfamiliar_words(model, tokenizer, ["a red heart"] * 2, between)
        (line,) = caplog.messages
        assert line.endswith(f": {most[0]}") and "hardly seen" in line
        caplog.clear()
        warn_of_unfamiliar_words(model, tokenizer, ["a red heart"], 1e9)
        monkeypatch.setattr(model, "text_head", None)
        warn_of_unfamiliar_words(model, tokenizer, ["a red heart"], -1)
    assert caplog.messages == []


def test_the_line_holds_no_commands_of_a_terminal() -> None:
    line = warning(["a\x1b[2J"])
    assert line is not None and line.endswith(r": a\x1b[2J")
