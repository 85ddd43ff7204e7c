"""Finite scalar and Gumbel quantization against the papers' formulas and torch.distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from dalle.image_tokenizers.quantize import FSQConfig, FSQQuantizer, GumbelConfig, GumbelQuantizer, kl_to_uniform

LEVELS = [[8, 5, 5, 5], [4, 3], [2, 6, 7]]


def fsq_of_the_paper(z: np.ndarray, levels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Appendix A.1 of arXiv 2309.15505, in numpy: z [..., C] to quantized vectors and indices."""
    sizes, eps = np.asarray(levels), 1e-3
    basis = np.concatenate(([1], np.cumprod(sizes[:-1])))
    half_l = (sizes - 1) * (1 - eps) / 2
    offset = np.where(sizes % 2 == 1, 0.0, 0.5)
    shift = np.tan(offset / half_l)
    quantized = np.round(np.tanh(z + shift) * half_l - offset)
    half_width = sizes // 2
    zhat = quantized / half_width
    return zhat, ((zhat * half_width) + half_width) @ basis


@pytest.mark.parametrize("levels", LEVELS)
def test_fsq_equals_the_paper(levels: list[int]) -> None:
    model = FSQQuantizer(FSQConfig(levels=levels))
    z = 2 * torch.randn(4, len(levels), 5, 5, generator=torch.Generator().manual_seed(0))
    vectors, codes = fsq_of_the_paper(z.permute(0, 2, 3, 1).double().numpy(), levels)
    made = model(z, 1.0)
    assert torch.equal(made.codes, torch.from_numpy(codes).round().long())
    assert torch.equal(model.encode(z), made.codes)
    torch.testing.assert_close(made.latents.permute(0, 2, 3, 1).double(), torch.from_numpy(vectors))
    torch.testing.assert_close(model.lookup(made.codes), made.latents)


@pytest.mark.parametrize("levels", LEVELS)
def test_fsq_every_code_round_trips(levels: list[int]) -> None:
    model = FSQQuantizer(FSQConfig(levels=levels))
    assert model.codebook_size == math.prod(levels)
    codes = torch.arange(model.codebook_size).view(1, -1, 1)
    vectors = model.lookup(codes)
    assert vectors.abs().max() <= 1
    assert len(vectors[0, :, :, 0].T.unique(dim=0)) == model.codebook_size
    # The outputs of an encoder that bound() sends exactly to the levels of a code.
    half = (model.levels - 1) * (1 - 1e-3) / 2
    offset = 0.5 * (model.levels % 2 == 0)
    inside = ((vectors * (model.levels // 2) + offset) / half).clamp(-1 + 1e-6, 1 - 1e-6)
    assert torch.equal(model.encode(inside.atanh() - (offset / half).tan()), codes)


def test_fsq_gradient_is_that_of_the_bound() -> None:
    model = FSQQuantizer(FSQConfig(levels=[8, 5]))
    z = torch.randn(2, 2, 3, 3).requires_grad_()
    (through,) = torch.autograd.grad(model(z, 1.0).latents.sum(), z)
    (bound,) = torch.autograd.grad((model.bound(z) / (model.levels // 2)).sum(), z)
    torch.testing.assert_close(through, bound)


@pytest.mark.parametrize("levels", [[], [1, 5]])
def test_fsq_impossible_levels_are_refused(levels: list[int]) -> None:
    with pytest.raises(ValueError, match="levels"):
        FSQConfig(levels=levels)


def gumbel(**options: bool) -> GumbelQuantizer:
    torch.manual_seed(0)
    return GumbelQuantizer(GumbelConfig(codebook_size=10, code_channels=6, **options))


def test_gumbel_encodes_without_noise() -> None:
    model, z = gumbel(), torch.randn(2, 6, 3, 3)
    logits = torch.einsum("bchw,kc->bkhw", z, model.proj.weight[:, :, 0, 0]) + model.proj.bias[:, None, None]
    for _ in range(2):
        assert torch.equal(model.encode(z), logits.argmax(1))
    codes = model.encode(z)
    assert torch.equal(model.lookup(codes)[1, :, 2, 0], model.embed.weight[codes[1, 2, 0]])


def test_gumbel_samples_from_the_softmax() -> None:
    model = gumbel()
    z = torch.randn(1, 6, 1, 1).expand(20000, 6, 1, 1)
    with torch.no_grad():
        codes = model(z, 1.0).codes.flatten()
    probabilities = model.proj(z[:1]).flatten().softmax(0)
    torch.testing.assert_close(codes.bincount(minlength=10) / 20000, probabilities, atol=0.015, rtol=0)


def test_gumbel_relaxation_mixes_and_straight_through_picks() -> None:
    z = torch.randn(2, 6, 3, 3, requires_grad=True)
    soft, hard = gumbel(), gumbel(straight_through=True)
    picked = hard(z, 1.0)
    torch.testing.assert_close(picked.latents, hard.lookup(picked.codes))
    assert not torch.allclose(soft(z, 1.0).latents, picked.latents, atol=1e-4)
    cold = soft(z, 1e-4)
    torch.testing.assert_close(cold.latents, soft.lookup(cold.codes), atol=1e-4, rtol=1e-3)
    (gradient,) = torch.autograd.grad(picked.latents.square().sum(), z)
    assert gradient.abs().sum() > 0


def test_kl_to_uniform_equals_torch_distributions() -> None:
    logits = 3 * torch.randn(2, 7, 3, 4)
    expected = kl_divergence(Categorical(logits=logits.permute(0, 2, 3, 1)), Categorical(logits=torch.zeros(7)))
    torch.testing.assert_close(kl_to_uniform(logits), expected.mean())
    z = torch.randn(2, 6, 3, 3)
    model = gumbel()
    torch.testing.assert_close(model(z, 1.0).losses["kl"], kl_to_uniform(model.proj(z)))
