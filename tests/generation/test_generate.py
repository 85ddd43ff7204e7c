"""Generation: the same codes whatever the batch, guidance 1 = none, kept codes kept, one-line errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import dalle.generation.batching
from dalle.generation.sampling import guide
from dalle.models.dalle import DALLE
from support.generation import generate, sample
from support.tiny_configs import dalle_config, random_dalle

CONFIG = dalle_config(depth=3, attention=("row", "column"), last_attention="conv")
TEXT = torch.tensor([[3, 8, 1, 0, 0], [5, 5, 19, 7, 2], [1, 0, 0, 0, 0]])
SEEDS = [[4, 5, 6], [7], [4, 9]]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"guidance": 2.5, "temperature": 0.8},
    {"guidance": 0.5, "top_k": 4, "top_p": 0.9},
    {"temperature": 0},
    {"guidance": 3.0, "guidance_until": 5},
    {"guidance": 3.0, "guidance_until": 0},
]


@pytest.fixture(scope="module")
def model() -> DALLE:
    return random_dalle(CONFIG, std=0.4)


@torch.no_grad()
def slow(
    model: DALLE, text: Tensor, seed: int, forced: Tensor | None = None, keep: Tensor | None = None, **options: Any
) -> Tensor:
    """One candidate without a cache: a whole forward pass for each token."""
    guidance, until = options.pop("guidance", 1.0), options.pop("guidance_until", 12)
    numbers = torch.rand(12, generator=torch.Generator().manual_seed(seed))
    codes = torch.zeros(1, 0, dtype=torch.int64)
    for i in range(12):
        logits = model(text[None], codes)[:, i]
        if guidance != 1 and i < until:
            logits = guide(logits, model(torch.zeros_like(text[None]), codes)[:, i], guidance)
        token = sample(logits, numbers[i : i + 1], **options)
        if forced is not None and keep is not None and keep[i]:
            token = forced[i : i + 1]
        codes = torch.cat((codes, token[None]), dim=1)
    return codes.view(3, 4)


@pytest.mark.parametrize("options", OPTIONS)
def test_batched_cached_equals_single_uncached(model: DALLE, options: dict) -> None:
    codes = generate(model, TEXT, SEEDS, **options)
    assert codes.shape == (6, 3, 4) and codes.dtype == torch.int64
    alone = [slow(model, text, seed, **options) for text, seeds in zip(TEXT, SEEDS) for seed in seeds]
    assert torch.equal(codes, torch.stack(alone))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("batch_size", [1, 2, 4, 6, 100])
def test_tokens_do_not_depend_on_batch_size(model: DALLE, options: dict, batch_size: int) -> None:
    assert torch.equal(
        generate(model, TEXT, SEEDS, batch_size=batch_size, **options), generate(model, TEXT, SEEDS, **options)
    )


def test_candidates_do_not_depend_on_the_batch(model: DALLE) -> None:
    codes = generate(model, TEXT, SEEDS)
    assert torch.equal(generate(model, TEXT[1:2], [[7]])[0], codes[3])
    assert torch.equal(generate(model, TEXT[2:], [[9, 4]]), codes[[5, 4]])
    assert not torch.equal(codes[0], codes[1])


def test_guidance_1_is_no_guidance(model: DALLE, monkeypatch: pytest.MonkeyPatch) -> None:
    """And runs none: the null caption is never seen."""
    seen: list[Tensor] = []
    prefill = model.prefill
    monkeypatch.setattr(model, "prefill", lambda text: seen.append(text) or prefill(text))
    without = generate(model, TEXT, SEEDS)
    assert torch.equal(generate(model, TEXT, SEEDS, guidance=1.0), without)
    assert all(text.any(1).all() for text in seen)
    assert not torch.equal(generate(model, TEXT, SEEDS, guidance=6.0), without)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_each_text_is_prefilled_once(model: DALLE, monkeypatch: pytest.MonkeyPatch, batch_size: int) -> None:
    rows: list[list[int]] = []
    prefill = model.prefill
    monkeypatch.setattr(model, "prefill", lambda text: rows.extend(text.tolist()) or prefill(text))
    generate(model, TEXT, SEEDS, batch_size=batch_size, guidance=2.0)
    assert sorted(rows) == sorted([*TEXT.tolist(), [0] * 5])


@pytest.mark.parametrize("options", OPTIONS[:2])
def test_known_codes_stay_and_condition_the_rest(model: DALLE, options: dict) -> None:
    generator = torch.Generator().manual_seed(0)
    forced = torch.randint(0, 11, (6, 12), generator=generator)
    keep = torch.rand(6, 12, generator=generator) < 0.5
    codes = generate(model, TEXT, SEEDS, known_codes=forced, known_mask=keep, **options).flatten(1)
    assert torch.equal(codes[keep], forced[keep])
    prompts = [text for text, seeds in zip(TEXT, SEEDS) for _ in seeds]
    seeds = [seed for own in SEEDS for seed in own]
    for row in range(6):
        alone = slow(model, prompts[row], seeds[row], forced[row], keep[row], **options)
        assert torch.equal(codes[row], alone.flatten())


def test_known_rows_are_continued(model: DALLE) -> None:
    image = torch.randint(0, 11, (3, 4), generator=torch.Generator().manual_seed(0))
    top = torch.zeros(3, 4, dtype=torch.bool)
    top[:2] = True
    calls: list[tuple[int, int]] = []
    codes = generate(
        model, TEXT, SEEDS, known_codes=image, known_mask=top, progress=lambda done, total: calls.append((done, total))
    )
    assert (codes[:, :2] == image[:2]).all()
    assert calls == [(6 * step, 24) for step in range(1, 5)]  # only the last row is drawn
    alone = slow(model, TEXT[1], 7, image.flatten(), top.flatten())
    assert torch.equal(codes[3], alone)
    everything = generate(model, TEXT, SEEDS, known_codes=image, known_mask=torch.ones_like(top))
    assert torch.equal(everything, image.expand(6, 3, 4))


def test_known_codes_may_differ_by_prompt(model: DALLE) -> None:
    forced = torch.randint(0, 11, (3, 3, 4), generator=torch.Generator().manual_seed(0))
    codes = generate(model, TEXT, SEEDS, known_codes=forced, known_mask=torch.ones(12, dtype=torch.bool))
    assert torch.equal(codes, forced[[0, 0, 0, 1, 2, 2]])


def test_batch_size_follows_the_free_memory(model: DALLE, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = generate(model, TEXT, SEEDS)
    steps: list[int] = []
    monkeypatch.setattr(dalle.generation.batching, "free_memory", lambda device: 0)
    drawn = generate(model, TEXT, SEEDS, progress=lambda done, total: steps.append(done))
    assert torch.equal(drawn, expected)
    assert steps == list(range(1, expected.numel() + 1))  # a code a step: one candidate at a time


def test_works_in_bfloat16_and_restores_the_mode() -> None:
    torch.manual_seed(0)
    model = DALLE(replace(CONFIG, transformer=replace(CONFIG.transformer, dropout=0.5)))
    first = generate(model, TEXT, SEEDS)
    assert model.training
    assert torch.equal(generate(model, TEXT, SEEDS), first)  # no dropout while drawing
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert generate(model, TEXT, SEEDS).shape == first.shape
    assert generate(model.bfloat16(), TEXT, SEEDS).shape == first.shape


@pytest.mark.parametrize(
    "wrong,message",
    [
        ({"temperature": -1}, "temperature is -1; it must be"),
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0"),
        ({"top_p": 1.5}, "top_p is 1.5; it must be above 0"),
        ({"guidance": -2}, "guidance is -2; it must be at least 0"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"seeds": [[1], [], [2]]}, r"3 prompts with \[1, 0, 1\] seeds"),
        ({"seeds": [[1]]}, r"3 prompts with \[1\] seeds"),
        ({"text": TEXT[:0], "seeds": []}, "0 prompts"),
        ({"known_codes": torch.zeros(12, dtype=torch.int64)}, "go together"),
        ({"known_codes": torch.zeros(12, dtype=torch.int64), "known_mask": torch.zeros(12)}, "must be bool"),
        ({"known_codes": torch.full((12,), 11), "known_mask": torch.ones(12, dtype=torch.bool)}, "codes from 11 to 11"),
        (
            {"known_codes": torch.zeros(8, 6).long(), "known_mask": torch.ones(12, dtype=torch.bool)},
            r"known_codes has shape \[8, 6\]",
        ),
        (
            {"known_codes": torch.zeros(12).long(), "known_mask": torch.ones(4, 12).bool()},
            r"known_mask has shape \[4, 12\]",
        ),
    ],
)
def test_wrong_options_are_refused_in_one_line(model: DALLE, wrong: dict, message: str) -> None:
    given = {"text": TEXT, "seeds": SEEDS} | wrong
    with pytest.raises(ValueError, match=message) as caught:
        generate(model, given.pop("text"), given.pop("seeds"), **given)
    assert "\n" not in str(caught.value)
