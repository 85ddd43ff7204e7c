"""The upsampler of unCLIP: a diffusion of images given themselves in small. Reads neither captions nor embeddings.

Ramesh et al. 2022 (arXiv 2204.06125), section 2.1; conditioned as SR3 is (Saharia et al. 2021, arXiv 2104.07636).

Shapes: B batch, H pixels a side, h those of the small images.
"""

from __future__ import annotations

from dataclasses import field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.config import check_total, config
from dalle.config.ranges import Size
from dalle.models.diffusion_decoder import check_sides
from dalle.models.noise_schedule import CosineConfig, Predicts, ScheduleConfig
from dalle.models.time_embedding import TimeEmbedding
from dalle.models.unet import UNet, UNetConfig


@config
class UpsamplerConfig:
    """A diffusion upsampler."""

    kind: Literal["upsampler"] = "upsampler"
    """From smaller images."""
    image_size: Size = 64
    """Height and width of the images, in pixels."""
    low_size: Size = 32
    """Height and width of the small images."""
    unet: UNetConfig = field(default_factory=lambda: UNetConfig(channel_multipliers=[1, 2], attention_levels=[]))
    """Shape of the U-Net."""
    predicts: Predicts = "v"
    """What the U-Net gives: the noise, v, or the data."""
    learned_variance: bool = False
    """It gives the variance of each step too (arXiv 2102.09672, section 3.1), for `sampler: ddpm`."""
    schedule: ScheduleConfig = field(default_factory=CosineConfig)
    """Noise of the steps."""

    def __post_init__(self) -> None:
        if self.low_size >= self.image_size:
            raise ValueError(f"low_size is {self.low_size}; it must be from 1 to below image_size, {self.image_size}")
        check_total(self.image_size**2, f"image_size {self.image_size}")
        check_sides(self.unet, image_size=self.image_size)


class Upsampler(nn.Module):
    """Predicts what noise lies on an image, of which it sees a small version, brought to its size, behind the noise."""

    def __init__(self, config: UpsamplerConfig) -> None:
        super().__init__()
        self.config = config
        self.time = TimeEmbedding(config.unet.channels, config.unet.vector_width)
        # Noised image and small image; the variance, if any
        self.unet = UNet(config.unet, 6, 6 if config.learned_variance else 3)

    def forward(self, noised: Tensor, steps: Tensor, low: Tensor) -> Tensor:
        """Predict what `config.predicts` says.

        Args:
            noised: [B, 3, H, H], images in [-1, 1] and noise; in training a part of them.
            steps: int64 [B], of the schedule.
            low: as noised: the small images, `enlarged`.

        Returns:
            float32 [B, 3, H, H]; with a learned variance [B, 6, H, H], the variance behind.
        """
        dtype = self.time.up.weight.dtype
        predicted: Tensor = self.unet(torch.cat((noised, low), dim=1).to(dtype), self.time(steps))
        return predicted.float()


def enlarged(low: Tensor, size: int) -> Tensor:
    """Images [B, 3, h, h] in [-1, 1] brought to another size, as the network reads them (bicubic, as Karlo does it)."""
    return F.interpolate(low.float(), (size, size), mode="bicubic", antialias=True, align_corners=False)
