"""Latents, pixels and spectra: images of values and values of images, straight-through gradients, ranges, tiles."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from dalle.apps.vqgan_clip.canvas import FourierCanvas, LatentCanvas, PixelCanvas, clamp_with_grad, start_image
from dalle.apps.vqgan_clip.tiles import decode_in_tiles, tile_starts
from dalle.image_tokenizers import ImageTokenizer, build
from support.tiny_tokenizers import TOKENIZERS

KINDS = {kind: TOKENIZERS[kind] for kind in ("vq", "gumbel", "fsq", "dvae")}


def tokenizer_of(kind: str) -> ImageTokenizer:
    torch.manual_seed(0)
    return build(KINDS[kind]).eval().requires_grad_(False)


@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_decoded_from_nearest_codes_with_straight_through_gradients(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    codebook = tokenizer.codebook_embeddings()
    values = torch.randn(1, codebook.shape[1], 4, 6) * codebook.std()
    canvas = LatentCanvas(tokenizer, values, tile=512)
    flat = values.permute(0, 2, 3, 1).reshape(-1, codebook.shape[1])
    by_hand = torch.stack([(codebook - cell).square().sum(1).argmin() for cell in flat]).view(1, 4, 6)
    assert torch.equal(canvas.codes(values), by_hand)
    image = canvas.render(canvas.values)
    assert torch.allclose(image, tokenizer.decode(by_hand), atol=1e-5)
    nearest = tokenizer.embed_codes(by_hand).float().requires_grad_()
    weights = torch.rand_like(image)
    (clamp_with_grad(tokenizer.decode_latents(nearest), 0, 1) * weights).sum().backward()
    (image * weights).sum().backward()
    assert canvas.values.grad is not None and nearest.grad is not None
    assert torch.allclose(canvas.values.grad, nearest.grad, atol=1e-4)


def test_latents_start_at_an_images_codes_and_stay_in_the_codebooks_range() -> None:
    tokenizer = tokenizer_of("vq")
    image = torch.rand(1, 3, 16, 24)
    canvas = LatentCanvas(tokenizer, torch.zeros(1, 4, 8, 12), tile=512)
    canvas.reset(image)
    assert torch.equal(canvas.codes(canvas.values), tokenizer.encode(image))
    assert torch.equal(canvas.initial, canvas.values) and torch.equal(canvas.average, canvas.values)
    with torch.no_grad():
        canvas.values.add_(100)
    canvas.on_step_end(0.9, 1)
    assert torch.equal(canvas.values.amax((0, 2, 3)), tokenizer.codebook_embeddings().amax(0))
    assert not {name for name in canvas.state_dict() if "tokenizer" in name}


def test_canvas_ema_forgets_its_start() -> None:
    canvas = PixelCanvas(torch.zeros(1, 3, 2, 2))
    for step in range(1, 200):
        with torch.no_grad():
            canvas.values.fill_(1.0)
        canvas.on_step_end(0.9, step)
    assert torch.allclose(canvas.average, torch.ones(1, 3, 2, 2), atol=1e-3)
    canvas.on_step_end(0.0, 1)
    assert torch.equal(canvas.average, canvas.values)


@pytest.mark.parametrize("extent", [(16, 16), (9, 14), (1, 1)])
def test_fourier_canvas_reproduces_its_image(extent: tuple[int, int]) -> None:
    image = 0.05 + 0.9 * torch.rand(1, 3, *extent)
    canvas = FourierCanvas(image)
    assert torch.allclose(canvas.render(canvas.values), image, atol=1e-4)


def test_clamp_passes_gradients_that_point_into_the_range() -> None:
    x = torch.tensor([-1.0, -1.0, 0.5, 2.0, 2.0], requires_grad=True)
    (clamp_with_grad(x, 0, 1) * torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])).sum().backward()
    assert clamp_with_grad(x, 0, 1).tolist() == [0, 0, 0.5, 1, 1]
    assert x.grad is not None and x.grad.tolist() == [0, -1, 1, 1, 0]


@pytest.mark.parametrize("kind", ["codes", "noise", "gradient", "gray", "white"])
def test_start_images_are_in_range_and_seeded(kind: str) -> None:
    one, same = (start_image(kind, 24, 40, torch.Generator().manual_seed(3)) for _ in range(2))
    assert one.shape == (1, 3, 24, 40) and torch.equal(one, same)
    assert one.min() >= 0 and one.max() <= 1


# ---- tiles


@pytest.mark.parametrize(
    ("length", "side", "overlap"), [(64, 64, 16), (65, 64, 16), (200, 64, 16), (7, 4, 1), (3, 4, 1)]
)
def test_tiles_cover_the_image_and_overlap(length: int, side: int, overlap: int) -> None:
    places = tile_starts(length, side, overlap)
    assert places[0] == 0 and places[-1] == max(length - side, 0)
    assert all(b - a <= side - overlap for a, b in pairwise(places))


def test_tiled_decoding_is_exact_for_a_pointwise_decoder() -> None:
    """A decoder of 1x1 convolutions and no norms: in tiles it must give exactly what it gives at once."""
    tokenizer = build(KINDS["dvae"]).eval()
    for module in tokenizer.decoder.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size != (1, 1):
            middle = module.weight.data[:, :, 1:2, 1:2].clone()
            module.weight.data.zero_()[:, :, 1:2, 1:2] = middle
    vectors = torch.randn(1, 6, 11, 17, requires_grad=True)
    whole = tokenizer.decode_latents(vectors)
    tiled = decode_in_tiles(tokenizer, vectors, tile=8)
    assert torch.allclose(tiled, whole, atol=1e-5)
    weights = torch.rand_like(whole)
    (expected,) = torch.autograd.grad((whole * weights).sum(), vectors)
    (found,) = torch.autograd.grad((tiled * weights).sum(), vectors)
    assert torch.allclose(found, expected, atol=1e-5)


def test_small_images_are_decoded_without_tiles() -> None:
    tokenizer = tokenizer_of("vq")
    vectors = torch.randn(1, 4, 8, 8)
    assert torch.equal(decode_in_tiles(tokenizer, vectors, tile=16), tokenizer.decode_latents(vectors))
