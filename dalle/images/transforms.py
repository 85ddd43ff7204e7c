"""Images to tensors of a wanted size and back: one crop, one filter, one treatment of transparency.

Shapes: B images, H W their height and width in pixels.
"""

from __future__ import annotations

import logging
import math

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

log = logging.getLogger(__name__)

Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels
REDUCING_GAP = 2.0  # images are first reduced cheaply, to no less than so many times the wanted size


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB; what is transparent becomes white."""
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def resized(image: Image.Image, width: int, height: int, box: Box | None = None) -> Image.Image:
    """A part of an image in another size (Lanczos); without a box the largest in the middle that has the wanted shape.

    Data sets, CLIP's images and those that users give all go through this, so that a model sees what it was trained on.
    """
    box = _middle(image.size, width / height) if box is None else box
    return image.resize((width, height), Image.Resampling.LANCZOS, box, reducing_gap=REDUCING_GAP)


def to_tensor(image: Image.Image, width: int, height: int) -> Tensor:
    """An image as float [1, 3, height, width] in [0, 1], cut to that shape; what is transparent becomes white."""
    return _values(resized(to_rgb(image), width, height))[None]


def square_tensor(image: Image.Image, size: int) -> Tensor:
    """The middle square of an image as float [3, size, size] in [0, 1]; what is transparent becomes white."""
    if image.width != image.height:
        log.warning("image of %dx%d cut to its middle square", *image.size)
    return to_tensor(image, size, size)[0]


def to_image(image: Tensor) -> Image.Image:
    """Float [1, 3, H, W] in [0, 1] as an RGB image."""
    return Image.fromarray((image[0].detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def to_mask(mask: Image.Image, image: Image.Image, width: int, height: int) -> Tensor:
    """A mask as float [1, 1, height, width], 1 where it is white: cut and resized like its image.

    Raises:
        ValueError: it is not of the image's size, or nothing of it is white.
    """
    if mask.size != image.size:
        raise ValueError(
            f"mask is {mask.width}x{mask.height} and init {image.width}x{image.height}: give a mask of the image's size"
        )
    box = _middle(mask.size, width / height)
    white = _values(_luminance(mask).resize((width, height), Image.Resampling.BOX, box))[None]
    if not white.any():
        raise ValueError("mask has no white pixel in its middle: paint white what is to be painted")
    return white


def redrawn_pixels(mask: Image.Image, size: int) -> Tensor:
    """The middle square of a mask as bool [size, size]: True where any of its pixels is white (brighter than half).

    Raises:
        ValueError: no pixel is white.
    """
    left, upper, right, lower = (int(edge) for edge in _middle(mask.size, 1.0))
    bright = _values(_luminance(mask).crop((left, upper, right, lower))) >= 0.5
    redrawn = F.adaptive_max_pool2d(bright.float(), size)[0] > 0
    if not redrawn.any():
        raise ValueError("mask has no white pixel in its middle square: paint white what is to be drawn anew")
    return redrawn


def resize_batch(images: Tensor, size: int) -> Tensor:
    """Resize the shorter side to `size` (bicubic, antialiased), then cut a square from the middle, as CLIP does.

    For images that are tensors already, with gradients: PyTorch has no Lanczos filter.

    Args:
        images: float [B, 3, H, W] in [0, 1].
        size: height and width of the result, in pixels.

    Returns:
        float [B, 3, size, size] in [0, 1].
    """
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    short = min(height, width)
    new = (round(height * size / short), round(width * size / short))
    resized = F.interpolate(images.float(), new, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (new[0] - size) // 2, (new[1] - size) // 2
    return resized[..., top : top + size, left : left + size]


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Images [B, C, H, W] blurred by a Gaussian of 3x3 pixels; edges go on as they are."""
    weight = torch.tensor([math.exp(-0.5 / sigma**2), 1.0, math.exp(-0.5 / sigma**2)], device=images.device)
    kernel = (weight[:, None] * weight).to(images.dtype) / weight.sum() ** 2
    channels = images.shape[1]
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernel.expand(channels, 1, 3, 3), groups=channels)


def _middle(extent: tuple[int, int], shape: float) -> Box:
    """The largest box in the middle of an image of `extent` whose width is `shape` times its height."""
    width, height = extent
    across, down = min(width, height * shape), min(height, width / shape)
    left, upper = (width - across) / 2, (height - down) / 2
    return left, upper, left + across, upper + down


def _luminance(mask: Image.Image) -> Image.Image:
    """A mask as 8 bits of grey; what is transparent is black, whatever color stands under it."""
    if not mask.has_transparency_data:
        return mask.convert("L")
    layer = mask.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer).convert("L")


def _values(image: Image.Image) -> Tensor:
    """An image of 8 bits a channel as float [channels, H, W] in [0, 1]."""
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, -1).permute(2, 0, 1).float() / 255
