"""An unCLIP with a few thousand random weights, as `dalle assemble` writes one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dalle.checkpoints import model_folder
from dalle.checkpoints.unclip import assemble
from dalle.config import to_dict
from dalle.files import ROOT
from dalle.models.clip import CLIP
from dalle.models.diffusion_decoder import DecoderConfig, DiffusionDecoder
from dalle.models.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from dalle.models.unet import UNetConfig
from dalle.models.upsampler import Upsampler, UpsamplerConfig
from support.tiny_configs import clip_config, transformer_config

TOWER = transformer_config(depth=1)
STEPS = {"sampler": {"steps": 3}}


def make_tiny_unclip(root: Path) -> Path:
    """Write `root`/unclip and what it is made of; returns its folder."""
    shape: dict[str, Any] = {"embed_dim": 8, "text_width": 16, "text_length": 12}
    words = {"text_tokenizer": ROOT / "tokenizers/emoji-bpe"}
    clip = saved(root / "clip", "clip", CLIP(clip_config(depth=1, text_vocab=4096)), 4, words)
    prior = DiffusionPrior(DiffusionPriorConfig(transformer=TOWER, **shape))
    unet = UNetConfig(channels=8, channel_multipliers=[1, 2], attention_levels=[1], head_channels=8)
    decoder = DiffusionDecoder(DecoderConfig(image_size=8, unet=unet, context_width=8, **shape))
    large = UNetConfig(channels=8, channel_multipliers=[1, 2], attention_levels=[])
    upsampler = Upsampler(UpsamplerConfig(image_size=16, low_size=8, unet=large))
    assemble(
        root / "unclip",
        saved(root / "prior", "prior", prior, 5, {"clip": clip}, sampling=STEPS),
        saved(root / "decoder", "diffusion", decoder, 7, {"clip": clip}, sampling=STEPS),
        saved(root / "upsampler", "diffusion", upsampler, 9, {}, sampling=STEPS),
    )
    return root / "unclip"


def saved(folder: Path, stage: str, module: Any, seed: int, parts: dict[str, Path], **more: Any) -> Path:
    """A folder of a module whose parameters are all random: what begins as zeros hides what lies behind it."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.15)
    config = {"stage": stage, "model": to_dict(module.config)} | more
    model_folder.save(folder, config, module.state_dict(), parts=parts)
    return folder
