"""Karlo and Kandinsky 2.2 in diffusers' folders, small and with random weights, and diffusers' pipelines of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from dalle.text_tokenizers import CLIPTokenizer, CLIPTokenizerConfig

DIM, CONTEXT, LENGTH, WORDS = 16, 24, 10, 515  # ids: bytes, bytes that end a word, a merge, start and end
MERGES = "#version: 0.2\nh a\n"
CLASSES = {
    "Karlo": "UnCLIPPipeline",
    "variations": "UnCLIPImageVariationPipeline",
    "decoder": "KandinskyV22Pipeline",
    "prior": "KandinskyV22PriorPipeline",
}


def randomized(module: nn.Module, seed: int, scale: float = 0.2) -> Any:
    """The module in evaluation mode, with weights none of which is what modules begin with."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * scale)
    return module.eval()


def words() -> CLIPTokenizer:
    return CLIPTokenizer(CLIPTokenizerConfig(), MERGES.encode())


class Words:
    """Our text tokenizer as diffusers' pipelines call theirs."""

    model_max_length = LENGTH

    def __call__(self, prompts: str | list[str], **_options: Any) -> SimpleNamespace:
        ids = words().encode([prompts] if isinstance(prompts, str) else prompts, LENGTH)
        ends = ids.eq(WORDS - 1).int().argmax(1)
        return SimpleNamespace(input_ids=ids, attention_mask=(torch.arange(LENGTH) <= ends[:, None]).long())


def towers() -> tuple[Any, Any]:
    """Text and image tower, each with its projection."""
    from transformers import (  # type: ignore[import-not-found]
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    shape = {"intermediate_size": 24, "projection_dim": DIM, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(
        vocab_size=WORDS,
        hidden_size=DIM,
        max_position_embeddings=LENGTH,
        eos_token_id=WORDS - 1,
        bos_token_id=WORDS - 2,
        hidden_act="gelu",
        **shape,
    )
    image = CLIPVisionConfig(hidden_size=8, image_size=8, patch_size=4, hidden_act="gelu", **shape)
    return randomized(CLIPTextModelWithProjection(text), 10), randomized(CLIPVisionModelWithProjection(image), 11)


def prior() -> Any:
    import diffusers  # type: ignore[import-not-found]

    module = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, embedding_dim=DIM, num_embeddings=LENGTH
    )
    return randomized(module, 12)


def unet(channels: int, **more: Any) -> Any:
    """A U-Net with attention at its second level, of the kinds that both families have."""
    import diffusers

    module = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=2 * channels,
        down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
        up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=[32, 64],
        layers_per_block=1,
        cross_attention_dim=CONTEXT,
        attention_head_dim=32,
        resnet_time_scale_shift="scale_shift",
        **more,
    )
    return randomized(module, 13, 0.07)


def upsampler() -> Any:
    """A U-Net without attention, of Karlo's kind, which sees the small image beside the noise."""
    import diffusers

    return diffusers.UNet2DModel(
        sample_size=16,
        in_channels=6,
        out_channels=3,
        down_block_types=["ResnetDownsampleBlock2D"] * 2,
        up_block_types=["ResnetUpsampleBlock2D"] * 2,
        block_out_channels=[32, 64],
        layers_per_block=1,
        add_attention=False,
    )


def karlo_parts() -> dict[str, Any]:
    """The modules of Karlo's folder."""
    import diffusers
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel  # type: ignore[import-not-found]

    projection = UnCLIPTextProjModel(
        clip_extra_context_tokens=4, clip_embeddings_dim=DIM, time_embed_dim=128, cross_attention_dim=CONTEXT
    )
    fixed, learned = {"variance_type": "fixed_small_log"}, {"variance_type": "learned_range"}
    return {
        "prior": prior(),
        "decoder": unet(3, class_embed_type="identity"),
        "text_encoder": towers()[0],
        "text_proj": randomized(projection, 14),
        "super_res_first": randomized(upsampler(), 15, 0.07),
        "super_res_last": randomized(upsampler(), 16, 0.07),
        "prior_scheduler": diffusers.UnCLIPScheduler(prediction_type="sample", clip_sample_range=1.5, **fixed),
        "decoder_scheduler": diffusers.UnCLIPScheduler(**learned),
        "super_res_scheduler": diffusers.UnCLIPScheduler(**fixed),
    }


def kandinsky_parts() -> tuple[dict[str, Any], dict[str, Any]]:
    """The modules of Kandinsky 2.2's prior and decoder."""
    import diffusers

    text, image = towers()
    movq = diffusers.VQModel(
        block_out_channels=[32, 64],
        layers_per_block=1,
        latent_channels=4,
        vq_embed_dim=4,
        num_vq_embeddings=8,
        norm_type="spatial",
        down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
    )
    image_proj = {"encoder_hid_dim": DIM, "encoder_hid_dim_type": "image_proj", "addition_embed_type": "image"}
    steps = diffusers.DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        variance_type="learned_range",
        thresholding=True,
        dynamic_thresholding_ratio=0.995,
        sample_max_value=2.0,
        clip_sample_range=2.0,
    )
    scheduler = diffusers.UnCLIPScheduler(prediction_type="sample", clip_sample_range=10.0)
    return (
        {"prior": prior(), "image_encoder": image, "text_encoder": text, "scheduler": scheduler},
        {"unet": unet(4, **image_proj), "movq": randomized(movq, 17, 0.1), "scheduler": steps},
    )


def write(folder: Path, kind: str, parts: dict[str, Any]) -> Path:
    """A folder as it is on the hub."""
    index: dict[str, Any] = {"_class_name": CLASSES[kind], "_diffusers_version": "0.15.0"}
    for name, module in parts.items():
        module.save_pretrained(folder / name)
        library = "transformers" if name.endswith("_encoder") else "diffusers"
        index[name] = ["unclip" if name == "text_proj" else library, type(module).__name__]
    if "text_encoder" in parts:
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer/merges.txt").write_text(MERGES)
        (folder / "tokenizer/vocab.json").write_text(json.dumps(words().vocabulary))
        index["tokenizer"] = ["transformers", "CLIPTokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
