"""The discrete tokenizer of NVIDIA's Cosmos (arXiv 2501.03575, section 4), for single images, which it has in 2-D.

The published one reads videos: Haar wavelets, convolutions in space and in time, attention in space and in time. An
image is a video of one frame, in front of which are copies of it. Of two linear maps in a row one is left then, so
that this is taming-transformers' network with norms over all channels, and with two maps of single pixels in it; the
wavelets are part of its first and last convolution (`dalle.checkpoints.published.cosmos`).

Letters: B images, C channels.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Final, Literal

from torch import Tensor, nn

from dalle.config import config
from dalle.config.ranges import Range, Size
from dalle.image_tokenizers.quantize import FSQConfig, FSQQuantizer
from dalle.image_tokenizers.quantized import QuantizedTokenizer
from dalle.image_tokenizers.vqgan import Decoder, Encoder, VQGANConfig
from dalle.image_tokenizers.vqgan_layers import Level
from dalle.kernels.group_norm import Norm

LEVELS = 3
"""Of the networks: two halve the resolution, one of these also in time."""
PATCH: Final = 4
"""Side of the patches that become channels first."""


@config
class CosmosConfig:
    """Architecture of Cosmos' discrete tokenizer for cells of 16x16 pixels."""

    kind: Literal["cosmos"] = "cosmos"
    """NVIDIA Cosmos', for single images."""
    image_size: Size = 1024
    """Height and width of the images, in pixels."""
    channels: Size = 128
    """Channels that those of the levels are multiples of."""
    channel_multipliers: list[Size] = field(default_factory=lambda: [2, 4, 4])
    """Channels of each of the three levels over `channels`."""
    blocks: Size = 2
    """Residual blocks of a level of the encoder, one more in the decoder."""
    latent_channels: Size = 16
    """Channels of the encoder's output and of the decoder's input."""
    levels: list[Annotated[int, Range(2, ceiling=10**12)]] = field(default_factory=lambda: [8, 8, 8, 5, 5, 5])
    """Quantization levels per channel of a code; their product is the number of codes."""

    def __post_init__(self) -> None:
        if len(self.channel_multipliers) != LEVELS:
            raise ValueError(f"channel_multipliers is {self.channel_multipliers}; give one for each of {LEVELS} levels")
        self.networks()  # its checks are of these sizes too

    def networks(self) -> VQGANConfig:
        """The shape of encoder and decoder, which is taming-transformers' behind patches of 4x4 pixels."""
        return VQGANConfig(
            image_size=self.image_size,
            patch=PATCH,
            channels=self.channels,
            channel_multipliers=self.channel_multipliers,
            blocks=self.blocks,
            attention_resolutions=[],  # in the middle alone
            latent_channels=self.latent_channels,
            quantizer=FSQConfig(levels=self.levels),
        )


class Cosmos(QuantizedTokenizer):
    """Encoder, quantizer, decoder. Images are in [0, 1] at the interface and in [-1, 1] inside."""

    decoder: Decoder

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        self.config = config
        shape = config.networks()
        self.image_size, self.factor = config.image_size, shape.factor
        self.encoder, self.decoder = Encoder(shape, groups=1), Decoder(shape, groups=1)
        for network in (self.encoder, self.decoder):
            network.mid.insert(2, OneFrame(shape.widths[-1]))
        # Where the decoder doubles the frames of a video; behind the nearest neighbors its bias would meet the padding
        level, width = self.decoder.up[1], shape.widths[1]
        assert isinstance(level, Level)
        level.resample = nn.Sequential(nn.Conv2d(width, width, 1), level.resample)
        self.quantize = CosmosFSQ(FSQConfig(levels=config.levels))
        self.codebook_size = self.quantize.codebook_size
        self.quant_conv = nn.Conv2d(config.latent_channels, self.quantize.code_channels, 1)
        self.post_quant_conv = nn.Conv2d(self.quantize.code_channels, config.latent_channels, 1)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """See `ImageTokenizer.decode_latents`."""
        images: Tensor = self.decoder(self.post_quant_conv(latents.to(self.post_quant_conv.weight.dtype)))
        return (images.float() + 1) / 2

    def _latents(self, images: Tensor) -> Tensor:
        latents: Tensor = self.quant_conv(self.encoder((2 * images - 1).to(self.quant_conv.weight.dtype)))
        return latents


class OneFrame(nn.Module):
    """x + conv(norm(x)) of single pixels: attention over the frames of a video that has one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.conv = Norm(width, groups=1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same shape."""
        mapped: Tensor = self.conv(self.norm(x))
        return x + mapped


class CosmosFSQ(FSQQuantizer):
    """FSQ whose outermost levels are a little inside of what the tanh reaches, and whose shift is exact."""

    def bound(self, z: Tensor, margin: float = 1e-3) -> Tensor:
        """Squash each channel of z [B, C, h, w] so that rounding it gives its levels; see `FSQQuantizer.bound`.

        The paper's listing has 1 - margin and a tangent in these places.
        """
        half = (self.levels - 1) * (1 + margin) / 2
        offset = 0.5 * (self.levels % 2 == 0)
        return (z.float() + (offset / half).atanh()).tanh() * half - offset
