"""A model folder with a few thousand random weights, made as training makes one, for tests of what stands on top."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dalle.checkpoints import model_folder
from dalle.config import to_dict
from dalle.image_tokenizers import VQGANConfig, build
from dalle.image_tokenizers.vq import VQConfig
from dalle.models.clip import CLIP
from dalle.models.dalle import DALLE
from dalle.text_tokenizers import SentencePieceTokenizer, TextTokenizerConfig
from support.tiny_configs import clip_config, dalle_config

CAPTIONS = ["a red heart", "a blue circle on a white background", "two green stars", "लाल दिल"] * 4
VQGAN_MODEL: dict[str, Any] = {  # in a recipe: 16x16 pixels to 8x8 codes of 24
    "kind": "vqgan",
    "image_size": 16,
    "channels": 8,
    "channel_multipliers": [1, 1],
    "attention_resolutions": [],
    "latent_channels": 8,
    "quantizer": {"kind": "vq", "codebook_size": 24, "code_channels": 4},
}
IMAGE_SIZE, GRID, CODES, TEXT_LENGTH = 16, (4, 4), 24, 12
CLIP_MODEL: dict[str, Any] = {  # in a recipe: for images of 32x32 pixels
    "image_size": 32,
    "patch_size": 8,
    "vision": {"width": 16, "depth": 2, "heads": 2},
    "text": {"width": 16, "depth": 2, "heads": 2},
    "text_vocab": 300,
    "text_length": TEXT_LENGTH,
    "embed_dim": 16,
}
DALLE_MODEL: dict[str, Any] = {  # in a recipe: a transformer for the tokenizers of `make_tiny_model`
    "transformer": {"width": 16, "depth": 2, "heads": 2},
    "text_vocab": 300,
    "text_length": TEXT_LENGTH,
    "image_vocab": CODES,
    "grid": list(GRID),
}


def dalle_recipe(parts: Path, run: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of `DALLE_MODEL` on shapes, for the tokenizers in `parts`, run in `run`; `changes` replace its keys."""
    return {
        "stage": "dalle",
        "model": DALLE_MODEL,
        "data": {"kind": "shapes"},
        "optim": {},
        "run": {"dir": str(run), "steps": 1, "batch_size": 2},
        "text_tokenizer": str(parts / "text_tokenizer"),
        "image_tokenizer": str(parts / "image_tokenizer"),
        **changes,
    }


def make_tiny_model(folder: Path, *, clip: bool = True, seed: int = 0) -> Path:
    """Write `folder`/model and what it stands on; returns the model's folder."""
    torch.manual_seed(seed)
    text = SentencePieceTokenizer.train(TextTokenizerConfig(vocab_size=300), CAPTIONS)
    text.save(folder / "text_tokenizer")
    image = VQGANConfig(
        image_size=IMAGE_SIZE,
        channels=8,
        channel_multipliers=[1, 1, 1],
        attention_resolutions=[],
        latent_channels=8,
        quantizer=VQConfig(codebook_size=CODES, code_channels=4),
    )
    _save(folder / "image_tokenizer", "image_tokenizer", image, build(image))
    parts = {name: folder / name for name in ("text_tokenizer", "image_tokenizer")}
    if clip:
        towers = clip_config(image_size=8, patch_size=4)
        _save(folder / "clip", "clip", towers, CLIP(towers), {"text_tokenizer": folder / "text_tokenizer"})
        parts["clip"] = folder / "clip"
    shape = {"text_vocab": 300, "text_length": TEXT_LENGTH, "image_vocab": CODES, "grid": GRID, "conv_kernel": 11}
    config = dalle_config(**shape, attention=("row", "full"))
    model = DALLE(config)
    with torch.no_grad():  # fresh weights ignore their input nearly wholly: these do not
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    _save(folder / "model", "dalle", config, model, parts)
    return folder / "model"


def _save(
    folder: Path, stage: str, config: object, module: torch.nn.Module, parts: dict[str, Path] | None = None
) -> None:
    model_folder.save(folder, {"stage": stage, "model": to_dict(config)}, module.state_dict(), parts=parts or {})
