"""The dVAE: the dall_e package's shape, its likelihood as a density, and that it learns."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, Laplace, SigmoidTransform, TransformedDistribution, kl_divergence

from dalle.image_tokenizers import DVAEConfig, build
from dalle.image_tokenizers.dvae import DVAE, Block, logit_laplace_nll, map_pixels, unmap_pixels
from support.overfitting import overfit_four_images


def tiny(**options: int) -> DVAE:
    torch.manual_seed(0)
    base = {"image_size": 16, "codebook_size": 16, "groups": 3, "blocks_per_group": 1, "hidden": 8, "code_channels": 8}
    model = build(DVAEConfig(**(base | options)))
    assert isinstance(model, DVAE)
    return model


def test_parameter_count_equals_the_dall_e_packages() -> None:
    with torch.device("meta"):
        model = DVAE(DVAEConfig(image_size=256, codebook_size=8192, hidden=256, code_channels=128))
    assert sum(parameter.numel() for parameter in model.encoder.parameters()) == 53_786_240
    assert sum(parameter.numel() for parameter in model.decoder.parameters()) == 43_829_766
    assert len(model.encoder.state_dict()) == 74
    assert len(model.decoder.state_dict()) == 76
    assert model.grid == (32, 32)
    assert model.config.residual_gain == 1 / 64


def test_downsample_factor_is_8() -> None:
    with torch.device("meta"):
        assert DVAE(DVAEConfig(image_size=64)).grid == (8, 8)


def test_logit_laplace_integrates_to_1() -> None:
    edges = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    x = (edges[1:] + edges[:-1]) / 2
    for mean, log_scale in ((0.0, 0.0), (1.3, -1.0), (-0.7, -0.4)):
        given = torch.full_like(x, mean), torch.full_like(x, log_scale)
        assert abs(float((-logit_laplace_nll(x, *given)).exp().mean()) - 1) < 1e-3


def test_logit_laplace_equals_torch_distributions() -> None:
    mean, log_scale = torch.randn(50), torch.randn(50)
    x = 0.1 + 0.8 * torch.rand(50)
    density = TransformedDistribution(Laplace(mean, log_scale.exp()), [SigmoidTransform()])
    torch.testing.assert_close(logit_laplace_nll(x, mean, log_scale), -density.log_prob(x), atol=1e-4, rtol=1e-4)


def test_unmap_pixels_inverts_map_pixels() -> None:
    x = torch.tensor([0.0, 0.25, 1.0])
    torch.testing.assert_close(map_pixels(x), torch.tensor([0.1, 0.3, 0.9]))
    torch.testing.assert_close(unmap_pixels(map_pixels(x)), x)


def test_losses_equal_the_papers() -> None:
    model, images = tiny(), torch.rand(2, 3, 16, 16)
    made = model(images, temperature=0.5)
    logits = model.encoder(map_pixels(images)).permute(0, 2, 3, 1)
    uniform = Categorical(logits=torch.zeros(16))
    torch.testing.assert_close(made.losses["kl"], kl_divergence(Categorical(logits=logits), uniform).mean())
    hard = model(images, temperature=1e-4)  # codes all but one-hot
    one_hot = torch.nn.functional.one_hot(hard.codes, 16).permute(0, 3, 1, 2).float()
    mean, log_scale = model.decoder(one_hot).chunk(2, dim=1)
    density = TransformedDistribution(Laplace(mean, log_scale.exp()), [SigmoidTransform()])
    expected = -density.log_prob(map_pixels(images)).mean()
    torch.testing.assert_close(hard.losses["reconstruction"], expected, atol=1e-3, rtol=1e-3)
    assert made.images.shape == images.shape


def test_encode_is_argmax_and_decode_takes_hard_codes() -> None:
    model, images = tiny().eval(), torch.rand(3, 3, 16, 16)
    codes = model.encode(images)
    assert codes.shape == (3, 4, 4)
    assert torch.equal(codes, model.encoder(map_pixels(images)).argmax(1))
    assert torch.equal(codes, model.encode(images))
    for index in range(3):
        assert torch.equal(model.encode(images[index : index + 1])[0], codes[index])
    one_hot = torch.nn.functional.one_hot(codes, 16).permute(0, 3, 1, 2).float()
    expected = ((model.decoder(one_hot)[:, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1)
    torch.testing.assert_close(model.decode(codes), expected)


def test_relaxation_at_low_temperature_is_a_hard_code() -> None:
    model, images = tiny(), torch.rand(2, 3, 16, 16)
    made = model(images, temperature=1e-4)
    torch.testing.assert_close(made.images.clamp(0, 1), model.decode(made.codes), atol=1e-4, rtol=1e-3)


def test_gradient_reaches_the_encoder_and_the_last_layer() -> None:
    model = tiny()
    losses = model(torch.rand(2, 3, 16, 16)).losses
    losses["reconstruction"].backward()
    assert model.encoder.input.weight.grad.abs().sum() > 0
    assert model.last_layer.grad.abs().sum() > 0


def test_block_scales_its_residual_by_its_gain() -> None:
    torch.manual_seed(0)
    block, x = Block(8, 8, (3, 3, 3, 1), gain=0.25), torch.randn(1, 8, 4, 4)
    residual = x
    for conv in block.convs:
        residual = conv(residual.clamp(min=0))
    torch.testing.assert_close(block(x), x + residual / 4)


def test_codes_survive_autocast_next_to_the_relaxation() -> None:
    model = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.encoder(map_pixels(torch.rand(1, 3, 16, 16))).dtype == torch.float32
        assert model(torch.rand(1, 3, 16, 16)).images.dtype == torch.float32


@pytest.mark.parametrize("options", [{"hidden": 10}, {"groups": 0}, {"image_size": 60}])
def test_impossible_shapes_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        DVAEConfig(**options)


@pytest.mark.slow
def test_overfits_four_images() -> None:
    before, after = overfit_four_images(tiny(hidden=16, codebook_size=64))
    assert after < 0.5 * before
