"""Kandinsky 2.2's decoder: a diffusion of an autoencoder's latents given a CLIP image embedding and nothing else.

Razzhigaev et al. 2023, "Kandinsky: an Improved Text-to-Image Synthesis with Image Prior and Latent Diffusion" (arXiv
2310.03502), section 3; version 2.2 has dropped the caption.

Letters: B batch, D embedding, C channels of the latents, h latents a side, K image tokens.
"""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from torch import Tensor, nn

from dalle.config import check_total, config
from dalle.config.ranges import Size
from dalle.models.diffusion_decoder import check_sides
from dalle.models.noise_schedule import LinearConfig, Predicts, ScheduleConfig
from dalle.models.time_embedding import TimeEmbedding
from dalle.models.unet import UNet, UNetConfig


@config
class LatentDecoderConfig:
    """A diffusion decoder of latents."""

    kind: Literal["latents"] = "latents"
    """From an embedding to latents."""
    image_size: Size = 64
    """Height and width of the latents."""
    channels: Size = 4
    """Channels C of the latents."""
    unet: UNetConfig = field(default_factory=UNetConfig)
    """Shape of the U-Net."""
    embed_dim: Size = 1280
    """Dimensions D of the CLIP's embeddings."""
    context_width: Size = 768
    """Channels of the tokens that the U-Net attends to."""
    image_tokens: Size = 32
    """Tokens K that the embedding becomes."""
    predicts: Predicts = "epsilon"
    """What the U-Net gives: the noise, v, or the data."""
    learned_variance: bool = True
    """It gives the variance of each step too (arXiv 2102.09672, section 3.1), for `sampler: ddpm`."""
    schedule: ScheduleConfig = field(default_factory=lambda: LinearConfig(first=0.00085, last=0.012))
    """Noise of the steps."""

    def __post_init__(self) -> None:
        numbers = self.embed_dim * (self.image_tokens * self.context_width + self.unet.vector_width)
        check_total(
            max(numbers, self.image_size**2 * self.channels),
            f"image_size {self.image_size}, channels {self.channels}, embed_dim {self.embed_dim}, "
            f"context_width {self.context_width}, image_tokens {self.image_tokens}",
        )
        check_sides(self.unet, image_size=self.image_size)


class LatentDecoder(nn.Module):
    """Predicts what noise lies on latents, given the raw CLIP embedding of an image.

    The embedding is added to that of the step, and becomes K tokens, which the U-Net attends to; both are normalized.
    """

    def __init__(self, config: LatentDecoderConfig) -> None:
        super().__init__()
        self.config = config
        width, vector, channels = config.context_width, config.unet.vector_width, config.channels
        self.time = TimeEmbedding(config.unet.channels, vector)
        self.image_to_vector = nn.Linear(config.embed_dim, vector)
        self.vector_norm = nn.LayerNorm(vector)
        self.image_to_tokens = nn.Linear(config.embed_dim, config.image_tokens * width)
        self.tokens_norm = nn.LayerNorm(width)
        self.unet = UNet(config.unet, channels, (2 if config.learned_variance else 1) * channels, width)

    def forward(self, noised: Tensor, steps: Tensor, embeds: Tensor) -> Tensor:
        """Predict what `config.predicts` says.

        Args:
            noised: [B, C, h, h], latents and noise.
            steps: int64 [B], of the schedule.
            embeds: [B, D], as the CLIP gives them.

        Returns:
            float32 [B, C, h, h]; with a learned variance [B, 2 C, h, h], the variance behind.
        """
        embeds = embeds.to(self.image_to_vector.weight.dtype)
        vector = self.time(steps) + self.vector_norm(self.image_to_vector(embeds))
        tokens = self.tokens_norm(self.image_to_tokens(embeds).view(len(embeds), self.config.image_tokens, -1))
        predicted: Tensor = self.unet(noised.to(embeds.dtype), vector, tokens)
        # Samplers subtract nearly equal numbers, for which 16 bits are too coarse
        return predicted.float()
