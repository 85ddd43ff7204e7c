"""Compiled code for the CPU: products, steps, attention and draws equal torch's own; without it, torch's are taken."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.kernels import switches
from dalle.kernels.kv_cache import KVCache
from dalle.kernels.linear import Int8Linear, Linear, packed, packed_bytes, quantize
from dalle.kernels.native import bindings, build
from dalle.kernels.native import linear as native_linear
from dalle.models.dalle import DALLE
from support.generation import generate, sample
from support.native_decode import CONFIG, SHAPE, TEXT, Decoder, attended, compiled, filled, steps
from support.published.references.transformers import CASES, features, inputs
from support.published.transformers import built, read, reference

VARIANTS: dict[str, dict[str, Any]] = {
    "gelu": {},
    "gelu_tanh": {"feed_forward": "gelu_tanh"},
    "quick_gelu": {"feed_forward": "quick_gelu", "biases": "none"},
    "swiglu": {"feed_forward": "swiglu", "norm": "rms", "hidden": 96, "biases": "not_qkv"},
    "geglu": {"feed_forward": "geglu", "hidden": 160, "qk_norm": True},
    "sandwich": {"sandwich": True, "layer_scale": True},
    "layer_scale": {"layer_scale": True, "rotate_values": True},
    "divided": {"divide_by_max": True},
    "wide heads": {"heads": 3, "head_channels": 96},
    "narrow heads": {"heads": 4},
    "shared keys": {"heads": 4, "kv_heads": 2, "head_channels": 32, "biases": "qkv"},
    "one key": {"heads": 4, "kv_heads": 1, "qk_norm": True, "qk_norm_kind": "rms", "rotate_values": True},
    "norms of heads": {"heads": 4, "kv_heads": 2, "qk_norm": True, "qk_norm_kind": "own", "norm": "rms"},
    "geglu_tanh": {"feed_forward": "geglu_tanh", "hidden": 96, "heads": 2, "head_channels": 256},
}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 7, 8, 9, 17, 40])
def test_linear_equals_torchs(dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_linear, "MAX_ROWS", {dtype: 100})
    torch.manual_seed(rows)
    for count, width in ((1, 32), (7, 64), (24, 96), (129, 320)):
        x, weight, bias = (torch.randn(shape).to(dtype) for shape in ((rows, width), (count, width), (count,)))
        expected = F.linear(x.double(), weight.double(), bias.double())
        found = native_linear.linear(x, weight, bias)
        assert found is not None and found.dtype == dtype
        error = 1e-6 if dtype == torch.float32 else 2**-8
        torch.testing.assert_close(found.double(), expected, rtol=error, atol=error * width**0.5)
        assert native_linear.linear(x[:, : width - 1], weight[:, : width - 1]) is None  # no multiple: torch's way


@compiled
@pytest.mark.parametrize("rows", [1, 5, 30])
def test_int8_linear_equals_float64(rows: int) -> None:
    torch.manual_seed(0)
    linear = Linear(96, 50)
    eight = Int8Linear(linear)
    x = torch.randn(rows, 3, 96)
    real = eight.weight.double() * eight.scale.double()[:, None]
    assert (real - linear.weight).abs().max() <= eight.scale.max() * 0.5001  # the nearest step
    torch.testing.assert_close(eight(x).double(), x.double() @ real.T + linear.bias.double(), rtol=1e-5, atol=1e-5)
    with switches.force_backend(native="off"):
        torch.testing.assert_close(eight(x).double(), x.double() @ real.T + linear.bias.double(), rtol=1e-5, atol=1e-5)


def compare(model: DALLE, batch: int, text: Tensor, sizes: tuple[int, ...], error: float) -> tuple[KVCache, Decoder]:
    fast, cache, decoder = steps(model, batch, text, sizes)
    with switches.force_backend(native="off"):
        plain, other, without = steps(model, batch, text, sizes)
    assert not attended(other) and not without.fused()
    scale = float(plain.abs().max())
    torch.testing.assert_close(fast, plain, rtol=0, atol=error * scale)
    held = cache.position
    torch.testing.assert_close(cache.keys[:, :, :, :held], other.keys[:, :, :, :held], rtol=error, atol=error * scale)
    return cache, decoder


@compiled
@pytest.mark.parametrize("eight", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_fused_step_equals_the_blocks(variant: str, eight: bool) -> None:
    shape = replace(SHAPE, **VARIANTS[variant])
    positions = "rope" if variant in ("swiglu", "layer_scale", "shared keys", "one key") else "learned"
    kinds = ("row", "column", "conv") if variant in ("gelu", "swiglu") else ("full",)
    model = filled(replace(CONFIG, transformer=shape, positions=positions, attention=kinds))
    if eight:
        quantize(model)
    for batch, sizes in ((1, (1,) * 19), (3, (1, 1, 2, 1)), (2, (4, 1, 3))):
        _, decoder = compare(model, batch, TEXT, sizes, 2e-6)
        assert decoder.fused(), "the compiled step was not taken"


@compiled
@pytest.mark.parametrize("head", [16, 32, 48, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_of_larger_batches_equals_the_blocks(head: int, dtype: torch.dtype) -> None:
    shape = replace(SHAPE, heads=2, kv_heads=1 if head == 64 else 2, head_channels=head)
    model = filled(replace(CONFIG, transformer=shape, attention=("full", "conv"))).to(dtype)
    cache, decoder = compare(model, 11, TEXT, (1, 1, 1, 5, 1, 2), 2e-6 if dtype == torch.float32 else 0.03)
    assert attended(cache) and not decoder.fused()


@compiled
def test_bfloat16_is_no_less_exact_than_torch() -> None:
    model = filled(CONFIG)
    exact, *_ = steps(model.double(), 2, TEXT, (1,) * 8)
    model = model.bfloat16()
    fast, _, decoder = steps(model, 2, TEXT, (1,) * 8)
    with switches.force_backend(native="off"):
        plain, *_ = steps(model, 2, TEXT, (1,) * 8)
    assert decoder.fused()
    assert (fast - exact).abs().mean() <= 1.1 * (plain - exact).abs().mean()


@compiled
@pytest.mark.parametrize("case", CASES)
def test_published_models_use_the_fused_step_where_supported(case: str, tmp_path: Path) -> None:
    model = built(read(case, reference(case)[0], tmp_path))
    text, _ = inputs()
    if case.startswith("llamagen"):
        text = features() if case == "llamagen-t2i" else torch.tensor([[3], [7]])
    cache, decoder = compare(model, 2, text, (1, 1, 3, 1, 1, 1), 1e-4)
    assert decoder.fused() or attended(cache)


@compiled
@pytest.mark.parametrize("options", [{}, {"guidance": 2.5, "top_k": 9}, {"guidance": 3.0, "guidance_until": 7}])
def test_native_and_torch_sample_the_same_tokens(options: dict[str, Any]) -> None:
    model = filled(replace(CONFIG, attention=("row", "column")))
    seeds = [list(range(20)), [5]]
    for window in (1, 3):
        fast = generate(model, TEXT, seeds, window=window, **options)
        with switches.force_backend(native="off"):
            plain = generate(model, TEXT, seeds, **options)
        # A uniform number within rounding of a boundary may fall on its other side: one candidate in 21, at the most
        assert (fast == plain).flatten(1).all(1).sum() >= 20


@compiled
def test_samples_equal_torchs() -> None:
    torch.manual_seed(0)
    different = total = 0
    for (vocabulary, rows), tied in itertools.product(
        ((1, 40), (5, 40), (64, 40), (1000, 24), (5000, 8)), (False, True)
    ):
        logits = torch.randn(rows, vocabulary) * 3
        if tied:
            logits = logits.bfloat16().float()  # many equal ones
        if vocabulary > 5:
            logits[::7, ::3] = -torch.inf
        uniform = torch.rand(rows)
        uniform[:2] = torch.tensor([0.0, 1 - 2**-24])
        for temperature, k, p in itertools.product(
            (0.3, 1.0), (None, 1, 3, 50, vocabulary), (None, 0.05, 0.5, 0.9, 0.999, 1.0)
        ):
            options = {"temperature": temperature, "top_k": k, "top_p": p}
            fast = sample(logits, uniform, **options)
            with switches.force_backend(native="off"):
                plain = sample(logits, uniform, **options)
            assert fast.dtype == torch.int64
            different, total = different + int((fast != plain).sum()), total + len(fast)
    assert different <= total / 5000, "more than where a uniform number falls within rounding of a boundary"


@compiled
def test_sampling_from_nonfinite_logits_terminates() -> None:
    logits = torch.full((3, 40), torch.nan)
    logits[1:] = torch.tensor([torch.inf, -torch.inf])[:, None]
    for options in ({}, {"top_k": 3}, {"top_p": 0.5}):
        drawn = sample(logits, torch.rand(3), **options)
        assert ((drawn >= 0) & (drawn < 40)).all()


def test_packed_weights_are_freed_after_use() -> None:
    model = filled(CONFIG)
    rows = 24
    size = sum(m.weight.nbytes for m in model.modules() if isinstance(m, Linear))
    assert packed_bytes(model, rows) == (size if torch.backends.mkldnn.is_available() else 0)
    assert packed_bytes(model, 1) == 0
    x = torch.randn(rows, 1, 64)
    expected = model.image_head(x)
    with packed(model, rows):
        torch.testing.assert_close(model.image_head(x), expected, rtol=1e-5, atol=1e-5)
        kept = model.image_head._packed
    assert model.image_head._packed is None
    assert (kept is not None) == torch.backends.mkldnn.is_available()
    with torch.autocast("cpu", torch.bfloat16):
        assert packed_bytes(model, rows) == 0


def test_without_a_compiler_torch_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = filled(CONFIG)
    with switches.force_backend(native="off"):
        expected = generate(model, TEXT, [[1, 2], [3]])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "false")  # there, and fails
    for function in (build.library, bindings.functions):
        function.cache_clear()
    try:
        with caplog.at_level(logging.INFO):
            assert torch.equal(generate(model, TEXT, [[1, 2], [3]]), expected)
        assert build.library() is None
        if build.platform.system() == "Linux":
            assert "native kernels cannot be compiled" in caplog.text and not list(tmp_path.rglob("*.so"))
        monkeypatch.setenv("CXX", "no-such-compiler")
        build.library.cache_clear()
        assert build.library() is None
    finally:
        monkeypatch.undo()
        for function in (build.library, bindings.functions):
            function.cache_clear()
