"""Discrete VAE of DALL-E (arXiv 2102.12092, appendix A): bottleneck ResNets, Gumbel-softmax, logit-Laplace likelihood.

The architecture is that of OpenAI's dall_e package. Shapes: B images, K codes, C channels.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.config import check_total, config
from dalle.config.ranges import Size
from dalle.image_tokenizers.base import ImageTokenizer, Reconstruction
from dalle.image_tokenizers.quantize import kl_to_uniform
from dalle.kernels.conv import Conv3x3, image_layout

EPSILON = 0.1  # pixels are mapped to [EPSILON, 1 - EPSILON], where the logit is bounded (appendix A.3)


@config
class DVAEConfig:
    """A dVAE. The paper's own: 4 groups (factor 8), hidden 256, codebook_size 8192, code_channels 128."""

    kind: Literal["dvae"] = "dvae"
    """The discrete VAE of DALL-E."""
    image_size: Size = 64
    """Height and width of the images, in pixels."""
    codebook_size: Size = 1024
    """Number of codes."""
    groups: Size = 4
    """Groups of blocks; the resolution halves (in the decoder: doubles) between two groups."""
    blocks_per_group: Size = 2
    """Residual blocks per group."""
    hidden: Size = 64
    """Channels at full resolution; each group further down has twice as many. A multiple of 4."""
    code_channels: Size = 64
    """Channels of a code's vector, which is the decoder's input."""

    def __post_init__(self) -> None:
        # A rough count of parameters, so that an absurd config fails before anything is allocated
        # Bounded, as 2 to the power of an absurd number would not end
        widest = self.hidden * 2 ** min(self.groups, 64)
        numbers = self.groups * self.blocks_per_group * (widest**2 + 2**14)
        numbers += self.codebook_size * (widest + self.code_channels) + self.code_channels * widest
        check_total(
            max(numbers, self.image_size**2),
            f"groups {self.groups}, blocks_per_group {self.blocks_per_group}, hidden {self.hidden}, codebook_size "
            f"{self.codebook_size}, code_channels {self.code_channels}, image_size {self.image_size}",
        )
        if self.hidden % 4:
            raise ValueError(f"hidden is {self.hidden}; it must be a multiple of 4")
        if self.image_size % self.factor:
            raise ValueError(f"image_size is {self.image_size}; {self.groups} groups need a multiple of {self.factor}")

    @property
    def factor(self) -> int:
        """Downsampling factor: height and width of the pixels that one code covers."""
        return 2 ** (self.groups - 1)

    @property
    def widths(self) -> list[int]:
        """Channels of the encoder's groups, highest resolution first."""
        return [self.hidden * 2**group for group in range(self.groups)]

    @property
    def residual_gain(self) -> float:
        """The factor on each residual branch: 1 / (number of blocks)^2, as in OpenAI's code."""
        return 1 / (self.groups * self.blocks_per_group) ** 2


class DVAE(ImageTokenizer):
    """Encoder, Gumbel-softmax codes, decoder.

    Its losses are "reconstruction", the negative log-likelihood of the mapped image in nats per sub-pixel, and "kl",
    the KL divergence of the code distribution from the uniform one in nats per code.
    """

    def __init__(self, config: DVAEConfig):
        super().__init__()
        self.config = config
        self.codebook_size, self.image_size, self.factor = config.codebook_size, config.image_size, config.factor
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the decoder's output convolution, [6, hidden, 1, 1]."""
        weight = self.decoder.output.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def forward(self, images: Tensor, *, temperature: float = 1.0) -> Reconstruction:
        """See `ImageTokenizer.forward`."""
        self._check_images(images)
        mapped = map_pixels(images)
        logits = self.encoder(mapped)
        # Differentiable sampling of codes; training anneals the temperature, so that they become one-hot
        relaxed = F.gumbel_softmax(logits, temperature, dim=1)
        mean, log_scale = self.decoder(relaxed).chunk(2, dim=1)  # [B, 3, H, W] each
        losses = {
            "reconstruction": logit_laplace_nll(mapped, mean, log_scale).mean(),
            "kl": kl_to_uniform(logits),
        }
        # The sigmoid of the Laplace mean is the median of the logit-Laplace distribution
        return Reconstruction(unmap_pixels(mean.sigmoid()), relaxed.argmax(1), losses)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """The decoder's first convolution applied to one-hot codes; see `ImageTokenizer.embed_codes`."""
        return self.decoder.embed_codes(codes)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """See `ImageTokenizer.decode_latents`; the image is the median of the logit-Laplace distribution."""
        mean, _ = self.decoder.decode_latents(latents).chunk(2, dim=1)
        return unmap_pixels(mean.sigmoid())

    def _encode(self, images: Tensor) -> Tensor:
        return self.encoder(map_pixels(images)).argmax(1)


def map_pixels(images: Tensor) -> Tensor:
    """Map pixels from [0, 1] to [EPSILON, 1 - EPSILON], in float32."""
    return (1 - 2 * EPSILON) * images.float() + EPSILON


def unmap_pixels(mapped: Tensor) -> Tensor:
    """Invert `map_pixels`; the result may leave [0, 1]."""
    return (mapped - EPSILON) / (1 - 2 * EPSILON)


def logit_laplace_nll(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Negative logarithm of the logit-Laplace density (appendix A.3 of arXiv 2102.12092), in nats.

    Args:
        x: pixels in (0, 1).
        mean: the Laplace distribution's mean, of logit(x); shaped like x.
        log_scale: logarithm of its scale; shaped like x.

    Returns:
        Shaped like x.
    """
    # -log of exp(-|logit(x) - mean| / b) / (2 b x (1 - x)) with b = exp(log_scale): equation 2 of the paper
    distance = (x.logit() - mean).abs()
    return math.log(2) + log_scale + (x * (1 - x)).log() + distance * (-log_scale).exp()


class Encoder(nn.Module):
    """Mapped images [B, 3, H, W] to logits [B, K, H / factor, W / factor], float32."""

    def __init__(self, config: DVAEConfig):
        super().__init__()
        self.input = _conv(3, config.hidden, 7)  # as OpenAI's first convolution
        # Three 3x3 kernels and a 1x1 kernel per block; the decoder has them in reverse order
        self.groups = _groups([config.hidden, *config.widths], (3, 3, 3, 1), config)
        self.output = _conv(config.widths[-1], config.codebook_size, 1)

    def forward(self, mapped: Tensor) -> Tensor:
        """Mapped images [B, 3, H, W] to logits [B, K, h, w]."""
        x = self.input(image_layout(mapped.to(self.input.weight.dtype)))
        for index, group in enumerate(self.groups):
            # The paper pools in the encoder and interpolates in the decoder, and has no strided convolutions
            x = group(F.max_pool2d(x, 2) if index else x)
        # Logits over thousands of codes are too coarse in 16 bits
        with torch.autocast(x.device.type, enabled=False):
            return self.output(F.relu(x).to(self.output.weight.dtype)).float()


class Decoder(nn.Module):
    """(Relaxed) one-hot codes [B, K, h, w] to the mean and log scale [B, 6, h * factor, w * factor], float32."""

    def __init__(self, config: DVAEConfig):
        super().__init__()
        self.input = _conv(config.codebook_size, config.code_channels, 1)
        self.groups = _groups([config.code_channels, *reversed(config.widths)], (1, 3, 3, 3), config)
        self.output = _conv(config.hidden, 6, 1)  # mean and log scale of three channels

    def forward(self, relaxed: Tensor) -> Tensor:
        """See the class."""
        with torch.autocast(relaxed.device.type, enabled=False):
            # A sum over thousands of small relaxed codes, for which 16 bits are too coarse
            latents = self.input(relaxed.to(self.input.weight.dtype))
        return self.decode_latents(latents)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """The first convolution of one-hot codes: codes int64 [B, h, w] pick columns of its weight, [B, C, h, w]."""
        assert self.input.bias is not None
        # A 1x1 convolution of a one-hot vector selects a column: a lookup instead of a product over all codes
        rows = F.embedding(codes, self.input.weight[:, :, 0, 0].t()) + self.input.bias
        return rearrange(rows, "b h w c -> b c h w")

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Everything after the first convolution, from latents [B, C, h, w]."""
        x = image_layout(latents.to(self.output.weight.dtype))
        for index, group in enumerate(self.groups):
            x = group(F.interpolate(x, scale_factor=2.0, mode="nearest") if index else x)
        return self.output(F.relu(x)).float()


class Block(nn.Module):
    """Bottleneck of four convolutions, a ReLU before each, scaled by `gain` and added to the input."""

    def __init__(self, inputs: int, width: int, kernels: tuple[int, int, int, int], gain: float):
        super().__init__()
        self.gain = gain
        ends = pairwise([inputs, width // 4, width // 4, width // 4, width])  # the middle has a quarter of the channels
        self.convs = nn.ModuleList(
            [_conv(inner, outer, kernel) for (inner, outer), kernel in zip(ends, kernels, strict=True)]
        )
        self.shortcut = nn.Identity() if inputs == width else _conv(inputs, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] to [B, width, h, w]."""
        residual = x
        for conv in self.convs:
            residual = conv(F.relu(residual))
        return self.shortcut(x) + self.gain * residual


def _groups(widths: list[int], kernels: tuple[int, int, int, int], config: DVAEConfig) -> nn.ModuleList:
    """One group of blocks for each two successive `widths`."""
    groups = nn.ModuleList()
    for inputs, width in pairwise(widths):
        blocks = [
            Block(inputs if index == 0 else width, width, kernels, config.residual_gain)
            for index in range(config.blocks_per_group)
        ]
        groups.append(nn.Sequential(*blocks))
    return groups


def _conv(inputs: int, width: int, kernel: int) -> nn.Conv2d:
    """A same-size convolution, initialized as in the dall_e package: variance 1 / fan-in, biases 0."""
    conv = Conv3x3(inputs, width) if kernel == 3 else nn.Conv2d(inputs, width, kernel, padding=kernel // 2)
    nn.init.normal_(conv.weight, std=1 / math.sqrt(inputs * kernel**2))  # keeps the variance of unit inputs
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
