"""MoVQ's autoencoder, as Kandinsky has it: images to latents and back. Its latents are not quantized there.

Zheng et al. 2022, "MoVQ: Modulating Quantized Vectors for High-Fidelity Image Generation" (arXiv 2209.09002), section
3.2: each normalization of the decoder is followed by a scale and a shift for each pixel, read off the latents.

Letters: B images, C channels, L channels of the latents.
"""

from __future__ import annotations

from dataclasses import field
from typing import Literal

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.config import config
from dalle.config.ranges import Size
from dalle.image_tokenizers.vqgan import Encoder, VQGANConfig
from dalle.image_tokenizers.vqgan_layers import Upsample
from dalle.kernels.attention import attend
from dalle.kernels.conv import Conv3x3, image_layout
from dalle.kernels.group_norm import Norm


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
        self.encoder, self.decoder = Encoder(config.encoder()), Decoder(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1], H and W multiples of `config.factor`, to latents float32 [B, L, h, w]."""
        latents: Tensor = self.quant_conv(self.encoder(images.to(self.quant_conv.weight.dtype)))
        return latents.float()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, L, h, w] to images float32 [B, 3, H, W], nominally in [-1, 1]."""
        latents = latents.to(self.quant_conv.weight.dtype)
        images: Tensor = self.decoder(self.post_quant_conv(latents), latents)
        return images.float()


class Decoder(nn.Module):
    """Latents to images, from the coarsest level to the finest."""

    def __init__(self, config: MoVQConfig) -> None:
        super().__init__()
        widths, latents = (
            [config.channels * multiplier for multiplier in config.channel_multipliers],
            config.latent_channels,
        )
        self.conv_in = Conv3x3(latents, widths[-1])
        self.mid = nn.ModuleList(
            [
                ModulatedBlock(widths[-1], widths[-1], latents),
                ModulatedAttention(widths[-1], latents),
                ModulatedBlock(widths[-1], widths[-1], latents),
            ]
        )
        self.up, before = nn.ModuleList(), widths[-1]
        for level in reversed(range(len(widths))):
            for _ in range(config.blocks + 1):
                self.up.append(ModulatedBlock(before, widths[level], latents))
                before = widths[level]
                if level == len(widths) - 1:
                    self.up.append(ModulatedAttention(before, latents))
            if level:
                self.up.append(Upsample(before))
        self.norm_out = Modulated(before, latents)
        self.conv_out = Conv3x3(before, 3)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """What to decode [B, L, h, w], and the latents that modulate it, to [B, 3, H, W]."""
        x = self.conv_in(image_layout(x))
        for part in (*self.mid, *self.up):
            x = part(x) if isinstance(part, Upsample) else part(x, latents)
        images: Tensor = self.conv_out(F.silu(self.norm_out(x, latents)))
        return images


class Modulated(nn.Module):
    """Group normalization, then a scale and a shift of each pixel, which the latents give."""

    def __init__(self, width: int, latents: int) -> None:
        super().__init__()
        self.norm = Norm(width)
        self.scale, self.shift = nn.Conv2d(latents, width, 1), nn.Conv2d(latents, width, 1)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """[B, C, h, w] to the same shape."""
        latents = F.interpolate(latents, x.shape[-2:], mode="nearest")
        return self.norm(x) * self.scale(latents) + self.shift(latents)


class ModulatedBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x))))))."""

    def __init__(self, before: int, width: int, latents: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Modulated(before, latents), Conv3x3(before, width)
        self.norm2, self.conv2 = Modulated(width, latents), Conv3x3(width, width)
        self.shortcut = nn.Identity() if before == width else nn.Conv2d(before, width, 1)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """[B, before, h, w] to [B, width, h, w]."""
        hidden = self.conv1(F.silu(self.norm1(x, latents)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(hidden, latents)))


class ModulatedAttention(nn.Module):
    """All cells look at each other, with one head; what they see is added to them."""

    def __init__(self, width: int, latents: int) -> None:
        super().__init__()
        self.norm = Modulated(width, latents)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """[B, C, h, w] to the same shape."""
        tokens = rearrange(self.norm(x, latents), "b c h w -> b 1 (h w) c")
        mixed = self.out(attend(*self.qkv(tokens).chunk(3, dim=-1)))
        return x + rearrange(mixed, "b 1 (h w) c -> b c h w", h=x.shape[2])
