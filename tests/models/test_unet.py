"""The U-Net against diffusers', on random weights; decoder and upsampler as networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dalle.checkpoints.modules import load_weights
from dalle.checkpoints.published.unet import unet_config, unet_tensors
from dalle.models.clip import TextStates
from dalle.models.diffusion_decoder import DecoderConfig, DiffusionDecoder
from dalle.models.unet import UNet, UNetConfig
from dalle.models.upsampler import Upsampler, UpsamplerConfig, enlarged

SHAPE = UNetConfig(channels=8, channel_multipliers=[1, 2], attention_levels=[1], head_channels=8)


def randomized(module: nn.Module, seed: int = 0) -> Any:
    """All parameters drawn anew: those that begin as zeros would hide what lies behind them."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.2)
    return module.eval()


def captions(batch: int, length: int, width: int, dim: int, real: int) -> TextStates:
    random = torch.Generator().manual_seed(9)
    states, embeds = torch.randn(batch, length, width, generator=random), torch.randn(batch, dim, generator=random)
    return TextStates(states, torch.arange(length).expand(batch, -1) < real, embeds)


def test_unet_with_context_equals_diffusers() -> None:
    """Karlo's kinds of blocks; the context as long as a level has pixels, less none (where diffusers' mask fails)."""
    diffusers = pytest.importorskip("diffusers")
    theirs = randomized(
        diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=3,
            out_channels=6,
            down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"],
            up_block_types=["SimpleCrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            block_out_channels=[32, 64, 96],
            layers_per_block=2,
            cross_attention_dim=24,
            attention_head_dim=16,
            class_embed_type="identity",
            resnet_time_scale_shift="scale_shift",
        )
    )
    config = unet_config(dict(theirs.config))
    assert config == UNetConfig(
        channels=32, channel_multipliers=[1, 2, 3], layers=2, attention_levels=[1, 2], head_channels=16
    )
    tensors, published = unet_tensors(config, theirs.state_dict())
    ours = load_weights(UNet(config, 3, 6, 24), tensors, "test").eval()
    left = set(theirs.state_dict()) - {name for names in published.values() for name in names.split(" and ")}
    assert left == {f"time_embedding.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    random = torch.Generator().manual_seed(1)
    x, context = torch.randn(2, 3, 8, 8, generator=random), torch.randn(2, 7, 24, generator=random)
    extra, steps = torch.randn(2, 128, generator=random), torch.tensor([3, 900])
    real = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    wanted = theirs(x, steps, context, class_labels=extra, encoder_attention_mask=None, attention_mask=None).sample
    vector = theirs.time_embedding(theirs.time_proj(steps)) + extra
    torch.testing.assert_close(ours(x, vector, context), wanted, rtol=1e-4, atol=1e-4)
    masked = theirs(x, steps, context, class_labels=extra, attention_mask=real.float()).sample
    with torch.no_grad():
        torch.testing.assert_close(ours(x, vector, context, real), masked, rtol=1e-4, atol=1e-4)


def test_unet_without_attention_equals_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = randomized(
        diffusers.UNet2DModel(
            sample_size=8,
            in_channels=6,
            out_channels=3,
            down_block_types=["ResnetDownsampleBlock2D"] * 2,
            up_block_types=["ResnetUpsampleBlock2D"] * 2,
            block_out_channels=[32, 64],
            layers_per_block=1,
            add_attention=False,
            attention_head_dim=None,
        )
    )
    config = unet_config(dict(theirs.config))
    assert not config.scale_shift and not config.attention_levels
    ours = load_weights(UNet(config, 6, 3), unet_tensors(config, theirs.state_dict())[0], "test").eval()
    x, steps = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 500])
    vector = theirs.time_embedding(theirs.time_proj(steps))
    torch.testing.assert_close(ours(x, vector), theirs(x, steps).sample, rtol=1e-4, atol=1e-4)


def decoder(**options: Any) -> DiffusionDecoder:
    given = {"image_size": 8, "unet": SHAPE, "embed_dim": 6, "text_width": 5, "text_length": 12, "context_width": 16}
    return randomized(DiffusionDecoder(DecoderConfig(**given | options)))


def arguments(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(4)
    return torch.randn(batch, 3, 8, 8, generator=random), torch.tensor([0, 500, 999])[:batch], torch.randn(batch, 6)


@torch.no_grad()
def test_padding_does_not_change_the_output() -> None:
    model, (x, steps, embeds) = decoder(), arguments()
    text = captions(3, 8, 5, 6, real=5)
    found = model(x, steps, embeds, text)
    garbled = text._replace(states=torch.where(text.mask[..., None], text.states, 99.0))
    torch.testing.assert_close(model(x, steps, embeds, garbled), found)
    short = TextStates(text.states[:, :5], text.mask[:, :5], text.embeds)
    torch.testing.assert_close(model(x, steps, embeds, short), found)
    assert not torch.allclose(model(x, steps, embeds, text._replace(states=-text.states)), found, atol=1e-5)


@torch.no_grad()
def test_dropped_embedding_is_replaced_by_the_null_embedding() -> None:
    model, (x, steps, embeds) = decoder(), arguments()
    text, dropped = captions(3, 8, 5, 6, real=5), torch.tensor([True, False, True])
    found = model(x, steps, embeds, text, dropped)
    torch.testing.assert_close(model(x, steps, embeds + 7, text, dropped)[dropped], found[dropped])
    torch.testing.assert_close(model(x, steps, embeds, text)[~dropped], found[~dropped])
    null = torch.where(dropped[:, None], model.null_embed, embeds)
    torch.testing.assert_close(model(x, steps, null, text), found)


@torch.no_grad()
@pytest.mark.parametrize("length", [12, 60])
def test_text_as_long_as_a_levels_pixels_works(length: int) -> None:
    """4 + 12 tokens are the 4x4 pixels of the level that attends, 4 + 60 the 8x8 of the other."""
    model, (x, steps, embeds) = decoder(text_length=60), arguments()
    text = captions(3, length, 5, 6, real=5)
    short = TextStates(text.states[:, :5], text.mask[:, :5], text.embeds)
    torch.testing.assert_close(model(x, steps, embeds, text), model(x, steps, embeds, short))


def test_learned_variance_doubles_the_channels_and_a_fresh_model_outputs_0() -> None:
    x, steps, embeds = arguments()
    assert decoder(learned_variance=True)(x, steps, embeds, captions(3, 8, 5, 6, 5)).shape == (3, 6, 8, 8)
    fresh = DiffusionDecoder(decoder().config)
    assert fresh(x, steps, embeds, captions(3, 8, 5, 6, 5)).abs().max() == 0


def test_activation_checkpointing_does_not_change_gradients() -> None:
    x, steps, embeds = arguments()
    gradients = []
    for again in (False, True):
        shape = replace(SHAPE, checkpoint_activations=again)
        model = decoder(unet=shape).train()
        model(x, steps, embeds, captions(3, 8, 5, 6, 5)).square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_upsampler_depends_on_the_small_image() -> None:
    config = UpsamplerConfig(image_size=8, low_size=4, unet=replace(SHAPE, attention_levels=[]))
    model, (x, steps, _) = randomized(Upsampler(config)), arguments()
    low = torch.rand(3, 3, 4, 4) * 2 - 1
    found = model(x, steps, enlarged(low, 8))
    assert found.shape == x.shape
    assert not torch.allclose(found, model(x, steps, enlarged(-low, 8)), atol=1e-3)
    assert enlarged(torch.full((1, 3, 4, 4), 0.25), 8).sub(0.25).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "must be at least 1"),
        ({"attention_levels": [3]}, "attention_levels has 3; there are levels 0 to 2"),
        ({"channels": 48}, "head_channels is 64; it must divide the 144 channels of level 2"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNetConfig(**options)


def test_sides_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="image_size is 9; 2 levels need a multiple of 2"):
        decoder(image_size=9)
    with pytest.raises(ValueError, match="low_size is 64"):
        UpsamplerConfig(low_size=64)
    with pytest.raises(ValueError, match="got captions of 13 tokens, this decoder reads 12"):
        decoder()(*arguments(), captions(3, 13, 5, 6, 5))
