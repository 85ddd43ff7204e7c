"""The VQGAN's adversarial loss: patch discriminator, hinge, adaptive weight. Optimisers are the task's business."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.config import config
from dalle.ranges import NonNegativeInt, Range, Weight

_SCALE = 1024.0  # of losses, lest a mean's gradient at one pixel be lost in float16


@config
class AdversarialConfig:
    weight: Weight = 0.8
    """Weight of the generator's loss, before the adaptive weight multiplies it (`disc_weight` of taming)."""
    start: NonNegativeInt = 10_000
    """Steps before the discriminator starts, so that it meets a tokenizer that reconstructs already."""
    channels: Annotated[int, Range(1, ceiling=4096)] = 64
    """Channels after the discriminator's first convolution; they double with every layer, up to eightfold."""
    layers: Annotated[int, Range(1, ceiling=16)] = 3
    """Halvings of the resolution; 3 judges overlapping patches of 70x70 pixels."""
    adaptive: bool = True
    """Balance the generator's loss against the reconstruction by their gradients at the decoder's last layer."""
    lr: Annotated[float, Range(0, ceiling=1000)] | None = None
    """Peak learning rate of the discriminator; null takes the tokenizer's."""


class PatchDiscriminator(nn.Module):
    """PatchGAN: one logit for each overlapping patch, positive where it looks real (section 3.2.2 of arXiv 1611.07004).

    The geometry is `NLayerDiscriminator` of taming-transformers. That one normalises over the batch, which makes the
    logits of an image depend on its neighbours: two micro-batches of 4 would not equal a batch of 8, nor two
    processes one. Here GroupNorm normalises within an image.
    """

    def __init__(self, config: AdversarialConfig):
        super().__init__()
        self.config = config
        width = config.channels
        blocks: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for layer in range(1, config.layers + 1):
            wider = config.channels * min(2**layer, 8)
            stride = 2 if layer < config.layers else 1
            blocks += [
                nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(math.gcd(32, wider), wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        blocks.append(nn.Conv2d(width, 1, 4, stride=1, padding=1))
        self.blocks = nn.Sequential(*blocks)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> logits float32 [B, 1, h, w]; 64x64 gives 6x6 with 3 layers.

        Raises:
            ValueError: the images are too small for the configured layers.
        """
        check_image_size(self.config, *images.shape[-2:])
        logits: Tensor = self.blocks(images * 2 - 1)
        return logits.float()


def check_image_size(config: AdversarialConfig, height: int, width: int) -> None:
    """Refuse images that are too small for the discriminator.

    Raises:
        ValueError: they are.
    """
    smallest = 3 * 2**config.layers
    if min(height, width) < smallest:
        raise ValueError(
            f"adversarial.layers={config.layers} needs images of at least {smallest}x{smallest}, got {height}x{width}: "
            "set fewer layers"
        )


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge loss: real patches above 1, fake patches below -1. Logits of any shape -> mean, a scalar >= 0."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def generator_loss(fake_logits: Tensor) -> Tensor:
    """What the decoder lowers: minus the mean logit of its own images."""
    return -fake_logits.mean()


def last_layer_gradients(
    reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: nn.Parameter
) -> tuple[Tensor, Tensor]:
    """Gradients of the two losses with respect to the decoder's last layer, each of its shape.

    They add up over micro-batches and processes, as their norms do not: sum them first, then call `adaptive_weight`.
    The graph is kept for the backward pass that follows.
    """
    (reconstruction,) = torch.autograd.grad(_SCALE * reconstruction_loss, last_layer, retain_graph=True)
    (adversarial,) = torch.autograd.grad(_SCALE * adversarial_loss, last_layer, retain_graph=True)
    return reconstruction / _SCALE, adversarial / _SCALE


def adaptive_weight(reconstruction_gradient: Tensor, adversarial_gradient: Tensor) -> Tensor:
    """|reconstruction gradient| / (|adversarial gradient| + 1e-6), within [0, 1e4] (equation 7 of arXiv 2012.09841).

    Returns:
        A scalar without gradient, the factor of the adversarial loss.
    """
    ratio = reconstruction_gradient.norm() / (adversarial_gradient.norm() + 1e-6)
    weight: Tensor = ratio.clamp(0.0, 1e4).detach()
    return weight


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
