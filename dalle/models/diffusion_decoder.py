"""The decoder of unCLIP: a diffusion of images given a CLIP image embedding and a caption.

Ramesh et al. 2022, "Hierarchical Text-Conditional Image Generation with CLIP Latents" (arXiv 2204.06125), section 2.1.

Shapes: B batch, T text positions, W width of CLIP's text states, D embedding, H pixels a side, K image tokens.
"""

from __future__ import annotations

from dataclasses import field
from typing import Literal

import torch
from torch import Tensor, nn

from dalle.config import check_total, config
from dalle.config.ranges import Size
from dalle.models.clip import TextStates
from dalle.models.noise_schedule import CosineConfig, Predicts, ScheduleConfig
from dalle.models.prior import MIN_DEVIATION
from dalle.models.time_embedding import TimeEmbedding
from dalle.models.unet import UNet, UNetConfig


@config
class DecoderConfig:
    """A diffusion decoder."""

    kind: Literal["decoder"] = "decoder"
    """From an embedding and a caption."""
    image_size: Size = 32
    """Height and width of the images, in pixels."""
    unet: UNetConfig = field(default_factory=UNetConfig)
    """Shape of the U-Net."""
    embed_dim: Size = 128
    """Dimensions D of the CLIP's embeddings."""
    text_width: Size = 192
    """Channels W of the CLIP's text states."""
    text_length: Size = 24
    """Longest caption of the CLIP in tokens."""
    context_width: Size = 128
    """Channels of the tokens that the U-Net attends to."""
    image_tokens: Size = 4
    """Tokens K that the embedding becomes, in front of the caption's."""
    predicts: Predicts = "v"
    """What the U-Net gives: the noise, v, or the data."""
    learned_variance: bool = False
    """It gives the variance of each step too (arXiv 2102.09672, section 3.1), for `sampler: ddpm`."""
    schedule: ScheduleConfig = field(default_factory=CosineConfig)
    """Noise of the steps."""

    def __post_init__(self) -> None:
        names = ("image_size", "embed_dim", "text_width", "text_length", "context_width", "image_tokens")
        numbers = (self.embed_dim * (self.image_tokens + 1) + self.text_width + self.text_length) * self.context_width
        check_total(
            max(numbers, self.embed_dim * self.unet.vector_width, self.image_size**2),
            ", ".join(f"{name} {getattr(self, name)}" for name in names),
        )
        check_sides(self.unet, image_size=self.image_size)


def check_sides(unet: UNetConfig, **sides: int) -> None:
    """Refuse images that a U-Net cannot halve so often."""
    for name, side in sides.items():
        if side % unet.factor:
            levels = len(unet.channel_multipliers)
            raise ValueError(f"{name} is {side}; {levels} levels need a multiple of {unet.factor}")


class DiffusionDecoder(nn.Module):
    """Predicts what noise lies on an image, given the CLIP embedding of the image and a caption.

    The embedding is added to that of the step, as is the caption's, and becomes K tokens in front of the caption's
    states, which the U-Net attends to. As in Karlo. It is standardized by a training set's mean and deviation, buffers
    that `fit` sets. An embedding that is dropped is a learned one; a caption that is dropped is the empty one, "".
    """

    image_mean: Tensor
    image_deviation: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        width, vector = config.context_width, config.unet.vector_width
        self.time = TimeEmbedding(config.unet.channels, vector)
        self.image_to_vector = nn.Linear(config.embed_dim, vector)
        self.text_to_vector = nn.Linear(config.embed_dim, vector)
        self.image_to_tokens = nn.Linear(config.embed_dim, config.image_tokens * width)  # one projection for all K
        self.states_in = nn.Linear(config.text_width, width)
        self.states_norm = nn.LayerNorm(width)
        self.null_embed = nn.Parameter(torch.randn(config.embed_dim) * 0.02)
        self.unet = UNet(config.unet, 3, 6 if config.learned_variance else 3, width)  # image, and perhaps its variance
        self.register_buffer("image_mean", torch.zeros(config.embed_dim))
        self.register_buffer("image_deviation", torch.ones(config.embed_dim))

    def fit(self, images: Tensor) -> None:
        """Take the statistics of a training set's raw image embeddings, [N, D], N at least 2."""
        self.image_mean.copy_(images.mean(0))
        self.image_deviation.copy_(images.std(0).clamp(min=MIN_DEVIATION))

    def standardize(self, embeds: Tensor) -> Tensor:
        """Raw image embeddings [B, D] to those that the network reads."""
        return (embeds - self.image_mean) / self.image_deviation

    def forward(
        self, noised: Tensor, steps: Tensor, embeds: Tensor, text: TextStates, dropped: Tensor | None = None
    ) -> Tensor:
        """Predict what `config.predicts` says.

        Args:
            noised: [B, 3, H, H], images in [-1, 1] and noise.
            steps: int64 [B], of the schedule.
            embeds: [B, D], standardized.
            text: of B captions, T at most `config.text_length`; what is masked does not count.
            dropped: bool [B], whose embedding is the learned one of no image; None: nobody's.

        Returns:
            float32 [B, 3, H, H]; with a learned variance [B, 6, H, H], the variance behind.

        Raises:
            ValueError: more text positions than the model has.
        """
        batch, length = text.states.shape[:2]
        if length > self.config.text_length:
            raise ValueError(f"got captions of {length} tokens, this decoder reads {self.config.text_length}")
        if dropped is not None:
            # The image's embedding alone: captions are dropped by the caller, who encodes an empty one instead
            embeds = torch.where(dropped[:, None], self.null_embed.to(embeds.dtype), embeds)
        dtype = self.states_in.weight.dtype
        embeds = embeds.to(dtype)
        vector = self.time(steps) + self.image_to_vector(embeds) + self.text_to_vector(text.embeds.to(dtype))  # [B, E]
        tokens = self.image_to_tokens(embeds).view(batch, self.config.image_tokens, -1)  # [B, K, context_width]
        states = self.states_norm(self.states_in(text.states.to(dtype)))
        context = torch.cat((tokens.to(states.dtype), states), dim=1)  # [B, K + T, context_width]
        # Padding of captions is not attended to
        real = torch.cat((text.mask.new_ones(batch, tokens.shape[1]), text.mask), dim=1)
        predicted: Tensor = self.unet(noised.to(dtype), vector, context, real)
        # Samplers subtract nearly equal numbers, for which 16 bits are too coarse
        return predicted.float()
