"""The discrete VAE of DALLE-pytorch: its layers one by one, its relaxation, and that it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from dalle.config import from_dict, to_dict
from dalle.image_tokenizers import DiscreteVAE, DiscreteVAEConfig, ImageTokenizerConfig, build
from support.overfitting import overfit_four_images


def tiny(**options: Any) -> DiscreteVAE:
    torch.manual_seed(0)
    base = {"image_size": 16, "codebook_size": 12, "code_channels": 6, "layers": 2, "hidden": 8, "blocks": 1}
    model = build(from_dict(ImageTokenizerConfig, {"kind": "discrete_vae"} | base | options, "a"))
    assert isinstance(model, DiscreteVAE)
    return model


def in_order(x: Tensor, state: dict[str, Tensor], part: str) -> Tensor:
    """Encoder or decoder of the state, layer after layer: halving or doubling, residual blocks, bare convolutions."""
    places = sorted({int(name.split(".")[1]) for name in state if name.startswith(part)})
    resample = F.conv2d if part == "encoder" else F.conv_transpose2d
    for place in places:
        own = {name.split(".", 2)[2]: value for name, value in state.items() if name.startswith(f"{part}.{place}.")}
        if "0.weight" in own:
            x = resample(x, own["0.weight"], own["0.bias"], stride=2, padding=1).relu()
        elif "weight" in own:
            x = F.conv2d(x, own["weight"], own["bias"])
        else:
            y = F.conv2d(x, own["net.0.weight"], own["net.0.bias"], padding=1).relu()
            y = F.conv2d(y, own["net.2.weight"], own["net.2.bias"], padding=1).relu()
            x = x + F.conv2d(y, own["net.4.weight"], own["net.4.bias"])
    return x


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(("layers", "blocks"), [(1, 0), (3, 0), (2, 2)])
def test_encode_and_decode_equal_the_layers_in_order(layers: int, blocks: int, normalized: bool) -> None:
    model = tiny(layers=layers, blocks=blocks, normalized=normalized).eval()
    images = torch.rand(2, 3, 16, 16)
    state = model.state_dict()
    codes = in_order((images - 0.5) / 0.5 if normalized else images, state, "encoder").argmax(1)
    assert torch.equal(model.encode(images), codes) and model.grid == codes.shape[1:] == (16 >> layers,) * 2
    made = in_order(state["codebook.weight"][codes].permute(0, 3, 1, 2), state, "decoder")
    expected = (made * 0.5 + 0.5 if normalized else made).clamp(0, 1)
    torch.testing.assert_close(model.decode(codes), expected)


def test_parameter_count_equals_dalle_pytorchs() -> None:
    """Its defaults with two residual blocks: names and number as DALLE-pytorch 1.6.6 has them."""
    with torch.device("meta"):
        model = DiscreteVAE(DiscreteVAEConfig(blocks=2))
    assert sum(parameter.numel() for parameter in model.parameters()) == 971_651
    assert len(model.state_dict()) == 1 + 2 * (2 * 3 + 2 * 6 + 2) + 2


def test_losses_are_in_the_normalized_range() -> None:
    model, images = tiny(), torch.rand(2, 3, 16, 16)
    made = model(images, temperature=0.5)
    expected = F.mse_loss(2 * made.images - 1, 2 * images - 1)
    torch.testing.assert_close(made.losses["reconstruction"], expected)
    logits = model.encoder(2 * images - 1).permute(0, 2, 3, 1)
    uniform = Categorical(logits=torch.zeros(12))
    torch.testing.assert_close(made.losses["kl"], kl_divergence(Categorical(logits=logits), uniform).mean())
    assert made.codes.shape == (2, 4, 4) and made.images.shape == images.shape


def test_relaxation_at_low_temperature_is_a_hard_code() -> None:
    model, images = tiny(), torch.rand(2, 3, 16, 16)
    made = model(images, temperature=1e-4)
    torch.testing.assert_close(made.images.clamp(0, 1), model.decode(made.codes), atol=1e-4, rtol=1e-3)


def test_gradient_reaches_encoder_codebook_and_last_layer() -> None:
    model = tiny()
    model(torch.rand(2, 3, 16, 16)).losses["reconstruction"].backward()
    for parameter in (model.encoder[0][0].weight, model.codebook.weight, model.last_layer):
        assert parameter.grad.abs().sum() > 0


def test_other_sizes_and_half_precision_work() -> None:
    model, images = tiny().eval(), torch.rand(1, 3, 8, 24)
    codes = model.encode(images)
    assert codes.shape == (1, 2, 6) and model.decode(codes).shape == images.shape
    model.bfloat16()
    assert model.decode(model.encode(images)).dtype == torch.float32


def test_config_survives_to_dict() -> None:
    config = DiscreteVAEConfig(image_size=32, layers=2, blocks=3, normalized=False)
    assert from_dict(ImageTokenizerConfig, to_dict(config), "a") == config


@pytest.mark.parametrize("options", [{"layers": 0}, {"blocks": -1}, {"hidden": 0}, {"image_size": 60}])
def test_impossible_shapes_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        DiscreteVAEConfig(**options)


@pytest.mark.slow
def test_overfits_four_images() -> None:
    before, after = overfit_four_images(tiny(hidden=32, codebook_size=64, code_channels=32))
    assert after < 0.4 * before
