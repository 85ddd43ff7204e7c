"""What stands between codes and the decoder: the same for all image tokenizers, and gradients pass."""

from __future__ import annotations

import pytest
import torch

from dalle.image import (
    DiscreteVAEConfig,
    DVAEConfig,
    FSQConfig,
    GumbelConfig,
    ImageTokenizer,
    VQConfig,
    VQGANConfig,
    build,
)

SMALL = {
    "image_size": 16,
    "channels": 8,
    "channel_multipliers": [1, 2],
    "latent_channels": 12,
    "attention_resolutions": [],
}
KINDS = {
    "vq": VQGANConfig(**SMALL, quantizer=VQConfig(codebook_size=24, code_channels=4)),
    "vq euclidean": VQGANConfig(**SMALL, quantizer=VQConfig(codebook_size=24, code_channels=4, distance="euclidean")),
    "gumbel": VQGANConfig(**SMALL, quantizer=GumbelConfig(codebook_size=24, code_channels=4)),
    "fsq": VQGANConfig(**SMALL, quantizer=FSQConfig(levels=[4, 3, 2])),
    "dvae": DVAEConfig(image_size=16, codebook_size=24, groups=2, blocks_per_group=1, hidden=8, code_channels=6),
    "discrete_vae": DiscreteVAEConfig(image_size=16, codebook_size=24, code_channels=6, layers=1, hidden=8),
}


def made(kind: str) -> ImageTokenizer:
    torch.manual_seed(0)
    return build(KINDS[kind]).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_codes_is_decoding_their_vectors_cell_by_cell(kind: str) -> None:
    tokenizer = made(kind)
    codes = torch.randint(24, (2, 3, 5))  # no square, and not of the size it was made for
    rows = tokenizer.codebook_vectors()
    by_hand = torch.stack([torch.stack([torch.stack([rows[c] for c in row]) for row in grid]) for grid in codes])
    assert torch.equal(tokenizer.vectors(codes).float(), by_hand.permute(0, 3, 1, 2))
    pictures = tokenizer.decode(codes)
    assert pictures.shape == (2, 3, 3 * tokenizer.factor, 5 * tokenizer.factor)
    assert torch.allclose(tokenizer.from_vectors(by_hand.permute(0, 3, 1, 2)).clamp(0, 1), pictures, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_vectors_that_are_no_codes(kind: str) -> None:
    tokenizer = made(kind)
    vectors = torch.randn(1, tokenizer.codebook_vectors().shape[1], 3, 3, requires_grad=True)
    tokenizer.from_vectors(vectors).square().sum().backward()
    assert vectors.grad is not None and vectors.grad.abs().sum() > 0
