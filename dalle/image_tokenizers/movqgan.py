"""MoVQGAN (arXiv 2209.09002, as published by ai-forever): taming's encoder and codebook, MoVQ's decoder.

Letters: B images, L channels of the latents.
"""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from torch import Tensor, nn

from dalle.config import config
from dalle.config.ranges import Size
from dalle.image_tokenizers.modulated import Decoder, ModulatedSizes
from dalle.image_tokenizers.quantized import QuantizedTokenizer
from dalle.image_tokenizers.vq import VectorQuantizer
from dalle.image_tokenizers.vqgan import Encoder


@config
class MoVQGANConfig(ModulatedSizes):
    """Architecture of a MoVQGAN, whose decoder is modulated by the quantized latents."""

    kind: Literal["movqgan"] = "movqgan"
    """MoVQGAN of ai-forever."""
    image_size: Size = 256
    """Height and width of the images, in pixels."""
    channels: Size = 256
    """Channels of the first level."""
    channel_multipliers: list[Size] = field(default_factory=lambda: [1, 2, 2, 4])
    """Channels of each level over `channels`; each level but the first halves the resolution."""
    blocks: Size = 2
    """Residual blocks of a level of the encoder; one more in the decoder. Those of the last level attend."""
    latent_channels: Size = 4
    """Channels L of the latents and of the codebook's vectors."""
    codebook_size: Size = 16384
    """Number of codes."""


class MoVQGAN(QuantizedTokenizer):
    """Encoder, quantizer, decoder. Images are in [0, 1] at the interface and in [-1, 1] inside."""

    quantize: VectorQuantizer
    decoder: Decoder

    def __init__(self, config: MoVQGANConfig) -> None:
        super().__init__()
        self.config = config
        shape, latents = config.encoder(), config.latent_channels
        self.image_size, self.factor, self.codebook_size = config.image_size, shape.factor, config.codebook_size
        self.encoder, self.decoder = Encoder(shape), Decoder(shape.widths, config.blocks, latents)
        self.quantize = VectorQuantizer(config.quantizer())
        self.quant_conv = nn.Conv2d(latents, latents, 1)
        self.post_quant_conv = nn.Conv2d(latents, latents, 1)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """See `ImageTokenizer.decode_latents`."""
        latents = latents.to(self.post_quant_conv.weight.dtype)
        # What modulates are the codebook's vectors themselves, as they are before the convolution
        images: Tensor = self.decoder(self.post_quant_conv(latents), latents)
        return (images.float() + 1) / 2

    def _latents(self, images: Tensor) -> Tensor:
        latents: Tensor = self.quant_conv(self.encoder((2 * images - 1).to(self.quant_conv.weight.dtype)))
        return latents
