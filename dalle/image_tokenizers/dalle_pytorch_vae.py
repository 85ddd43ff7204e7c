"""The discrete VAE of DALLE-pytorch (github.com/lucidrains/DALLE-pytorch): plain convolutions, a codebook, L2 loss.

Shapes: B images, K codes, C channels.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.config import check_total, config
from dalle.image_tokenizers.base import ImageTokenizer, Reconstruction
from dalle.image_tokenizers.quantize import kl_to_uniform
from dalle.kernels.conv import Conv3x3
from dalle.ranges import Range, Size


@config
class DiscreteVAEConfig:
    kind: Literal["discrete_vae"] = "discrete_vae"
    """The discrete VAE of DALLE-pytorch."""
    image_size: Size = 256
    """Pixels a side."""
    codebook_size: Size = 512
    """Number of codes."""
    code_channels: Size = 512
    """Channels of a code's vector."""
    layers: Size = 3
    """Convolutions that halve the resolution (and in the decoder double it)."""
    blocks: Annotated[int, Range(0, ceiling=10**6)] = 0
    """Residual blocks at the lowest resolution, in encoder and decoder each."""
    hidden: Size = 64
    """Channels in between."""
    normalised: bool = True
    """Pixels are brought to [-1, 1] first."""

    def __post_init__(self) -> None:
        numbers = (self.layers + self.blocks) * (32 * self.hidden**2 + 2**14) + self.codebook_size * self.code_channels
        check_total(
            max(numbers, self.image_size**2, 2 ** min(self.layers, 64)),
            f"layers {self.layers}, blocks {self.blocks}, hidden {self.hidden}, codebook_size {self.codebook_size}, "
            f"code_channels {self.code_channels}, image_size {self.image_size}",
        )
        if self.image_size % 2**self.layers:
            raise ValueError(
                f"image_size is {self.image_size}; {self.layers} layers need a multiple of {2**self.layers}"
            )


class DiscreteVAE(ImageTokenizer):
    """Codes are the likeliest outputs of the encoder; a code's vector goes through the decoder."""

    def __init__(self, config: DiscreteVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_size, self.image_size, self.factor = config.codebook_size, config.image_size, 2**config.layers
        self.codebook = nn.Embedding(config.codebook_size, config.code_channels)
        hidden = config.hidden
        down = [_halving(3 if layer == 0 else hidden, hidden) for layer in range(config.layers)]
        blocks = [Block(hidden) for _ in range(config.blocks)]
        self.encoder = nn.Sequential(*down, *blocks, nn.Conv2d(hidden, config.codebook_size, 1))
        first = [nn.Conv2d(config.code_channels, hidden, 1)] if config.blocks else []
        start = hidden if config.blocks else config.code_channels
        up = [_doubling(start if layer == 0 else hidden, hidden) for layer in range(config.layers)]
        again = [Block(hidden) for _ in range(config.blocks)]
        self.decoder = nn.Sequential(*first, *again, *up, nn.Conv2d(hidden, 3, 1))

    @property
    def last_layer(self) -> nn.Parameter:
        last = self.decoder[-1]
        assert isinstance(last, nn.Conv2d) and isinstance(last.weight, nn.Parameter)
        return last.weight

    def forward(self, images: Tensor, *, temperature: float = 1.0) -> Reconstruction:
        self._check_images(images)
        logits = self._logits(images)
        relaxed = F.gumbel_softmax(logits, tau=temperature, dim=1)
        vectors = torch.einsum("b k h w, k c -> b c h w", relaxed, self.codebook.weight)
        made = self.from_vectors(vectors)
        scale = 4 if self.config.normalised else 1  # the error is one of what the network sees, from -1 to 1
        losses = {"reconstruction": scale * F.mse_loss(made, images.float()), "kl": kl_to_uniform(logits)}
        return Reconstruction(made, relaxed.argmax(1), losses)

    def vectors(self, codes: Tensor) -> Tensor:
        return rearrange(self.codebook(codes), "b h w c -> b c h w")

    def from_vectors(self, vectors: Tensor) -> Tensor:
        x = self.decoder(vectors.to(self.last_layer.dtype)).float()
        return (x + 1) / 2 if self.config.normalised else x

    def _logits(self, images: Tensor) -> Tensor:
        x = 2 * images - 1 if self.config.normalised else images
        return self.encoder(x.to(self.last_layer.dtype)).float()

    def _encode(self, images: Tensor) -> Tensor:
        return self._logits(images).argmax(1)


class Block(nn.Module):
    """x + three convolutions of x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            Conv3x3(width, width),
            nn.ReLU(),
            Conv3x3(width, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + x


def _halving(before: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, width, 4, stride=2, padding=1), nn.ReLU())


def _doubling(before: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(before, width, 4, stride=2, padding=1), nn.ReLU())
