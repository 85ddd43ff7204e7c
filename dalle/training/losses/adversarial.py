"""The VQGAN's adversarial loss: patch discriminator, hinge loss, adaptive weight."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.config import config
from dalle.config.ranges import NonNegativeInt, Range, Weight

# Losses are means over many pixels: at a single one the gradient can underflow in float16. Both are scaled up before
# differentiation and the gradients scaled down again
_GRADIENT_SCALE = 1024.0


@config
class AdversarialConfig:
    """Options of the adversarial loss."""

    weight: Weight = 0.8
    """Weight of the generator's loss, multiplied by the adaptive weight (`disc_weight` in taming-transformers)."""
    start: NonNegativeInt = 10_000
    """Step at which the discriminator starts, so that the tokenizer learns to reconstruct first."""
    channels: Annotated[int, Range(1, ceiling=4096)] = 64
    """Channels after the discriminator's first convolution; they double with every layer, up to eightfold."""
    layers: Annotated[int, Range(1, ceiling=16)] = 3
    """Number of stride-2 layers; 3 gives a receptive field of 70x70 pixels."""
    adaptive: bool = True
    """Balance the generator's loss against the reconstruction loss by their gradients at the decoder's last layer."""
    lr: Annotated[float, Range(0, ceiling=1000)] | None = None
    """Peak learning rate of the discriminator; null takes the tokenizer's."""


class PatchDiscriminator(nn.Module):
    """PatchGAN discriminator: one logit per overlapping patch, positive if real (arXiv 1611.07004, section 3.2.2).

    The layers are those of `NLayerDiscriminator` of taming-transformers, but with GroupNorm. Its batch norm makes the
    logits of an image depend on the rest of the batch, so that two micro-batches of 4 would not equal a batch of 8,
    nor two processes one.
    """

    def __init__(self, config: AdversarialConfig):
        super().__init__()
        self.config = config
        width = config.channels
        blocks: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for layer in range(1, config.layers + 1):
            wider = config.channels * min(2**layer, 8)
            stride = 2 if layer < config.layers else 1  # the last one keeps the resolution
            blocks += [
                nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(math.gcd(32, wider), wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        blocks.append(nn.Conv2d(width, 1, 4, stride=1, padding=1))
        self.blocks = nn.Sequential(*blocks)
        self.apply(_initialize)

    def forward(self, images: Tensor) -> Tensor:
        """Classify patches as real or generated.

        Args:
            images: [B, 3, H, W] in [0, 1].

        Returns:
            Logits, float32 [B, 1, h, w]; 64x64 pixels give 6x6 logits with 3 layers.

        Raises:
            ValueError: the images are too small for the number of layers.
        """
        check_image_size(self.config, *images.shape[-2:])
        logits: Tensor = self.blocks(images * 2 - 1)
        return logits.float()


def check_image_size(config: AdversarialConfig, height: int, width: int) -> None:
    """Check that images are large enough for the discriminator.

    Raises:
        ValueError: they are too small.
    """
    # Stride-2 layers halve the side, then two 4x4 convolutions take one row each: a patch must be left
    smallest = 3 * 2**config.layers
    if min(height, width) < smallest:
        raise ValueError(
            f"adversarial.layers={config.layers} needs images of at least {smallest}x{smallest}, got {height}x{width}: "
            "set fewer layers"
        )


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge loss, zero if real logits are above 1 and fake ones below -1. Logits of any shape -> mean, a scalar."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Generator's side of the hinge loss: the negative mean logit of generated images, a scalar."""
    return -fake_logits.mean()


def last_layer_gradients(
    reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: nn.Parameter
) -> tuple[Tensor, Tensor]:
    """Differentiate two losses with respect to the decoder's last layer.

    Gradients can be summed over micro-batches and processes, their norms cannot: sum them first, then call
    `adaptive_weight`. The graph is retained for the backward pass that follows.

    Args:
        reconstruction_loss: scalar.
        adversarial_loss: scalar, the generator's.
        last_layer: weight of the decoder's last convolution.

    Returns:
        The two gradients, each of the shape of `last_layer`.
    """
    (reconstruction,) = torch.autograd.grad(_GRADIENT_SCALE * reconstruction_loss, last_layer, retain_graph=True)
    (adversarial,) = torch.autograd.grad(_GRADIENT_SCALE * adversarial_loss, last_layer, retain_graph=True)
    return reconstruction / _GRADIENT_SCALE, adversarial / _GRADIENT_SCALE


def adaptive_weight(reconstruction_gradient: Tensor, adversarial_gradient: Tensor) -> Tensor:
    """Weight that gives the adversarial loss the gradient norm of the reconstruction loss (arXiv 2012.09841, eq. 7).

    Returns:
        |reconstruction gradient| / (|adversarial gradient| + 1e-6), limited to [0, 1e4]; a scalar without gradient.
    """
    ratio = reconstruction_gradient.norm() / (adversarial_gradient.norm() + 1e-6)
    weight: Tensor = ratio.clamp(0.0, 1e4).detach()
    return weight


def _initialize(module: nn.Module) -> None:
    """Initialize as DCGAN and pix2pix do: weights from N(0, 0.02), gains from N(1, 0.02)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
