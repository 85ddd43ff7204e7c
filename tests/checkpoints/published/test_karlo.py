"""Karlo's decoder in diffusers' folders, small and with random weights, beside diffusers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dalle.checkpoints.modules import load_weights
from dalle.checkpoints.published.karlo import read_decoder, read_upsampler
from dalle.models.clip import TextStates
from dalle.models.diffusion_decoder import DiffusionDecoder
from dalle.models.upsampler import Upsampler, enlarged
from support.published.unclips import randomized, upsampler

DIM, CONTEXT, LENGTH = 12, 24, 7


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    """diffusers' own modules of Karlo's kinds."""
    diffusers = pytest.importorskip("diffusers")
    text_proj = pytest.importorskip("diffusers.pipelines.deprecated.unclip.text_proj")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=6,
        down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
        up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=[32, 64],
        layers_per_block=1,
        cross_attention_dim=CONTEXT,
        attention_head_dim=32,
        class_embed_type="identity",
        resnet_time_scale_shift="scale_shift",
    )
    projection = text_proj.UnCLIPTextProjModel(
        clip_extra_context_tokens=4, clip_embeddings_dim=DIM, time_embed_dim=128, cross_attention_dim=CONTEXT
    )
    return randomized(unet, 0), randomized(projection, 1)


@pytest.fixture
def folder(parts: tuple[Any, Any], tmp_path: Path) -> Path:
    for name, module in zip(("decoder", "text_proj"), parts):
        module.save_pretrained(tmp_path / "karlo" / name)
    return tmp_path / "karlo"


def loaded(folder: Path) -> DiffusionDecoder:
    found = read_decoder(folder, LENGTH)
    module = DiffusionDecoder(found.config)
    found.check(module, str(folder))
    return load_weights(module, found.tensors, str(folder)).eval()


@torch.no_grad()
def test_decoder_output_equals_diffusers(parts: tuple[Any, Any], folder: Path) -> None:
    """Both halves of a guided pass: the caption with its embedding, and the empty one with the learned embedding."""
    unet, projection = parts
    random = torch.Generator().manual_seed(2)
    x, z = torch.randn(2, 3, 8, 8, generator=random), torch.randn(2, DIM, generator=random)
    every, embeds = torch.randn(4, LENGTH, DIM, generator=random), torch.randn(4, DIM, generator=random)
    mask = torch.arange(LENGTH) < torch.tensor([2, 2, 5, 7])[:, None]  # the unconditional half first
    steps = torch.tensor([700, 3])
    states, extra = projection(
        image_embeddings=z, prompt_embeds=embeds, text_encoder_hidden_states=every, do_classifier_free_guidance=True
    )
    seen = nn.functional.pad(mask, (4, 0), value=True)
    wanted = unet(torch.cat([x, x]), steps.repeat(2), states, class_labels=extra, attention_mask=seen.float()).sample
    ours = loaded(folder)
    assert ours.config.learned_variance and ours.config.image_tokens == 4 and ours.config.predicts == "epsilon"
    nobody = torch.ones(2, dtype=torch.bool)
    found = torch.cat(
        [
            ours(x, steps, z, TextStates(every[:2], mask[:2], embeds[:2]), nobody),
            ours(x, steps, z, TextStates(every[2:], mask[2:], embeds[2:])),
        ]
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def changed(file: Path, change: dict[str, Tensor | None]) -> None:
    tensors = load_file(file) | change
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("text_proj", {"embedding_proj.weight": None}, r"embedding_proj\.weight"),
        ("decoder", {"mid_block.resnets.0.conv1.weight": None}, r"mid_block\.resnets\.0\.conv1\.weight"),
        ("decoder", {"something.weight": torch.zeros(2)}, r"something\.weight"),
        ("decoder", {"conv_in.weight": torch.zeros(32, 4, 3, 3)}, r"conv_in\.weight"),
        ("text_proj", {"learned_classifier_free_guidance_embeddings": torch.zeros(5)}, "learned_classifier_free"),
    ],
)
def test_damaged_parts_are_refused(part: str, change: dict[str, Tensor | None], message: str, folder: Path) -> None:
    changed(folder / part / "diffusion_pytorch_model.safetensors", change)
    with pytest.raises(ValueError, match=message):
        loaded(folder)


def test_missing_and_foreign_parts_are_refused(folder: Path) -> None:
    file = folder / "decoder/config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"down_block_types": ["DownBlock2D", "SimpleCrossAttnDownBlock2D"]}))
    with pytest.raises(ValueError, match="it has blocks of kind 'DownBlock2D'"):
        read_decoder(folder)
    file.write_text("[]")
    with pytest.raises(ValueError, match="holds no settings"):
        read_decoder(folder)
    (folder / "text_proj").rename(folder / "elsewhere")
    with pytest.raises(ValueError, match="has no folder text_proj"):
        read_decoder(folder)


@pytest.fixture(scope="module")
def upsamplers() -> tuple[Any, Any]:
    """The first and the last of diffusers' own, of Karlo's kind."""
    pytest.importorskip("diffusers")
    return randomized(upsampler(), 3), randomized(upsampler(), 4)


@torch.no_grad()
def test_upsampler_outputs_equal_diffusers(upsamplers: tuple[Any, Any], tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(5)
    x, low = torch.randn(2, 3, 16, 16, generator=random), torch.rand(2, 3, 8, 8, generator=random) * 2 - 1
    steps, large = torch.tensor([999, 2]), enlarged(low, 16)
    for last, theirs in enumerate(upsamplers):
        theirs.save_pretrained(tmp_path / ("super_res_last" if last else "super_res_first"))
        found = read_upsampler(tmp_path, bool(last), low_size=8)
        module = Upsampler(found.config)
        found.check(module, str(tmp_path))
        load_weights(module, found.tensors, str(tmp_path)).eval()
        assert module.config.image_size == 16 and not module.config.learned_variance
        wanted = theirs(torch.cat([x, large], dim=1), steps).sample
        torch.testing.assert_close(module(x, steps, large), wanted, rtol=1e-4, atol=1e-4)


def test_missing_and_foreign_upsamplers_are_refused(upsamplers: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no folder super_res_last"):
        read_upsampler(tmp_path, last=True)
    upsamplers[0].save_pretrained(tmp_path / "super_res_first")
    changed(tmp_path / "super_res_first/diffusion_pytorch_model.safetensors", {"something.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"not Karlo's: something\.weight"):
        read_upsampler(tmp_path, low_size=8)
