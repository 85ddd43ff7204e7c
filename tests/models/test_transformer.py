"""The transformer block: masks, recomputation, dropout, start values, both feed-forwards."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.kernels.masks import mask
from dalle.kernels.pattern import Pattern, SparseMask
from dalle.models.transformer import Transformer
from dalle.models.transformer_config import TransformerConfig

SMALL = TransformerConfig(width=16, depth=3, heads=2)
GROUPED = replace(SMALL, heads=4, kv_heads=2, qk_norm=True, qk_norm_kind="own", biases="qkv")
VARIANTS = [SMALL, replace(SMALL, qk_norm=True), replace(SMALL, feed_forward="swiglu"), GROUPED]


def build(config: TransformerConfig) -> Transformer:
    """With weights large enough that every part counts."""
    torch.manual_seed(0)
    model = Transformer(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def inputs(tokens: int = 6) -> Tensor:
    return torch.randn(2, tokens, 16, generator=torch.Generator().manual_seed(1))


def test_block_equals_the_formula() -> None:
    model, x = build(SMALL), inputs()
    expected = x
    for block in model.blocks:
        normed = block.attention_norm(expected)
        q, k, v = (part.view(2, 6, 2, 8).transpose(1, 2) for part in block.attention.qkv(normed).chunk(3, dim=-1))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(8)).softmax(-1)
        expected = expected + block.attention.out((weights @ v).transpose(1, 2).reshape(2, 6, 16))
        hidden = F.gelu(block.feed_forward.up(block.feed_forward_norm(expected)))
        expected = expected + block.feed_forward.down(hidden)
    torch.testing.assert_close(model(x), model.norm(expected), atol=1e-4, rtol=1e-4)


def test_shared_keys_are_those_of_a_model_that_repeats_them() -> None:
    """With the rows of each head of keys and values copied for all the queries that share it."""
    model, x = build(GROUPED), inputs()
    whole = build(replace(GROUPED, kv_heads=None))
    state = model.state_dict()
    for name, value in state.items():
        if ".qkv." in name:
            q, k, v = value.split((16, 8, 8))
            k, v = (part.unflatten(0, (2, 4)).repeat_interleave(2, dim=0).flatten(0, 1) for part in (k, v))
            state[name] = torch.cat((q, k, v))
        elif ".k_norm." in name:
            state[name] = value.repeat_interleave(2, dim=0)
    whole.load_state_dict(state)
    triangle = torch.ones(6, 6, dtype=torch.bool).tril()
    for seen in (None, "causal", triangle, triangle[None, None].repeat(2, 1, 1, 1)):
        torch.testing.assert_close(model(x, seen), whole(x, seen))
    cache = model.new_cache(2, 6)
    assert cache.keys.shape == (3, 2, 2, 6, 4)
    model(x[:, :5], "causal", cache=cache)
    last = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    last[0, ..., :2] = False
    other = whole.new_cache(2, 6)
    whole(x[:, :5], "causal", cache=other)
    torch.testing.assert_close(model(x[:, 5:], last, cache=cache), whole(x[:, 5:], last, cache=other))


@pytest.mark.parametrize("config", VARIANTS)
def test_causal_equals_the_triangular_mask(config: TransformerConfig) -> None:
    model, x = build(config), inputs()
    triangle = torch.ones(6, 6, dtype=torch.bool).tril()
    plain = model(x, "causal")
    torch.testing.assert_close(plain, model(x, triangle))
    torch.testing.assert_close(plain, model(x, ["causal", triangle, "causal"]))
    changed = x.clone()
    changed[:, 4:] += 1
    torch.testing.assert_close(model(changed, "causal")[:, :4], plain[:, :4])
    assert not torch.allclose(model(x), plain)


@pytest.mark.parametrize("config", VARIANTS)
def test_cached_equals_uncached(config: TransformerConfig) -> None:
    model, x = build(config), inputs()
    cache = model.new_cache(2, 6)
    parts = [model(x[:, start:end], "causal", cache=cache) for start, end in [(0, 2), (2, 3), (3, 6)]]
    torch.testing.assert_close(torch.cat(parts, 1), model(x, "causal"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", VARIANTS)
def test_activation_checkpointing_does_not_change_gradients(config: TransformerConfig) -> None:
    gradients = []
    for recompute in (False, True):
        model = build(replace(config, checkpoint_activations=recompute, dropout=0.2))
        torch.manual_seed(3)
        model(inputs(), "causal").square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_dropout_is_off_in_evaluation() -> None:
    model, x = build(replace(SMALL, dropout=0.5)), inputs()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("sparse", [False, True])
def test_attention_dropout_is_off_in_evaluation(sparse: bool) -> None:
    model, x = build(replace(SMALL, attention_dropout=0.5)), inputs(20)
    pattern = Pattern("row", 4, 4)
    layer = SparseMask(pattern, mask("row", 4, 4, 4)) if sparse else "causal"
    assert not torch.equal(model(x, layer), model(x, layer))
    torch.manual_seed(5)
    first = model(x, layer)
    torch.manual_seed(5)
    assert torch.equal(model(x, layer), first)
    plain = build(SMALL).eval()
    torch.testing.assert_close(model.eval()(x, layer), plain(x, layer))
    # One key alone: its weight of 1 is dropped whole or doubled, and all else stays
    one = build(replace(SMALL, attention_dropout=0.5, depth=1, biases="none")).train()
    seen = {tuple(one(x[:1, :1])[0, 0].tolist()) for _ in range(40)}
    assert len(seen) == 4  # two heads


def test_initial_weights_are_scaled_by_depth() -> None:
    torch.manual_seed(0)
    block = Transformer(TransformerConfig(width=256, depth=8, heads=4)).blocks[0]
    assert block.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert block.feed_forward.up.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert block.attention.out.weight.std().item() == pytest.approx(0.02 / 4, rel=0.02)
    assert block.feed_forward.down.weight.std().item() == pytest.approx(0.02 / 4, rel=0.02)


def test_swiglu_has_as_many_parameters_as_gelu() -> None:
    counts = [
        sum(p.numel() for p in Transformer(TransformerConfig(feed_forward=kind)).parameters())
        for kind in ("gelu", "swiglu")
    ]
    assert counts[1] == pytest.approx(counts[0], rel=0.02)


@pytest.mark.parametrize(
    "wrong", [{"heads": 3}, {"depth": 0}, {"width": 0}, {"dropout": 1.0}, {"attention_dropout": -0.1}]
)
def test_wrong_shapes_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="heads is 3; it must divide width|dropout is|must be at least 1"):
        replace(SMALL, **wrong)
