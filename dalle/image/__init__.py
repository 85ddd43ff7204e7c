"""Image tokenizers behind one contract: images [B, 3, H, W] in [0, 1] to codes [B, h, w] and back."""

from __future__ import annotations

from dalle.image.dvae import DVAE, DVAEConfig
from dalle.image.quantize import FSQConfig, GumbelConfig
from dalle.image.tokenizer import ImageTokenizer, Reconstruction, Reduce
from dalle.image.vq import VQConfig
from dalle.image.vqgan import VQGAN, VQGANConfig

ImageTokenizerConfig = DVAEConfig | VQGANConfig

__all__ = [
    "DVAE",
    "VQGAN",
    "DVAEConfig",
    "FSQConfig",
    "GumbelConfig",
    "ImageTokenizer",
    "ImageTokenizerConfig",
    "Reconstruction",
    "Reduce",
    "VQConfig",
    "VQGANConfig",
    "build",
]


def build(config: ImageTokenizerConfig) -> ImageTokenizer:
    """The untrained image tokenizer that `config` describes."""
    return DVAE(config) if isinstance(config, DVAEConfig) else VQGAN(config)
