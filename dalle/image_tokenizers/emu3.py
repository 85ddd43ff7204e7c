"""Emu3's image tokenizer (arXiv 2409.18869, section 2.2), for single images: MoVQ's network and two short 2-D stacks.

The published one reads videos: 3-D convolutions that look back in time. An image is four equal frames to it when it is
encoded, and the first of four frames when it is decoded; before the first frame are zeros. What its kernels do then is
a 2-D convolution each, which is what stands here.

Letters: B images, L channels of the latents.
"""

from __future__ import annotations

from dataclasses import field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.config import config
from dalle.config.ranges import Size
from dalle.image_tokenizers.modulated import Decoder, ModulatedSizes
from dalle.image_tokenizers.quantized import QuantizedTokenizer
from dalle.image_tokenizers.vq import VectorQuantizer
from dalle.image_tokenizers.vqgan import Encoder
from dalle.kernels.conv import Conv3x3


@config
class Emu3VQConfig(ModulatedSizes):
    """Architecture of Emu3's image tokenizer."""

    kind: Literal["emu3"] = "emu3"
    """Emu3's, for single images."""
    image_size: Size = 720
    """Height and width of the images, in pixels."""
    channels: Size = 256
    """Channels of the first level."""
    channel_multipliers: list[Size] = field(default_factory=lambda: [1, 2, 2, 4])
    """Channels of each level over `channels`; each level but the first halves the resolution."""
    blocks: Size = 2
    """Residual blocks of a level of the encoder, one more in the decoder, and of each of the two short stacks."""
    latent_channels: Size = 4
    """Channels L of the latents and of the codebook's vectors."""
    codebook_size: Size = 32768
    """Number of codes."""


class Emu3VQ(QuantizedTokenizer):
    """Encoder, quantizer, decoder. Images are in [0, 1] at the interface and in [-1, 1] inside."""

    decoder: Decoder

    def __init__(self, config: Emu3VQConfig) -> None:
        super().__init__()
        self.config = config
        shape, latents = config.encoder(), config.latent_channels
        self.image_size, self.factor, self.codebook_size = config.image_size, shape.factor, config.codebook_size
        self.encoder = Encoder(shape)
        # Of four frames two, and of these one: both frames of the first step are computed side by side
        self.encoder_time = nn.ModuleList([Conv3x3(latents, 2 * latents), Conv3x3(2 * latents, latents)])
        self.encoder_stack = nn.Sequential(*(AffineBlock(latents) for _ in range(config.blocks)))
        self.quant_conv = nn.Conv2d(latents, latents, 1)
        self.quantize = VectorQuantizer(config.quantizer())
        self.post_quant_conv = nn.Conv2d(latents, latents, 1)
        self.decoder_stack = nn.Sequential(*(AffineBlock(latents) for _ in range(config.blocks)))
        self.decoder_time = nn.ModuleList([Conv3x3(latents, latents), Conv3x3(latents, latents)])
        self.decoder = Decoder(shape.widths, config.blocks, latents)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """See `ImageTokenizer.decode_latents`."""
        latents = latents.to(self.post_quant_conv.weight.dtype)
        # What is decoded and what modulates it pass through the same layers
        # One batch of 2 B: what is decoded, and what modulates it
        both = self.decoder_stack(torch.cat((self.post_quant_conv(latents), latents)))
        for conv in self.decoder_time:
            both = F.silu(conv(both))
        images: Tensor = self.decoder(*both.chunk(2))
        return (images.float() + 1) / 2

    def _latents(self, images: Tensor) -> Tensor:
        x = self.encoder((2 * images - 1).to(self.quant_conv.weight.dtype))
        for conv in self.encoder_time:
            x = F.silu(conv(x))
        latents: Tensor = self.quant_conv(self.encoder_stack(x))
        return latents


class AffineBlock(nn.Module):
    """x + conv(swish(conv(swish(scale * x + shift)))).

    The published block normalizes by fixed statistics: before the first convolution they are scale and shift, behind it
    they are part of its weights.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width, 1, 1)), nn.Parameter(torch.zeros(width, 1, 1))
        self.conv1, self.conv2 = Conv3x3(width, width), Conv3x3(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, h, w] to the same shape."""
        return x + self.conv2(F.silu(self.conv1(F.silu(self.scale * x + self.shift))))
