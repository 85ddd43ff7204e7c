"""What stands between codes and the decoder: the same for all image tokenizers, and gradients pass."""

from __future__ import annotations

import pytest
import torch

from dalle.image_tokenizers import ImageTokenizer, build
from support.tiny_tokenizers import TOKENIZERS


def made(kind: str) -> ImageTokenizer:
    torch.manual_seed(0)
    return build(TOKENIZERS[kind]).eval()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_decode_equals_decoding_the_codebook_vectors(kind: str) -> None:
    tokenizer = made(kind)
    codes = torch.randint(24, (2, 3, 5))  # no square, and not of the size it was made for
    rows = tokenizer.codebook_embeddings()
    by_hand = torch.stack([torch.stack([torch.stack([rows[c] for c in row]) for row in grid]) for grid in codes])
    assert torch.equal(tokenizer.embed_codes(codes).float(), by_hand.permute(0, 3, 1, 2))
    images = tokenizer.decode(codes)
    assert images.shape == (2, 3, 3 * tokenizer.factor, 5 * tokenizer.factor)
    assert torch.allclose(tokenizer.decode_latents(by_hand.permute(0, 3, 1, 2)).clamp(0, 1), images, atol=1e-5)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_gradients_reach_continuous_latents(kind: str) -> None:
    tokenizer = made(kind)
    vectors = torch.randn(1, tokenizer.codebook_embeddings().shape[1], 3, 3, requires_grad=True)
    tokenizer.decode_latents(vectors).square().sum().backward()
    assert vectors.grad is not None and vectors.grad.abs().sum() > 0
