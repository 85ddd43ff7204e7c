"""How many candidates are drawn at a time: the estimate against what is allocated, limits, and control groups."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from dalle import device
from dalle.device import free_memory
from dalle.generation.batching import plan_batches, row_bytes
from dalle.kernels.linear import packed_bytes
from dalle.models.dalle import DALLE
from support.generation import generate
from support.tiny_configs import dalle_config

CONFIG = dalle_config(width=64, depth=3, heads=4, text_vocab=50, text_length=8, image_vocab=100, grid=(8, 8))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> DALLE:
    torch.manual_seed(0)
    return DALLE(CONFIG).eval()


def test_kv_cache_has_its_exact_size(model: DALLE) -> None:
    cache = model.new_cache(5)
    tokens = CONFIG.text_length + 64 - 1  # the last image token is never an input
    assert cache.keys.nbytes + cache.values.nbytes == 2 * 3 * 5 * 64 * tokens * 4
    assert copy.deepcopy(model).bfloat16().new_cache(5).keys.nbytes == 3 * 5 * 64 * tokens * 2


@pytest.mark.parametrize("batch", [1, 6, 40])
def test_peak_memory_of_a_batch_is_within_the_estimate(model: DALLE, batch: int) -> None:
    text = torch.randint(1, 50, (1, 8))
    with torch.profiler.profile(profile_memory=True) as profile:
        generate(model, text, [list(range(batch))], batch_size=batch)
    held = most = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    estimate = batch * row_bytes(model, 0) + packed_bytes(model, batch)
    assert 0.2 * estimate < most <= estimate


def test_batches_obey_the_memory_limit(model: DALLE) -> None:
    one = row_bytes(model, 0)
    with torch.no_grad():
        assert plan_batches(model, 100, 0, False, memory_limit=4 * one)[0] == 4
        assert plan_batches(model, 100, 0, True, memory_limit=4 * one)[0] == 2
        assert plan_batches(model, 100, 0, False, memory_limit=1) == (1, False)
        assert plan_batches(model, 3, 0, False, memory_limit=10**12)[0] == 3
        assert plan_batches(model, 3, 0, False, batch_size=2, memory_limit=1)[0] == 2
        size = packed_bytes(model, 100)
        batch, pack = plan_batches(model, 10**6, 0, False, memory_limit=size + 20 * one)
        assert (batch, pack) == ((20, True) if size else (20, False))
        # Room for the copy and so few rows that nothing is packed for them: the copy's room is for rows too
        assert plan_batches(model, 10**6, 0, False, memory_limit=size + 7 * one)[0] == (size + 7 * one) // one


def test_free_memory_respects_cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_CGROUP", tmp_path)
    free = free_memory(CPU)
    assert free > 2**20
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert free_memory(CPU) > 2**20
    (tmp_path / "memory.max").write_text("5000\n")
    assert free_memory(CPU) == 4000
