"""A rolling batch: whenever a candidate joins, and whoever else is there or leaves, it gets the codes it gets alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from dalle.generation.generate import generate
from dalle.generation.options import SamplingConfig
from dalle.generation.rolling import Candidate, RollingBatch
from dalle.kernels.native.decode_step import Step
from dalle.kernels.switches import force_backend
from dalle.models.dalle import DALLE
from dalle.models.dalle_config import GridsConfig
from support.native_decode import compiled
from support.tiny_configs import dalle_config, random_dalle

WIDE: dict[str, Any] = {"width": 64, "depth": 3, "image_vocab": 33, "grid": (4, 5)}
MODELS: dict[str, dict[str, Any]] = {
    "sparse": {"attention": ("row", "column", "conv"), "positions": "learned", "sandwich": True},
    "cells": {"attention": ("full", "conv"), "positions": "learned_cells", "begin_id": 3, "layer_scale": True},
    "rope": {"attention": ("row", "full"), "positions": "rope", "qk_norm": True, "norm": "rms", "padding": "word"},
    "row ends": {"positions": "rope_1d", "row_ends": True, "kv_heads": 1, "feed_forward": "swiglu", "hidden": 96},
}
OPTIONS = (
    SamplingConfig(),
    SamplingConfig(guidance=3.0, temperature=0.8),
    SamplingConfig(guidance=2.0, guidance_until=7),
    SamplingConfig(temperature=0.0),
    SamplingConfig(guidance=0.0, top_p=0.8),
    SamplingConfig(guidance=1.5, top_k=6, guidance_until=2),
)
TEXTS = torch.tensor([[3, 8, 1, 0, 0], [5, 5, 19, 7, 2], [0, 0, 0, 0, 0], [4, 0, 0, 0, 0]])


def model_of(name: str) -> DALLE:
    return random_dalle(dalle_config(**WIDE, **MODELS[name]), std=0.15, center_norms=True)


def candidates(model: DALLE, count: int) -> list[Candidate]:
    """All kinds of options, and images of which nothing, the start, some parts or all is given."""
    own, length = random.Random(0), model.config.image_length
    found = []
    for seed in range(count):
        one = Candidate(TEXTS[own.randrange(4)], seed, OPTIONS[seed % len(OPTIONS)])
        if one.sampling.guidance != 1 and own.random() < 0.5:
            one.negative = TEXTS[own.randrange(4)]
        kind = own.randrange(5)
        if kind < 3:
            start = own.randrange(1, length)
            mask = torch.arange(length) < start if kind == 0 else torch.rand(length) < 0.4
            one.known_mask = torch.ones(length, dtype=torch.bool) if kind == 2 and seed % 4 == 0 else mask
            one.known_codes = torch.randint(0, model.config.image_vocab, (length,))
        found.append(one)
    return found


def alone(model: DALLE, one: Candidate) -> Tensor:
    given = {} if one.known_mask is None else {"known_codes": one.known_codes, "known_mask": one.known_mask}
    negative = None if one.negative is None else one.negative[None]
    return generate(model, one.text[None], [[one.seed]], one.sampling, negative=negative, **given)[0]  # type: ignore[arg-type]


def rolled(batch: RollingBatch, waiting: list[Candidate]) -> tuple[dict[Candidate, Tensor], set[Candidate], int]:
    """Codes of the candidates, which join at random times; those that left early; the most positions at a time."""
    own, found, gone, positions = random.Random(1), dict[Candidate, Tensor](), set[Candidate](), 0
    while waiting or batch.rows:
        room = min(batch.size - len(batch.rows), len(waiting), own.choice((0, 0, 1, 2)))
        batch.join([waiting.pop(0) for _ in range(room)])
        found |= batch.finished()
        if batch.rows and own.random() < 0.03:
            gone.add(own.choice(batch.active))
            batch.leave(next(one for one in batch.active if one in gone))
        if batch.rows:
            batch.step()
            positions = max(positions, len({one.done for one in batch.active}))
            found |= batch.finished()
    return found, gone, positions


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("native", ["off", pytest.param("on", marks=compiled)])
def test_candidates_get_the_codes_that_they_get_alone(name: str, native: str) -> None:
    model = model_of(name)
    torch.manual_seed(0)
    every = candidates(model, 14)
    with force_backend(native=native):
        batch = RollingBatch(model, 5)
        found, gone, positions = rolled(batch, list(every))
        assert isinstance(batch._blocks.step, Step) == (native == "on")
        batch.close()
        assert positions >= 4 and gone and not gone & set(found) and gone | set(found) == set(every)
        for one, codes in found.items():
            assert torch.equal(codes, alone(model, one))
    assert sorted(batch._free) == list(range(2 * batch.size))


@compiled
def test_more_rows_than_one_fused_step_takes_get_the_same_codes() -> None:
    """Weights are packed then, and the blocks run one by one."""
    model = model_of("sparse")
    torch.manual_seed(0)
    every = candidates(model, 32)
    batch = RollingBatch(model, 24)
    batch.join(every[:10])
    waiting, most = every[10:], 0
    found = batch.finished()
    while batch.rows:
        batch.step()
        most = max(most, batch._cache.batch)
        found |= batch.finished()
        room = min(batch.size - len(batch.rows), 3)
        batch.join(waiting[:room])
        del waiting[:room]
        found |= batch.finished()
    batch.close()
    assert most > 16 and len(found) == 32
    for one, codes in found.items():
        assert torch.equal(codes, alone(model, one))


def test_logits_that_are_not_finite_are_refused() -> None:
    model = model_of("sparse")
    batch = RollingBatch(model, 2)
    batch.join([Candidate(TEXTS[0], 0, OPTIONS[0])])
    with torch.no_grad():
        model.image_head.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="nan or infinite"):
        batch.step()


def test_a_text_that_does_not_fit_leaves_the_batch_as_it_was() -> None:
    model = model_of("sparse")
    batch = RollingBatch(model, 3)
    first = Candidate(TEXTS[1], 1, OPTIONS[1])
    batch.join([first])
    with pytest.raises(ValueError, match="text positions"):
        batch.join([Candidate(torch.ones(6, dtype=torch.int64), 2, OPTIONS[0])])
    assert batch.active == [first] and len(batch._free) == 4
    found = batch.finished()
    while batch.rows:
        batch.step()
        found |= batch.finished()
    assert torch.equal(found[first], alone(model, first))


def test_a_candidate_whose_logits_are_not_finite_leaves_the_batch_as_it_was() -> None:
    model = model_of("sparse")
    with torch.no_grad():
        model.text_embedding.weight[19] = float("nan")  # type: ignore[index]
    batch = RollingBatch(model, 3)
    first, bad, later = (Candidate(TEXTS[row], row, OPTIONS[1]) for row in (0, 1, 3))
    batch.join([first])
    with pytest.raises(ValueError, match="nan or infinite"):
        batch.join([bad])
    assert batch.active == [first] and len(batch._free) == 4
    batch.join([later])
    found = batch.finished()
    while batch.rows:
        batch.step()
        found |= batch.finished()
    assert found.keys() == {first, later}
    for one, codes in found.items():
        assert torch.equal(codes, alone(model, one))


@pytest.mark.parametrize(
    "options",
    [
        {"shift_tokens": True},
        {"text_features": 8, "text_head": False},
        {"padding": "left", "positions": "rope_1d", "text_head": False},
        {"grids": GridsConfig(), "positions": "rope_1d"},
    ],
)
def test_models_with_one_position_for_all_rows_or_several_grids_have_no_rolling_batch(options: dict[str, Any]) -> None:
    assert not RollingBatch.supports(DALLE(dalle_config(**options)))
    assert RollingBatch.supports(DALLE(dalle_config()))
