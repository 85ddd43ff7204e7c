"""An unCLIP with a few thousand random weights, as `dalle assemble` writes one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dalle.checkpoints import model_folder
from dalle.checkpoints.unclip import assemble
from dalle.config import to_dict
from dalle.files import ROOT
from dalle.models.clip import CLIP, CLIPConfig
from dalle.models.diffusion_decoder import DecoderConfig, DiffusionDecoder
from dalle.models.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from dalle.models.transformer import TransformerConfig
from dalle.models.unet import UNetConfig
from dalle.models.upsampler import Upsampler, UpsamplerConfig

TOWER = TransformerConfig(width=16, depth=1, heads=2)
STEPS = {"sampler": {"steps": 3}}


def make_tiny_unclip(root: Path) -> Path:
    """Write `root`/unclip and what it is made of; returns its folder."""
    shape: dict[str, Any] = {"embed_dim": 8, "text_width": 16, "text_length": 12}
    config = CLIPConfig(
        image_size=16, patch_size=8, vision=TOWER, text=TOWER, text_vocab=4096, text_length=12, embed_dim=8
    )
    clip = _saved(root / "clip", "clip", CLIP(config), {"text_tokenizer": ROOT / "tokenizers/emoji-bpe"})
    prior = DiffusionPrior(DiffusionPriorConfig(transformer=TOWER, **shape))
    unet = UNetConfig(channels=8, channel_multipliers=[1, 2], attention_levels=[1], head_channels=8)
    decoder = DiffusionDecoder(DecoderConfig(image_size=8, unet=unet, context_width=8, **shape))
    large = UNetConfig(channels=8, channel_multipliers=[1, 2], attention_levels=[])
    upsampler = Upsampler(UpsamplerConfig(image_size=16, low_size=8, unet=large))
    assemble(
        root / "unclip",
        _saved(root / "prior", "prior", prior, {"clip": clip}, sampling=STEPS),
        _saved(root / "decoder", "diffusion", decoder, {"clip": clip}, sampling=STEPS),
        _saved(root / "upsampler", "diffusion", upsampler, {}, sampling=STEPS),
    )
    return root / "unclip"


def _saved(folder: Path, stage: str, module: Any, parts: dict[str, Path], **more: Any) -> Path:
    """A folder of a module whose parameters are all random: what begins as zeros hides what lies behind it."""
    random = torch.Generator().manual_seed(len(folder.name))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.15)
    config = {"stage": stage, "model": to_dict(module.config)} | more
    model_folder.save(folder, config, module.state_dict(), parts=parts)
    return folder
