"""Image tokenizers behind one interface: images [B, 3, H, W] in [0, 1] to codes [B, h, w] and back."""

from __future__ import annotations

from dalle.image_tokenizers.base import ImageTokenizer, Reconstruction, Reduce
from dalle.image_tokenizers.codes import ImageCodes, check_codes, codes_of
from dalle.image_tokenizers.cosmos import Cosmos, CosmosConfig
from dalle.image_tokenizers.dalle_pytorch_vae import DiscreteVAE, DiscreteVAEConfig
from dalle.image_tokenizers.dvae import DVAE, DVAEConfig
from dalle.image_tokenizers.emu3 import Emu3VQ, Emu3VQConfig
from dalle.image_tokenizers.movqgan import MoVQGAN, MoVQGANConfig
from dalle.image_tokenizers.quantize import FSQConfig, GumbelConfig
from dalle.image_tokenizers.vq import VQConfig
from dalle.image_tokenizers.vqgan import VQGAN, VQGANConfig

ImageTokenizerConfig = DVAEConfig | VQGANConfig | DiscreteVAEConfig | Emu3VQConfig | CosmosConfig | MoVQGANConfig

__all__ = [
    "DVAE",
    "VQGAN",
    "Cosmos",
    "CosmosConfig",
    "DVAEConfig",
    "DiscreteVAE",
    "DiscreteVAEConfig",
    "Emu3VQ",
    "Emu3VQConfig",
    "FSQConfig",
    "GumbelConfig",
    "ImageCodes",
    "ImageTokenizer",
    "ImageTokenizerConfig",
    "MoVQGAN",
    "MoVQGANConfig",
    "Reconstruction",
    "Reduce",
    "VQConfig",
    "VQGANConfig",
    "build",
    "check_codes",
    "codes_of",
]


def build(config: ImageTokenizerConfig) -> ImageTokenizer:
    """An untrained image tokenizer of the kind and size that `config` describes."""
    if isinstance(config, DiscreteVAEConfig):
        return DiscreteVAE(config)
    if isinstance(config, Emu3VQConfig):
        return Emu3VQ(config)
    if isinstance(config, CosmosConfig):
        return Cosmos(config)
    if isinstance(config, MoVQGANConfig):
        return MoVQGAN(config)
    return DVAE(config) if isinstance(config, DVAEConfig) else VQGAN(config)
