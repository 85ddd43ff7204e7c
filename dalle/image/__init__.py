"""Image tokenizers behind one contract: images [B, 3, H, W] in [0, 1] to codes [B, h, w] and back."""

from __future__ import annotations

from dalle.image.tokenizer import ImageTokenizer, Reconstruction, Reduce
from dalle.image.vqgan import VQGAN, VQGANConfig

ImageTokenizerConfig = VQGANConfig


def build(config: ImageTokenizerConfig) -> ImageTokenizer:
    """The untrained image tokenizer that `config` describes."""
    return VQGAN(config)


__all__ = ["VQGAN", "ImageTokenizer", "ImageTokenizerConfig", "Reconstruction", "Reduce", "VQGANConfig", "build"]
