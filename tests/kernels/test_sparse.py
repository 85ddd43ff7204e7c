"""Sparse attention: each way gives the numbers of the dense mask, on any grid, and reads no key that none sees."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from dalle.kernels import attention, sparse, switches
from dalle.kernels.kv_cache import KVCache, Positions
from dalle.kernels.masks import Kind, mask
from dalle.kernels.pattern import Pattern, SparseMask, attention_blocks
from dalle.kernels.sparse import blocked, flex
from dalle.models.dalle import DALLE
from dalle.models.dalle_config import DALLEConfig
from support.generation import generate
from support.tiny_configs import dalle_config, random_dalle, transformer_config

KINDS: list[Kind] = ["row", "column", "conv"]
SHAPES = [(6, 4, 4, 3), (0, 5, 3, 3), (1, 3, 7, 5), (3, 12, 9, 5), (2, 4, 4, 11), (4, 1, 1, 1), (5, 11, 13, 3)]


def tensors(start: int, end: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the tokens from `start` on, keys and values of all, laid out as the transformer does."""
    generator = torch.Generator().manual_seed(end)
    packed = torch.randn(2, end, 3, 2, 8, generator=generator, dtype=torch.float64).to(dtype)
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    return q[:, :, start:].requires_grad_(), k.requires_grad_(), v.requires_grad_()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text,height,width,kernel", SHAPES)
def test_slices_are_the_visible_keys_of_a_query(kind: Kind, text: int, height: int, width: int, kernel: int) -> None:
    pattern, length = Pattern(kind, text, width, kernel), text + height * width
    seen = mask(kind, text, height, width, kernel)
    for start in range(text, length):
        for end in {start + 1, start + 2, start + 6} - set(range(length + 1, length + 6)):
            found = [key for part in pattern.slices(start, end) for key in range(*part.indices(end))]
            assert len(set(found)) == len(found) == pattern.count_keys(start, end)
            wanted = set(seen[start:end, :end].any(0).nonzero().flatten().tolist())
            one = start == end - 1
            assert not one or set(pattern.keys(length)[start].tolist()) - {-1} == wanted
            assert set(found) == wanted if one else set(found) >= wanted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text,height,width,kernel", SHAPES)
def test_blocks_have_every_visible_pair_once(kind: Kind, text: int, height: int, width: int, kernel: int) -> None:
    pattern, size = Pattern(kind, text, width, kernel), height * width
    seen = mask(kind, 0, height, width, kernel)
    for first in {0, size // 3, size // 2, size - 1}:
        for last in {first + 1, (first + size + 1) // 2, max(first + 1, size - 1), size}:
            at = attention_blocks(pattern, text + first, text + last, torch.float32, torch.device("cpu"))
            of, queries, keys = at.bias.shape[1:]
            pairs = torch.zeros(last - first, last)
            index = at.queries.view(of, queries, 1) * last + at.keys.view(of, 1, keys)
            pairs.view(-1).index_add_(0, index.flatten(), (at.bias == 0).float().flatten())
            assert torch.equal(pairs, seen[first:last, :last].float())
            assert torch.equal(at.queries[at.slots], torch.arange(last - first))
            assert pattern.count_pairs(text + first, text + last) == (last - first) * text + of * queries * keys


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text,height,width,kernel", SHAPES)
def test_blocked_attention_equals_the_dense_mask(kind: Kind, text: int, height: int, width: int, kernel: int) -> None:
    """Forward and backward, of whole sequences, of some whose last tokens are missing, and of later tokens alone."""
    pattern, length = Pattern(kind, text, width, kernel), text + height * width
    for start, end in {(0, length), (0, length - 1), (text, length), (text + 2, length), (length - 2, length - 1)}:
        if not (start == 0 or text <= start) or max(start, text) >= end:
            continue
        given = tensors(start, end)
        seen = mask(kind, text, height, width, kernel)[start:end, :end]
        outward = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        expected, found = attention.attend(*given, seen), blocked.attend(*given, pattern)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            torch.autograd.grad(found, given, outward), torch.autograd.grad(expected, given, outward)
        )


@pytest.mark.parametrize("dtype,error", [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_blocked_attention_in_other_dtypes_is_near_float64(dtype: torch.dtype, error: float) -> None:
    for kind in KINDS:
        exact = attention.attend(*tensors(0, 150), mask(kind, 7, 12, 12)[:150, :150])
        found = blocked.attend(*tensors(0, 150, dtype), Pattern(kind, 7, 12))
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), exact, atol=error, rtol=error)


SHAPE = transformer_config(width=64, depth=3)
CONFIG = dalle_config(transformer=SHAPE, grid=(6, 7), attention=("row", "column", "conv"))
VARIANTS = {
    "learned": CONFIG,
    "rope": replace(CONFIG, positions="rope"),
    "shifted": replace(CONFIG, shift_tokens=True),
    "checkpointing": replace(CONFIG, transformer=replace(SHAPE, checkpoint_activations=True)),
    "reversible": replace(CONFIG, transformer=replace(SHAPE, reversible=True)),
    "dropout": replace(CONFIG, transformer=replace(SHAPE, dropout=0.3, qk_norm=True)),
    "begin": replace(CONFIG, begin_id=1),
    "features": replace(CONFIG, text_features=6, text_head=False),
}
TEXT = torch.tensor([[3, 8, 1, 0, 0], [5, 5, 19, 7, 2]])


def build(config: DALLEConfig) -> DALLE:
    return random_dalle(config, std=0.15, center_norms=True).train()


@pytest.mark.parametrize("variant", VARIANTS)
def test_blocked_training_equals_dense(variant: str) -> None:
    model = build(VARIANTS[variant])
    text = torch.randn(2, 5, 6).mul_(TEXT[..., None] > 0) if variant == "features" else TEXT
    codes = torch.randint(0, 11, (2, 42), generator=torch.Generator().manual_seed(0))
    found = {}
    for way in ("dense", "blocked"):
        model.zero_grad()
        torch.manual_seed(1)
        with switches.force_backend(sparse=way):
            losses = model.losses(text, codes)
            (losses["text"] + losses["image"]).backward()
        found[way] = [loss.detach() for loss in losses.values()], [p.grad for p in model.parameters()]
    torch.testing.assert_close(found["blocked"], found["dense"], rtol=1e-4, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("options", [{"guidance": 2.0}, {"window": 4}, {"lead": 20}])
@pytest.mark.parametrize("kind", ["all", "features"])
def test_sparse_backends_sample_the_same_tokens(kind: str, options: dict, compiled: bool) -> None:
    model, given = build(VARIANTS["features"] if kind == "features" else CONFIG), dict(options)
    text = torch.randn(2, 5, 6).mul_(TEXT[..., None] > 0) if kind == "features" else TEXT
    lead = given.pop("lead", 0)
    if lead:
        given["known_codes"] = torch.arange(42) % 11
        given["known_mask"] = torch.arange(42) < lead
    drawn = []
    for way in ("dense", "auto", "blocked"):
        with switches.force_backend(sparse=way), nullcontext() if compiled else switches.force_backend(native="off"):
            drawn.append(generate(model, text, [[1], [3]], **given))
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])


@torch.no_grad()
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_invisible_keys_are_not_read(kind: Kind, count: int, compiled: bool) -> None:
    """They are made no numbers, which a mask would not hide: 0 times nan is nan."""
    model = build(replace(CONFIG, attention=(kind,), grid=(9, 7))).eval()
    codes = torch.randint(0, 11, (2, 50), generator=torch.Generator().manual_seed(0))
    with nullcontext() if compiled else switches.force_backend(native="off"):
        _, cache = model.prefill(TEXT)
        whole = model.new_cache(2)
        whole.load_prefixes([cache.row(0), cache.row(1)])
        model.extend(codes[:, :-count], whole)
        at = whole.position
        expected = model.extend(codes[:, -count:], whole)
        parts = Pattern(kind, 5, 7, 3).slices(at, at + count)
        held = KVCache(3, 2, 2, whole.keys.shape[3], 32)
        held.position = at
        for old, new in ((whole.keys, held.keys), (whole.values, held.values)):
            new.fill_(torch.nan)
            for part in parts:
                new[:, :, :, :at][:, :, :, part] = old[:, :, :, :at][:, :, :, part]
        assert held.keys.isnan().any()
        torch.testing.assert_close(model.extend(codes[:, -count:], held), expected)


def test_sparse_backend_by_number_of_queries() -> None:
    """On a CPU: slices for few queries, blocks where they save enough, else the dense mask."""
    pattern, q = Pattern("row", 256, 32), torch.empty(1, 1, 1279, 8)

    def chosen(start: int, end: int, of: Pattern = pattern) -> str:
        return sparse._choose_backend(q[:, :, start:end], q[:, :, :end], of)

    assert [chosen(0, 1279), chosen(900, 901), chosen(900, 932)] == ["blocked", "slices", "slices"]
    assert [chosen(256, 1279), chosen(256, 257), chosen(0, 256)] == ["blocked", "dense", "dense"]
    assert chosen(0, 95, Pattern("row", 32, 8)) == "dense"
    with switches.force_backend(sparse="dense"):
        assert chosen(0, 1279) == "dense"


def test_stored_masks_are_detected_as_patterns() -> None:
    model = build(replace(CONFIG, stored_masks=(0, 1, -1)))
    own, window = mask("column", 5, 6, 7)[:46, :46], mask("row", 5, 6, 7)[:46, :46]
    window[40, 20] = True  # of nobody's kind
    model.masks.copy_(torch.stack((own, window)))
    model.detect_sparse_masks()
    assert model.patterns == {0: Pattern("column", 5, 7, 3)}
    made = model._masks(Positions(20, 21), None)
    assert isinstance(made[0], SparseMask) and torch.equal(made[1], window[20:21, :21]) and made[2] == "causal"


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", [147, 20])
def test_flex_attention_equals_the_dense_mask(kind: Kind, end: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not compiled, which is the same arithmetic."""
    monkeypatch.setattr(flex, "_compiled", lambda: flex_attention)
    given = [x.detach() for x in tensors(0, end, torch.float32)]
    expected = attention.attend(*given, mask(kind, 6, 12, 12)[:end, :end])
    torch.testing.assert_close(flex.attend(*given, Pattern(kind, 6, 12)), expected)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_flex_attention_equals_the_dense_mask() -> None:
    for kind in KINDS:
        made = SparseMask(Pattern(kind, 6, 12), mask(kind, 6, 12, 12)[:149, :149])
        for batch in (2, 1):
            given = [x[:batch].detach() for x in tensors(0, 149, torch.float32)]
            with switches.force_backend(sparse="flex"):
                assert sparse._choose_backend(given[0], given[1], made.pattern) == "flex"
                found = sparse.attend(*given, made)
            torch.testing.assert_close(found, attention.attend(*given, made.dense))


def test_flex_attention_fallback_is_reported_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU it has no backward pass."""
    monkeypatch.setattr(flex, "_compiled", lambda: flex_attention)
    flex.runs.cache_clear()
    made = SparseMask(Pattern("row", 6, 12), mask("row", 6, 12, 12))
    given = tensors(0, 150, torch.float32)
    with switches.force_backend(sparse="flex"):
        for _ in range(2):
            found = sparse.attend(*given, made)
            torch.testing.assert_close(found, attention.attend(*given, made.dense))
    assert caplog.text.count("FlexAttention does not run here") == 1
    flex.runs.cache_clear()
