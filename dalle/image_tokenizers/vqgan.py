"""VQGAN (arXiv 2012.09841): taming-transformers' convolutional encoder and decoder around a quantizer.

The encoder can be replaced by one that sees a single cell at a time (`dalle.image_tokenizers.local_encoder`).
The adversarial and perceptual losses belong to training (`dalle.training.losses`), not to the model.

Shapes: B images, C channels.
"""

from __future__ import annotations

from dataclasses import field
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from dalle.config import check_total, config
from dalle.config.ranges import Decay, Size
from dalle.image_tokenizers.local_encoder import LocalEncoder, LocalEncoderConfig
from dalle.image_tokenizers.quantize import FSQConfig, FSQQuantizer, GumbelConfig, GumbelQuantizer, Quantizer
from dalle.image_tokenizers.quantized import QuantizedTokenizer
from dalle.image_tokenizers.vq import VectorQuantizer, VQConfig
from dalle.image_tokenizers.vqgan_layers import Downsample, Level, Middle, ResidualBlock, Upsample
from dalle.kernels.conv import Conv3x3, image_layout
from dalle.kernels.group_norm import GROUPS, Norm


@config
class VQGANConfig:
    """Architecture of a VQGAN. The default channels and blocks suit small images; taming's are in the tests."""

    kind: Literal["vqgan"] = "vqgan"
    """taming-transformers' encoder and decoder."""
    image_size: Size = 64
    """Height and width of the images, in pixels."""
    patch: Literal[1, 2, 4] = 1
    """2 or 4: fold 2x2 or 4x4 pixels into channels at the input and unfold them at the output (pixel unshuffle), which
    is several times cheaper. 1: taming's architecture."""
    channels: Size = 64
    """Channels of the first level, the one with the highest resolution."""
    channel_multipliers: list[Size] = field(default_factory=lambda: [1, 2, 2, 4])
    """Channels of each level as a multiple of `channels`; each level but the first halves the resolution."""
    blocks: Size = 1
    """Residual blocks per level of the encoder; the decoder has one more per level."""
    attention_resolutions: list[Size] = field(default_factory=lambda: [8])
    """Resolutions (cells per side at `image_size`) at which self-attention follows each block."""
    latent_channels: Size = 64
    """Channels of the encoder's output and the decoder's input; 1x1 convolutions adapt them to the quantizer's."""
    dropout: Decay = 0.0
    """Dropout inside the residual blocks."""
    local_encoder: LocalEncoderConfig | None = None
    """An encoder whose codes describe only their own cell; null: taming's, whose codes depend on the whole image.
    If set, channels, blocks and attention apply to the decoder only."""
    quantizer: VQConfig | GumbelConfig | FSQConfig = field(default_factory=VQConfig)
    """How latents become codes."""

    def __post_init__(self) -> None:
        if not self.channel_multipliers:
            raise ValueError("channel_multipliers is empty; give one for each level, for example [1, 2, 2, 4]")
        # A rough count of parameters, so that an absurd config fails before anything is allocated
        widest = max(*self.widths, self.latent_channels)
        numbers = len(self.channel_multipliers) * self.blocks * (18 * widest**2 + 2**14)  # two 3x3 convolutions a block
        if not isinstance(self.quantizer, FSQConfig):
            numbers += self.quantizer.codebook_size * self.quantizer.code_channels
        check_total(
            max(numbers, self.image_size**2),
            f"image_size {self.image_size}, channels {self.channels}, channel_multipliers {self.channel_multipliers}, "
            f"blocks {self.blocks}, latent_channels {self.latent_channels}, quantizer {self.quantizer}",
        )
        if self.image_size % self.factor:
            raise ValueError(
                f"image_size is {self.image_size}; patch {self.patch} and {len(self.channel_multipliers)} levels "
                f"need a multiple of {self.factor}"
            )

        if self.local_encoder is not None and self.factor % self.local_encoder.pool:
            raise ValueError(
                f"local_encoder.pool is {self.local_encoder.pool}: a cell of {self.factor} pixels must divide into "
                "squares of that many"
            )

    @property
    def factor(self) -> int:
        """Downsampling factor: height and width of the pixels that one code covers."""
        return self.patch * 2 ** (len(self.channel_multipliers) - 1)

    @property
    def widths(self) -> list[int]:
        """Channels of the levels, highest resolution first."""
        return [self.channels * multiplier for multiplier in self.channel_multipliers]

    def attends(self, level: int) -> bool:
        """Whether self-attention follows the blocks of `level`."""
        return self.image_size // self.patch // 2**level in self.attention_resolutions  # the side of this level's maps


class VQGAN(QuantizedTokenizer):
    """Encoder, quantizer, decoder. Images are in [0, 1] at the interface and in [-1, 1] inside."""

    decoder: Decoder

    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.config = config
        self.image_size, self.factor = config.image_size, config.factor
        self.encoder: nn.Module
        if config.local_encoder is None:
            self.encoder = Encoder(config)
        else:
            self.encoder = LocalEncoder(config.local_encoder, config.factor, config.latent_channels)
        self.decoder = Decoder(config)
        self.quantize = _quantizer(config.quantizer)
        self.codebook_size = self.quantize.codebook_size
        # The quantizer may have far fewer channels than the encoder: factorized codes, ViT-VQGAN (arXiv 2110.04627)
        self.quant_conv = nn.Conv2d(config.latent_channels, self.quantize.code_channels, 1)
        self.post_quant_conv = nn.Conv2d(self.quantize.code_channels, config.latent_channels, 1)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """See `ImageTokenizer.decode_latents`."""
        weight = self.post_quant_conv.weight
        return (self.decoder(self.post_quant_conv(latents.to(weight.dtype))).float() + 1) / 2  # from [-1, 1] to [0, 1]

    def _latents(self, images: Tensor) -> Tensor:
        # quant_conv and post_quant_conv are taming's names; they adapt the channels to the quantizer's
        weight = self.quant_conv.weight
        return self.quant_conv(self.encoder((2 * images - 1).to(weight.dtype)))


def _quantizer(config: VQConfig | GumbelConfig | FSQConfig) -> Quantizer:
    if isinstance(config, VQConfig):
        return VectorQuantizer(config)
    if isinstance(config, GumbelConfig):
        return GumbelQuantizer(config)
    return FSQQuantizer(config)


class Encoder(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] to latents [B, latent_channels, H / factor, W / factor]."""

    def __init__(self, config: VQGANConfig, groups: int = GROUPS):
        super().__init__()
        self.patch = config.patch
        widths = config.widths
        self.conv_in = Conv3x3(3 * config.patch**2, config.channels)
        self.down = nn.ModuleList()
        # Level i maps the channels of level i - 1 to its own; zip drops the last width, which has no next level
        for level, (inputs, width) in enumerate(zip([config.channels, *widths], widths, strict=False)):
            blocks = [
                ResidualBlock(inputs if block == 0 else width, width, config.dropout, groups)
                for block in range(config.blocks)
            ]
            last = level == len(widths) - 1
            self.down.append(Level(blocks, config.attends(level), None if last else Downsample(width)))
        self.mid = Middle(widths[-1], config.dropout, groups)
        self.norm_out = Norm(widths[-1], groups=groups)
        self.conv_out = Conv3x3(widths[-1], config.latent_channels)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        x = self.conv_in(image_layout(F.pixel_unshuffle(images, self.patch)))  # [B, 3 p^2, H / p, W / p] with p = patch
        for level in self.down:
            x = level(x)
        return self.conv_out(self.norm_out(self.mid(x), swish=True))


class Decoder(nn.Module):
    """Latents [B, latent_channels, h, w] to images [B, 3, h * factor, w * factor], nominally in [-1, 1].

    As in taming, `up` is indexed like the encoder's `down`: the lowest resolution is last and runs first.
    """

    def __init__(self, config: VQGANConfig, groups: int = GROUPS):
        super().__init__()
        self.patch = config.patch
        widths = config.widths
        self.conv_in = Conv3x3(config.latent_channels, widths[-1])
        self.mid = Middle(widths[-1], config.dropout, groups)
        self.up = nn.ModuleList()
        # The mirror image: level i receives the channels of level i + 1
        for level, (width, inputs) in enumerate(zip(widths, [*widths[1:], widths[-1]], strict=True)):
            blocks = [
                ResidualBlock(inputs if block == 0 else width, width, config.dropout, groups)
                for block in range(config.blocks + 1)
            ]
            self.up.append(Level(blocks, config.attends(level), Upsample(width) if level else None))
        self.norm_out = Norm(widths[0], groups=groups)
        self.conv_out = Conv3x3(widths[0], 3 * config.patch**2)

    def forward(self, latents: Tensor) -> Tensor:
        """See the class."""
        x = self.mid(self.conv_in(image_layout(latents)))
        for level in reversed(self.up):
            x = level(x)
        return F.pixel_shuffle(self.conv_out(self.norm_out(x, swish=True)), self.patch)
