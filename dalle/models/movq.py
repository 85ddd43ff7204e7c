"""MoVQ's autoencoder, as Kandinsky has it: images to latents and back. Its latents are not quantized there.

Zheng et al. 2022, "MoVQ: Modulating Quantized Vectors for High-Fidelity Image Generation" (arXiv 2209.09002), section
3.2: each normalization of the decoder is followed by a scale and a shift for each pixel, read off the latents.

Letters: B images, C channels, L channels of the latents.
"""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from torch import Tensor, nn

from dalle.config import config
from dalle.config.ranges import Size
from dalle.image_tokenizers.modulated import Decoder
from dalle.image_tokenizers.vqgan import Encoder, VQGANConfig


@config
class MoVQConfig:
    """An autoencoder whose decoder is modulated by the latents."""

    kind: Literal["movq"] = "movq"
    """MoVQ's."""
    channels: Size = 128
    """Channels of the first level."""
    channel_multipliers: list[Size] = field(default_factory=lambda: [1, 2, 2, 4])
    """Channels of each level over `channels`; each level but the first halves the resolution."""
    blocks: Size = 2
    """Residual blocks of a level of the encoder; one more in the decoder. Those of the last level attend."""
    latent_channels: Size = 4
    """Channels L of the latents."""

    def __post_init__(self) -> None:
        self.encoder()  # its checks are of these sizes too

    @property
    def factor(self) -> int:
        """Pixels of a latent's side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    def encoder(self) -> VQGANConfig:
        """The shape of the encoder, which is taming-transformers'."""
        return VQGANConfig(
            # An image of one latent: the coarsest level, which attends, then has the resolution 1
            image_size=self.factor,
            channels=self.channels,
            channel_multipliers=self.channel_multipliers,
            blocks=self.blocks,
            attention_resolutions=[1],
            latent_channels=self.latent_channels,
        )


class MoVQ(nn.Module):
    """Images in [-1, 1] to latents and back."""

    def __init__(self, config: MoVQConfig) -> None:
        super().__init__()
        self.config = config
        shape = config.encoder()
        self.encoder, self.decoder = Encoder(shape), Decoder(shape.widths, config.blocks, config.latent_channels)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1], H and W multiples of `config.factor`, to latents float32 [B, L, h, w]."""
        latents: Tensor = self.quant_conv(self.encoder(images.to(self.quant_conv.weight.dtype)))
        return latents.float()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, L, h, w] to images float32 [B, 3, H, W], nominally in [-1, 1]."""
        latents = latents.to(self.quant_conv.weight.dtype)
        # What is decoded goes through post_quant_conv, what modulates it does not
        images: Tensor = self.decoder(self.post_quant_conv(latents), latents)
        return images.float()
