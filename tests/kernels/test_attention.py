"""Masks against a slow loop over pixels; attention against its formula; rotary positions; the cache."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dalle.kernels.attention import attend, attend_packed, rope_table, rotate
from dalle.kernels.kv_cache import KVCache
from dalle.kernels.masks import Kind, mask

KINDS: list[Kind] = ["full", "row", "column", "conv"]


def slow_mask(kind: str, text: int, height: int, width: int, kernel: int) -> Tensor:
    """The caption of the paper's figure 11, pixel by pixel."""
    size = text + height * width
    allowed = torch.zeros(size, size, dtype=torch.bool)
    for query in range(size):
        for key in range(query + 1):
            if key < text:
                allowed[query, key] = True
                continue
            y, x = divmod(query - text, width)
            if kind == "full":
                allowed[query, key] = True
            elif kind == "column":
                allowed[query, key] = (key - text) % width == x
        if query < text:
            continue
        if kind == "row":  # walk back over the line's end until the token right above
            for step in range(width + 1):
                if query - step >= text:
                    allowed[query, query - step] = True
        if kind == "conv":  # walk over the window's cells; a cell beyond a line's end lies in the line next to it
            for dy in range(-(kernel // 2), 1):
                for dx in range(-(kernel // 2), kernel // 2 + 1):
                    yy, xx = y + dy, x + dx
                    while xx < 0:
                        yy, xx = yy - 1, xx + width
                    while xx >= width:
                        yy, xx = yy + 1, xx - width
                    if yy >= 0 and (yy, xx) <= (y, x):
                        allowed[query, text + yy * width + xx] = True
    return allowed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text,height,width,kernel", [(6, 4, 4, 3), (3, 5, 4, 5), (0, 3, 7, 3), (2, 8, 8, 11), (4, 1, 1, 1)]
)
def test_mask_equals_a_loop_over_pixels(kind: Kind, text: int, height: int, width: int, kernel: int) -> None:
    assert torch.equal(mask(kind, text, height, width, kernel), slow_mask(kind, text, height, width, kernel))


def test_masks_equal_the_papers_4x4_example() -> None:
    """Figure 11: 6 text tokens, 16 image tokens; each image token attends to 5 in a row, the last right above it."""
    row = mask("row", 6, 4, 4)[6:, 6:]
    assert row.sum(1).tolist() == [1, 2, 3, 4] + [5] * 12
    assert all(row[i, i - 4] for i in range(4, 16))
    column = mask("column", 6, 4, 4)[6:, 6:]
    assert column.sum(1).tolist() == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    inner = mask("conv", 6, 4, 4, 3)[6 + 6, 6:].view(4, 4)  # row 1, column 2: three above, the left one, itself
    assert inner.nonzero().tolist() == [[0, 1], [0, 2], [0, 3], [1, 1], [1, 2]]
    edge = mask("conv", 6, 4, 4, 3)[6 + 8, 6:].view(4, 4)  # row 2, column 0: the left neighbors lie a line higher
    assert edge.nonzero().tolist() == [[0, 3], [1, 0], [1, 1], [1, 3], [2, 0]]


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_causal_and_visible_to_the_image(kind: Kind) -> None:
    allowed = mask(kind, 5, 3, 3)
    assert torch.equal(allowed[:5], torch.ones(5, 14, dtype=torch.bool).tril())
    assert allowed[5:, :5].all() and allowed.diagonal().all()


def test_wrong_kind_and_kernel_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown attention 'diagonal'"):
        mask("diagonal", 2, 2, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is 4 wide; it must be odd"):
        mask("conv", 2, 2, 2, kernel=4)


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("queries,keys", [(7, 7), (3, 7), (1, 7), (5, 300), (350, 350), (330, 347), (5, 600)])
def test_attend_equals_the_formula(dtype: torch.dtype, tolerance: float, queries: int, keys: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, queries, 8, generator=generator).to(dtype)
    k, v = torch.randn(2, 2, 3, keys, 8, generator=generator).to(dtype)
    causal = torch.tensor([[key <= query + keys - queries for key in range(keys)] for query in range(queries)])
    random = torch.rand(queries, keys, generator=generator) < 0.5
    random[:, 0] = True
    for given, allowed in [(None, torch.ones_like(causal)), ("causal", causal), (random, random)]:
        scores = (q.double() @ k.double().transpose(-1, -2) / math.sqrt(8)).masked_fill(~allowed, -math.inf)
        expected = (scores.exp() / scores.exp().sum(-1, keepdim=True)) @ v.double()
        torch.testing.assert_close(attend(q, k, v, given).double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 0.02), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("given", ["causal", "table", "packed"])
def test_attention_dropout_has_the_expected_mean_and_deviation(
    dtype: torch.dtype, tolerance: float, given: str
) -> None:
    """Of many drawings the mean is attention without dropout, and the variance that of independent weights."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 24, 32, dtype=dtype)
    table = mask("full", 4, 4, 5)
    share, draws = 0.25, 4000
    many = torch.stack((q, k, v)).expand(3, draws, 1, 24, 32).clone().requires_grad_()
    if given == "packed":
        found = attend_packed(many, "causal", share)
    else:
        found = attend(*many, "causal" if given == "causal" else table, share)
    weights = (q.double() @ k.double().transpose(-1, -2) / 32**0.5).masked_fill(~table, -math.inf).softmax(-1)
    mean = (weights @ v.double())[0, 0]
    deviation = (weights.square() @ v.double().square() * share / (1 - share))[0, 0].sqrt()
    torch.testing.assert_close(found.double().mean(0)[0], mean, atol=tolerance + 4 * 0.7 / draws**0.5, rtol=0)
    torch.testing.assert_close(found.double().std(0)[0], deviation, atol=tolerance, rtol=0.06)
    if given == "packed":
        assert torch.autograd.grad(found.sum(), many)[0].isfinite().all()


def test_attention_dropout_zeroes_weights_and_scales_the_rest() -> None:
    """With values that are the keys' own unit vectors, what comes out are the weights: 0 or grown."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 3, 8, 8)
    v = torch.eye(8).expand(2, 3, 8, 8)
    plain, found = attend(q, k, v), attend(q, k, v, dropout=0.5)
    kept = found > 0
    torch.testing.assert_close(found[kept], 2 * plain[kept])
    assert 0.3 < kept.float().mean() < 0.7 and not found[~kept].any()


def test_rotary_scores_depend_on_relative_positions_only() -> None:
    """In two dimensions: the score of two image tokens depends on how far apart their rows and columns are."""
    cos, sin = rope_table(4, 6, 6, 16)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=generator).expand(2, 1, 1, 40, 16)
    scores = (rotate(q, cos, sin) @ rotate(k, cos, sin).transpose(-1, -2))[0, 0]
    image = scores[4:, 4:].view(6, 6, 6, 6)  # query row, column; key row, column
    torch.testing.assert_close(image[1:, 1:, 1:, 1:], image[:-1, :-1, :-1, :-1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores[1:4, 1:4], scores[:3, :3], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(image[2, 3, 2, 1], image[2, 3, 0, 3], atol=1e-3)  # two to the left is not two up


def test_rotation_equals_complex_multiplication() -> None:
    cos, sin = rope_table(3, 2, 2, 8)
    x = torch.randn(1, 2, 7, 8, generator=torch.Generator().manual_seed(0))
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.complex(cos, sin)
    torch.testing.assert_close(rotate(x, cos, sin), torch.cat((turned.real, turned.imag), -1))


def test_kv_cache_returns_appended_keys_and_values() -> None:
    cache = KVCache(2, 3, 2, 5, 4)
    k = torch.randn(2, 3, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    for start, end in [(0, 3), (3, 4), (4, 5)]:
        for layer in range(2):
            keys, values = cache.append(layer, k[layer, :, :, start:end], -k[layer, :, :, start:end])
            assert torch.equal(keys, k[layer, :, :, :end]) and torch.equal(values, -k[layer, :, :, :end])
        cache.advance(end - start)
    assert cache.position == 5
    wide = KVCache(2, 4, 2, 9, 4)
    wide.load_prefixes([cache.row(row) for row in (2, 2, 0, 1)])
    assert wide.position == 5 and torch.equal(wide.keys[:, :, :, :5], k[:, [2, 2, 0, 1]])
