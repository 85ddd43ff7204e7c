"""A small unCLIP with random weights and statistics: folders of its parts, and of all together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dalle.checkpoints import model_folder
from dalle.checkpoints.unclip import assemble
from dalle.config import to_dict
from dalle.models.autoregressive_prior import AutoregressivePrior, AutoregressivePriorConfig
from dalle.models.diffusion_decoder import DecoderConfig, DiffusionDecoder
from dalle.models.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from dalle.models.unet import UNetConfig
from dalle.models.upsampler import Upsampler, UpsamplerConfig
from support.tiny_configs import transformer_config

SHAPE: dict[str, Any] = {"embed_dim": 8, "text_width": 16, "text_length": 12}
TINY = transformer_config(depth=1)
_UNET = UNetConfig(channels=8, channel_multipliers=[1, 2], attention_levels=[1], head_channels=8)
_FLAT = UNetConfig(channels=8, channel_multipliers=[1, 2], attention_levels=[])


def make_unclip_parts(root: Path, clip: Path) -> dict[str, Path]:
    """Folders "prior", "prior-ar", "decoder" (8x8), "upsampler" (to 16x16) and "whole" on a CLIP of these shapes."""
    clips, steps = {"clip": clip}, {"sampler": {"steps": 2}}
    prior = DiffusionPrior(DiffusionPriorConfig(transformer=TINY, **SHAPE))
    tokens = AutoregressivePrior(AutoregressivePriorConfig(transformer=TINY, components=4, buckets=8, **SHAPE))
    decoder = DiffusionDecoder(DecoderConfig(image_size=8, unet=_UNET, context_width=8, predicts="v", **SHAPE))
    upsampler = Upsampler(UpsamplerConfig(image_size=16, low_size=8, unet=_FLAT))
    made = {
        "prior": _saved(root / "prior", "prior", prior, clips, {"samples": 1} | steps),
        "prior-ar": _saved(root / "prior-ar", "prior", tokens, clips, {"top_k": 3}),
        "decoder": _saved(root / "decoder", "diffusion", decoder, clips, {"guidance": 2.0} | steps),
        "upsampler": _saved(root / "upsampler", "diffusion", upsampler, {}, steps),
    }
    assemble(root / "whole", made["prior"], made["decoder"], made["upsampler"])
    return made | {"whole": root / "whole"}


def _saved(folder: Path, stage: str, module: Any, parts: dict[str, Path], sampling: dict[str, Any]) -> Path:
    random = torch.Generator().manual_seed(len(folder.name))
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=random) * 0.2 + 0.1)
    config = {"stage": stage, "model": to_dict(module.config), "sampling": sampling}
    model_folder.save(folder, config, module.state_dict(), parts=parts)
    return folder
