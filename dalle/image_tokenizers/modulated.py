"""MoVQ's decoder: each normalization is followed by a scale and a shift for each pixel, read off the latents.

Zheng et al. 2022, "MoVQ: Modulating Quantized Vectors for High-Fidelity Image Generation" (arXiv 2209.09002), section
3.2. Residual blocks of the coarsest level are each followed by attention.

Letters: B images, C channels, L channels of the latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.image_tokenizers.vq import VQConfig
from dalle.image_tokenizers.vqgan import VQGANConfig
from dalle.image_tokenizers.vqgan_layers import Upsample
from dalle.kernels.attention import attend
from dalle.kernels.conv import Conv3x3, image_layout
from dalle.kernels.group_norm import Norm


class ModulatedSizes:
    """What follows from the sizes in a config, for tokenizers of taming-transformers' encoder and this decoder."""

    image_size: int
    channels: int
    channel_multipliers: list[int]
    blocks: int
    latent_channels: int
    codebook_size: int

    def __post_init__(self) -> None:
        self.encoder()  # its checks are of these sizes too

    def encoder(self) -> VQGANConfig:
        """The shape of the encoder, which is taming-transformers' with attention at the coarsest level."""
        factor = 2 ** (len(self.channel_multipliers) - 1)
        return VQGANConfig(
            image_size=self.image_size,
            channels=self.channels,
            channel_multipliers=self.channel_multipliers,
            blocks=self.blocks,
            attention_resolutions=[max(1, self.image_size // factor)],  # a size that is too small is refused there
            latent_channels=self.latent_channels,
            quantizer=self.quantizer(),
        )

    def quantizer(self) -> VQConfig:
        """How latents become codes: the nearest vector."""
        return VQConfig(
            codebook_size=self.codebook_size,
            code_channels=self.latent_channels,
            distance="euclidean",
            update="gradient",
        )


class Decoder(nn.Module):
    """Latents to images, from the coarsest level to the finest."""

    def __init__(self, widths: Sequence[int], blocks: int, latents: int) -> None:
        """Build for levels of `widths` channels, the finest first, each with `blocks` + 1 residual blocks."""
        super().__init__()
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
            for _ in range(blocks + 1):
                self.up.append(ModulatedBlock(before, widths[level], latents))
                before = widths[level]
                if level == len(widths) - 1:  # the coarsest level
                    self.up.append(ModulatedAttention(before, latents))
            if level:  # level 0 has the images' resolution
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
        latents = F.interpolate(latents, x.shape[-2:], mode="nearest")  # to this level's resolution
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
        mixed = self.out(attend(*self.qkv(tokens).chunk(3, dim=-1)))  # [B, 1, h w, C]: one head
        return x + rearrange(mixed, "b 1 (h w) c -> b c h w", h=x.shape[2])
