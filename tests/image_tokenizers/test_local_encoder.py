"""The encoder that sees a cell at a time: what each code depends on, pixel by pixel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dalle.image_tokenizers import VQConfig, VQGANConfig, build
from dalle.image_tokenizers.local_encoder import LocalEncoder, LocalEncoderConfig
from dalle.image_tokenizers.vqgan import VQGAN

FACTOR = 4


def encoder(margin: int) -> LocalEncoder:
    torch.manual_seed(0)
    return LocalEncoder(LocalEncoderConfig(width=16, blocks=2, margin=margin), FACTOR, latent_channels=6)


def images(side: int = 24) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("margin", [0, 2])
def test_latents_depend_on_their_cell_and_margin_only(margin: int) -> None:
    x = images().requires_grad_(True)
    latents = encoder(margin)(x)
    assert latents.shape == (2, 6, 6, 6)
    (gradient,) = torch.autograd.grad(latents[0, :, 2, 3].sum(), x)
    seen = gradient.abs().sum(1) > 0
    expected = torch.zeros(2, 24, 24, dtype=torch.bool)
    expected[0, 8 - margin : 12 + margin, 12 - margin : 16 + margin] = True
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("margin", [0, 2])
def test_latents_move_with_the_image(margin: int) -> None:
    model, x = encoder(margin), images()
    moved = model(x.roll(FACTOR, 3))
    inside = slice(2, -1)  # away from the edges, where other pixels come in
    torch.testing.assert_close(moved[..., 1:-1, inside], model(x)[..., 1:-1, 1:-2])


@pytest.mark.parametrize("margin", [0, 3])
def test_image_of_one_color_has_one_latent(margin: int) -> None:
    latents = encoder(margin)(torch.full((1, 3, 24, 24), 0.7)).flatten(2)
    torch.testing.assert_close(latents, latents[..., :1].expand_as(latents))


def test_codes_depend_on_their_cell_only() -> None:
    torch.manual_seed(0)
    config = VQGANConfig(
        image_size=16, channels=8, channel_multipliers=[1, 2], attention_resolutions=[8], latent_channels=12,
        local_encoder=LocalEncoderConfig(width=16, blocks=1), quantizer=VQConfig(codebook_size=64, code_channels=4),
    )  # fmt: skip
    model = build(config).eval()
    assert isinstance(model, VQGAN) and model.factor == 2
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    other = x.clone()
    other[..., :2, :2] = 1 - other[..., :2, :2]
    differ = (model.encode(x) != model.encode(other)).nonzero().tolist()
    assert differ in ([], [[0, 0, 0]])
    assert len(model.encode(torch.ones(1, 3, 16, 16)).unique()) == 1


@pytest.mark.parametrize("options", [{"width": 0}, {"blocks": 0}, {"expansion": 0}, {"margin": -1}, {"margin": 65}])
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        LocalEncoderConfig(**options)
