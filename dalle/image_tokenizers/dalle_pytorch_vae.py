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
from dalle.config.ranges import Range, Size
from dalle.image_tokenizers.base import ImageTokenizer, Reconstruction
from dalle.image_tokenizers.quantize import kl_to_uniform
from dalle.kernels.conv import Conv3x3


@config
class DiscreteVAEConfig:
    """Architecture of a DALLE-pytorch discrete VAE; the defaults are those of its DiscreteVAE."""

    kind: Literal["discrete_vae"] = "discrete_vae"
    """The discrete VAE of DALLE-pytorch."""
    image_size: Size = 256
    """Height and width of the images, in pixels."""
    codebook_size: Size = 512
    """Number of codes."""
    code_channels: Size = 512
    """Channels of a codebook vector."""
    layers: Size = 3
    """Strided convolutions, each of which halves the resolution; the decoder has as many that double it."""
    blocks: Annotated[int, Range(0, ceiling=10**6)] = 0
    """Residual blocks at the lowest resolution, in the encoder and in the decoder."""
    hidden: Size = 64
    """Channels of the hidden layers."""
    normalized: bool = True
    """The network works on pixels in [-1, 1] rather than [0, 1]."""

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
    """The code of a cell is the argmax of the encoder's logits; the decoder reads that code's codebook vector."""

    def __init__(self, config: DiscreteVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_size, self.image_size, self.factor = config.codebook_size, config.image_size, 2**config.layers
        self.codebook = nn.Embedding(config.codebook_size, config.code_channels)
        hidden = config.hidden
        down = [_halving(3 if layer == 0 else hidden, hidden) for layer in range(config.layers)]
        blocks = [Block(hidden) for _ in range(config.blocks)]
        self.encoder = nn.Sequential(*down, *blocks, nn.Conv2d(hidden, config.codebook_size, 1))
        # DALLE-pytorch has this convolution only if there are blocks; indices in the state dict depend on it
        first = [nn.Conv2d(config.code_channels, hidden, 1)] if config.blocks else []
        start = hidden if config.blocks else config.code_channels
        up = [_doubling(start if layer == 0 else hidden, hidden) for layer in range(config.layers)]
        again = [Block(hidden) for _ in range(config.blocks)]
        self.decoder = nn.Sequential(*first, *again, *up, nn.Conv2d(hidden, 3, 1))

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the decoder's output convolution, [3, hidden, 1, 1]."""
        last = self.decoder[-1]
        assert isinstance(last, nn.Conv2d) and isinstance(last.weight, nn.Parameter)
        return last.weight

    def forward(self, images: Tensor, *, temperature: float = 1.0) -> Reconstruction:
        """See `ImageTokenizer.forward`; the losses are "reconstruction" (mean squared error) and "kl" (nats a code)."""
        self._check_images(images)
        logits = self._logits(images)
        relaxed = F.gumbel_softmax(logits, tau=temperature, dim=1)
        # A mixture of codebook vectors
        latents = torch.einsum("b k h w, k c -> b c h w", relaxed, self.codebook.weight)
        made = self.decode_latents(latents)
        scale = 4 if self.config.normalized else 1  # the error in the network's range [-1, 1], twice as wide as [0, 1]
        losses = {"reconstruction": scale * F.mse_loss(made, images.float()), "kl": kl_to_uniform(logits)}
        return Reconstruction(made, relaxed.argmax(1), losses)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """The rows of `codebook`; see `ImageTokenizer.embed_codes`."""
        return rearrange(self.codebook(codes), "b h w c -> b c h w")

    def decode_latents(self, latents: Tensor) -> Tensor:
        """See `ImageTokenizer.decode_latents`."""
        x = self.decoder(latents.to(self.last_layer.dtype)).float()
        return (x + 1) / 2 if self.config.normalized else x  # from [-1, 1], or as it is

    def _logits(self, images: Tensor) -> Tensor:
        x = 2 * images - 1 if self.config.normalized else images
        return self.encoder(x.to(self.last_layer.dtype)).float()

    def _encode(self, images: Tensor) -> Tensor:
        return self._logits(images).argmax(1)


class Block(nn.Module):
    """Residual block: x + conv1x1(relu(conv3x3(relu(conv3x3(x)))))."""

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
        """[B, width, h, w] to the same shape."""
        return self.net(x) + x


def _halving(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, width, 4, stride=2, padding=1), nn.ReLU())


def _doubling(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(inputs, width, 4, stride=2, padding=1), nn.ReLU())
