"""Compiled code is given only what it can read: all else goes torch's way, with torch's own errors."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dalle.kernels.kv_cache import KVCache
from dalle.kernels.linear import Linear
from dalle.kernels.native import attention, bindings, build
from dalle.kernels.native import linear as native_linear
from dalle.kernels.native.cross_entropy import cross_entropy_grad_
from dalle.kernels.native.group_norm import group_norm
from dalle.models.dalle import DALLE
from support.generation import sample
from support.native_decode import CONFIG, SHAPE, TEXT, Decoder, attended, compiled, filled, steps


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def linear() -> Linear:
    torch.manual_seed(0)
    return Linear(32, 64)


def begun(model: DALLE, batch: int = 2) -> tuple[KVCache, Decoder]:
    """A cache that holds the text and four image tokens, in which native code has had its part; and what adds more."""
    _, cache, decoder = steps(model, batch, TEXT, (1,) * 4)
    assert not bindings.functions() or decoder.fused() or attended(cache)
    return cache, decoder


def test_wrong_shapes_and_devices_get_torchs_errors(linear: Linear) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(torch.randn(2, 64))
    with pytest.raises(RuntimeError, match="meta"):
        Linear(32, 64, device="meta")(torch.randn(2, 32))


@compiled
def test_biases_need_not_be_contiguous(linear: Linear) -> None:
    x, bias = torch.randn(1, 32), torch.randn(128)[::2]
    found = native_linear.linear(x, linear.weight, bias)
    assert found is not None
    torch.testing.assert_close(found, F.linear(x, linear.weight, bias), rtol=1e-5, atol=1e-5)


def test_vmap_jvp_trace_and_fake_tensors_use_torch(linear: Linear) -> None:
    x, other = torch.randn(3, 2, 32), torch.randn(3, 2, 32)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(torch.func.vmap(linear)(x), linear(x), **close)
    torch.testing.assert_close(torch.func.jvp(linear, (x,), (other,))[1], other @ linear.weight.T, **close)
    traced = torch.jit.trace(linear, x, check_trace=False)
    torch.testing.assert_close(traced(other), linear(other), **close)
    with FakeTensorMode():
        assert Linear(32, 64)(torch.randn(2, 32)).shape == (2, 64)


def test_one_uniform_number_is_broadcast_to_all_rows() -> None:
    logits = torch.randn(5, 40)
    expected = sample(logits, torch.full((5,), 0.3))
    assert torch.equal(sample(logits, torch.tensor([0.3])), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_decoding_ignores_default_dtype_and_device(dtype: torch.dtype) -> None:
    model, logits, uniform = filled(CONFIG), torch.randn(3, 40), torch.rand(3)
    expected, *_ = steps(model, 2, TEXT, (1,) * 4)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        found, *_ = steps(model, 2, TEXT, (1,) * 4)
    finally:
        torch.set_default_dtype(before)
    torch.testing.assert_close(found, expected)
    drawn = sample(logits, uniform)
    with torch.device("meta"):
        assert torch.equal(sample(logits, uniform), drawn)


@torch.enable_grad()
def test_native_training_ops_ignore_default_dtype_and_device() -> None:
    qkv, ids = torch.randn(3, 2, 3, 16, 32).bfloat16().requires_grad_(), torch.arange(5)
    images, weight = torch.randn(2, 32, 3, 3).contiguous(memory_format=torch.channels_last), torch.ones(32)
    logits = torch.randn(5, 64)

    def results() -> list[torch.Tensor | None]:
        made = [group_norm(images, weight, weight, 32, 1e-6, True)]
        made += cross_entropy_grad_(logits.clone(), ids, 0.1, None) or ()
        if attention.usable(qkv):
            attended = attention.attend_sequences(qkv, None, True)
            made += [attended, *torch.autograd.grad(attended.sum(), qkv)]
        return made

    expected = results()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = results()
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(found) == len(expected) > 2
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("batch", [2, 12])
@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_full_kv_cache_is_an_error(batch: int, positions: str) -> None:
    model = filled(replace(CONFIG, positions=positions))
    cache, decoder = begun(model, batch)
    decoder.extend(torch.zeros(batch, 15, dtype=torch.int64), cache)
    before = cache.keys.clone()
    with pytest.raises((RuntimeError, IndexError)):
        decoder.extend(torch.zeros(batch, 1, dtype=torch.int64), cache)
    assert torch.equal(cache.keys, before)


@pytest.mark.parametrize("batch", [2, 12])
def test_cache_with_more_rows_than_the_batch_is_an_error(batch: int) -> None:
    """As with torch alone, one row of tokens then stands for all."""
    model = filled(CONFIG)
    cache, decoder = begun(model, batch)
    position, ids = cache.position, torch.full((1, 1), 3)
    found = decoder.extend(ids, cache)
    cache.position = position
    torch.testing.assert_close(found, decoder.extend(ids.expand(batch, 1), cache), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [2, 12])
def test_reordered_cache_rows_are_followed(batch: int) -> None:
    model = filled(CONFIG)
    (cache, decoder), ids = begun(model, batch), torch.full((batch, 1), 3)
    twin = copy.deepcopy(cache)
    assert not attended(twin)
    expected = decoder.extend(ids, twin)
    cache.keys, cache.values = cache.keys.flip(1), cache.values.flip(1)
    torch.testing.assert_close(decoder.extend(ids, cache), expected.flip(0), rtol=1e-4, atol=1e-4)


def test_fused_step_follows_replaced_parameters() -> None:
    model = filled(CONFIG)
    (cache, decoder), ids = begun(model), torch.full((2, 1), 3)
    position, expected = cache.position, decoder.extend(ids, cache)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    _others = [torch.full_like(parameter, torch.nan) for parameter in model.parameters() for _ in range(20)]
    cache.position = position
    torch.testing.assert_close(decoder.extend(ids, cache), expected)


def test_dropout_and_hooks_run_in_torch() -> None:
    model = filled(replace(CONFIG, transformer=replace(SHAPE, dropout=0.5)))
    (cache, decoder), x = begun(model), torch.randn(2, 1, 64)
    model.train()

    def states() -> Tensor:
        cache.position = CONFIG.text_length
        return model.transformer(x, "causal", cache=cache, blocks=decoder.blocks)

    assert not torch.equal(states(), states())
    seen: list[Tensor] = []
    model.eval().transformer.blocks[1].register_forward_hook(lambda module, args, output: seen.append(output))
    steps(model, 2, TEXT, (1,) * 3)
    assert len(seen) == 4


def test_bfloat16_is_packed_where_onednn_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = Linear(32, 64).bfloat16()
    assert linear.packable(20) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not linear.packable(20)


def test_failing_compiler_is_logged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\nprintf 'no license \\377' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{compiler}'")
    with caplog.at_level(logging.INFO):
        assert build.library.__wrapped__() is None
    if build.platform.system() == "Linux":
        assert "no license" in caplog.text


def test_torchs_openmp_is_linked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also if other libraries have brought their own, and with a space in the path."""
    paths = ["/my env/faiss.libs/libgomp-1.so", "/my env/torch/lib/libgomp.so.1"]
    maps = tmp_path / "maps"
    maps.write_text("".join(f"7f00-7f01 r-xp 00000000 08:01 1234      {path}\n" for path in paths))
    monkeypatch.setattr(build, "open", lambda _, **options: maps.open(**options), raising=False)
    assert build._threads() == ["-Wl,--as-needed", paths[1]]
