"""How much memory sampling from a U-Net takes, so that batches fit. Estimates only; allocates nothing."""

from __future__ import annotations

from dalle.device import device_of, free_memory
from dalle.models.diffusion_decoder import DiffusionDecoder
from dalle.models.latent_decoder import LatentDecoder
from dalle.models.movq import MoVQ, MoVQConfig
from dalle.models.unet import UNetConfig
from dalle.models.upsampler import Upsampler

_MEMORY_FRACTION = 0.5  # of the free memory: the estimate leaves out the allocator's fragmentation
_MOST_ROWS = {"cuda": 64}  # above, a batch takes longer to show its first images and is no faster
_MOST_ROWS_ELSEWHERE = 16


def rows_that_fit(
    decoder: DiffusionDecoder | LatentDecoder, upsampler: Upsampler | None, autoencoder: MoVQ | None, guided: bool
) -> int:
    """How many images to sample at a time: those that take half of the free memory, at least 1.

    Args:
        decoder: the decoder.
        upsampler: the upsampler, if there is one.
        autoencoder: of a decoder of latents.
        guided: whether guidance doubles the rows of the decoder.
    """
    device, element = device_of(decoder), next(decoder.parameters()).element_size()
    config = decoder.config
    tokens = config.image_tokens + (decoder.config.text_length if isinstance(decoder, DiffusionDecoder) else 0)
    rows = [unet_row_bytes(config.unet, config.image_size, tokens, element) * (2 if guided else 1)]
    if upsampler is not None:
        rows.append(unet_row_bytes(upsampler.config.unet, upsampler.config.image_size, element=element))
    if autoencoder is not None:
        rows.append(movq_row_bytes(autoencoder.config, config.image_size, element))
    budget = int(_MEMORY_FRACTION * free_memory(device))
    return min(max(1, budget // max(rows)), _MOST_ROWS.get(device.type, _MOST_ROWS_ELSEWHERE))


def unet_row_bytes(config: UNetConfig, side: int, context_tokens: int = 0, element: int = 4) -> int:
    """Peak bytes of one image in a forward pass without gradients.

    All skip connections are held until the way up begins, where each block has its input beside a skip connection.

    Args:
        config: shape of the U-Net.
        side: height and width of its images.
        context_tokens: tokens that its attention reads beside the pixels.
        element: bytes per number.
    """
    skips, largest = config.channels * side**2, 0
    for level, width in enumerate(config.widths):
        pixels = (side // 2**level) ** 2
        skips += config.layers * width * pixels
        if level + 1 < len(config.widths):
            skips += width * pixels // 4  # the downsampled map, kept too
        # Input joined with a skip connection, the same normalized, and three feature maps of the convolutions
        below = config.widths[min(level + 1, len(config.widths) - 1)]
        block = (2 * (below + width) + 3 * width) * pixels
        attends = level in config.attention_levels
        # Tokens, queries, keys and values, joined with those of the context, and the result in both layouts
        attention = 6 * width * pixels + 4 * width * (pixels + context_tokens) if attends else 0
        largest = max(largest, block, attention)
    return element * (skips + largest)


def movq_row_bytes(config: MoVQConfig, latent_side: int, element: int = 4) -> int:
    """Peak bytes of one image in MoVQ's decoder, which is at its finest level: pixels outweigh all that is coarser.

    Args:
        config: shape of the autoencoder.
        latent_side: height and width of the latents.
        element: bytes per number.
    """
    pixels = (latent_side * config.factor) ** 2
    multipliers = config.channel_multipliers
    below = config.channels * multipliers[min(1, len(multipliers) - 1)]
    # The input enlarged from the level below, normalized and modulated, and the maps of the convolutions
    return element * (4 * below + 4 * config.channels) * pixels
