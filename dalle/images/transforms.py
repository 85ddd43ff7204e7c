"""Converts between PIL images and tensors, with one crop, one resampling filter and one treatment of transparency.

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
REDUCING_GAP = 2.0  # large images are first reduced by box filtering, to no less than this multiple of the target size


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB; transparency becomes white."""
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def resize(image: Image.Image, width: int, height: int, box: Box | None = None) -> Image.Image:
    """Crop and resize an image (Lanczos); without a box, crop the largest central one of the target aspect ratio.

    Data sets, CLIP and users' images all go through this function, so that models see what they were trained on.
    """
    box = _middle(image.size, width / height) if box is None else box
    return image.resize((width, height), Image.Resampling.LANCZOS, box, reducing_gap=REDUCING_GAP)


def to_tensor(image: Image.Image, width: int, height: int) -> Tensor:
    """Center-crop and resize an image to float [1, 3, height, width] in [0, 1]; transparency becomes white."""
    return _values(resize(to_rgb(image), width, height))[None]


def centered_tensor(image: Image.Image, width: int, height: int) -> Tensor:
    """Center-crop and resize an image to float [3, height, width] in [0, 1]; transparency becomes white.

    Raises:
        ValueError: it is no PIL image.
    """
    check_images(image=image)
    note = crop_note(image, width, height)
    if note is not None:
        log.warning("%s", note)
    return to_tensor(image, width, height)[0]


def crop_note(image: Image.Image, width: int, height: int) -> str | None:
    """What a user should know of how an image becomes one of this size, if a part of it is lost."""
    if image.width * height == image.height * width:
        return None
    part = "square" if width == height else f"part of the shape of {width}x{height}"
    return f"image of {image.width}x{image.height} cropped to its central {part}"


def square_tensor(image: Image.Image, size: int) -> Tensor:
    """Center-crop and resize an image to float [3, size, size] in [0, 1]; transparency becomes white."""
    return centered_tensor(image, size, size)


def to_image(image: Tensor) -> Image.Image:
    """Convert float [1, 3, H, W] in [0, 1] to an RGB image."""
    return to_images(image)[0]


def to_images(images: Tensor) -> list[Image.Image]:
    """Convert float [B, 3, H, W] in [0, 1] to B RGB images."""
    pixels = (images.detach().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu()
    return [Image.fromarray(one.numpy()) for one in pixels]


def check_images(**images: object) -> None:
    """Refuse what is no PIL image, such as the path of a file, by the names of arguments."""
    for name, image in images.items():
        if not isinstance(image, Image.Image):
            raise ValueError(f"{name} is of type {type(image).__name__}: give a PIL.Image, as of PIL.Image.open(path)")


def check_mask(mask: Image.Image, image: Image.Image, name: str = "image") -> None:
    """Check that a mask fits an image, which error messages call `name`.

    Raises:
        ValueError: their sizes differ, or one is no PIL image.
    """
    check_images(mask=mask, **{name: image})
    if mask.size != image.size:
        sizes = f"mask is {mask.width}x{mask.height} and {name} {image.width}x{image.height}"
        raise ValueError(f"{sizes}: give a mask of the image's size")


def to_mask(mask: Image.Image, image: Image.Image, width: int, height: int) -> Tensor:
    """Crop and resize a mask like its image, to float [1, 1, height, width], 1 where it is white.

    Raises:
        ValueError: its size differs from the image's, or no pixel of the crop is white.
    """
    check_mask(mask, image, "init")
    box = _middle(mask.size, width / height)
    # White share of each pixel
    white = _values(_luminance(mask).resize((width, height), Image.Resampling.BOX, box))[None]
    if not white.any():
        raise ValueError("mask has no white pixel in its central crop: make the region to paint white")
    return white


def inpaint_pixels(mask: Image.Image, width: int, height: int | None = None) -> Tensor:
    """The center of a mask as bool [height, width]: True where any of its pixels is white (brighter than half).

    Args:
        mask: the mask.
        width: width of the result.
        height: its height; None: that of a square.

    Raises:
        ValueError: no pixel is white.
    """
    height = width if height is None else height
    left, upper, right, lower = (int(edge) for edge in _middle(mask.size, width / height))
    bright = _values(_luminance(mask).crop((left, upper, right, lower))) >= 0.5
    redrawn = F.adaptive_max_pool2d(bright.float(), (height, width))[0] > 0
    if not redrawn.any():
        raise ValueError("mask has no white pixel in its center, which is used: make the region to regenerate white")
    return redrawn


def resize_batch(images: Tensor, size: int) -> Tensor:
    """Resize the shorter side to `size` (bicubic, antialiased) and center-crop, as CLIP's preprocessing does.

    For differentiable tensors: PyTorch has no Lanczos filter.

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
    # Bicubic overshoots
    resize = F.interpolate(images.float(), new, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (new[0] - size) // 2, (new[1] - size) // 2
    return resize[..., top : top + size, left : left + size]


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Images [B, C, H, W] blurred by a Gaussian of 3x3 pixels; edges go on as they are."""
    weight = torch.tensor([math.exp(-0.5 / sigma**2), 1.0, math.exp(-0.5 / sigma**2)], device=images.device)  # [3]
    kernel = (weight[:, None] * weight).to(images.dtype) / weight.sum() ** 2  # [3, 3]
    channels = images.shape[1]
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernel.expand(channels, 1, 3, 3), groups=channels)


def _middle(extent: tuple[int, int], shape: float) -> Box:
    """The largest central box in an image of size `extent` whose width is `shape` times its height."""
    width, height = extent
    across, down = min(width, height * shape), min(height, width / shape)
    left, upper = (width - across) / 2, (height - down) / 2
    return left, upper, left + across, upper + down


def _luminance(mask: Image.Image) -> Image.Image:
    """A mask as 8-bit gray; transparent pixels become black, whatever color they hide."""
    if not mask.has_transparency_data:
        return mask.convert("L")
    layer = mask.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer).convert("L")


def _values(image: Image.Image) -> Tensor:
    """Convert an 8-bit image to float [channels, H, W] in [0, 1]."""
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)  # torch warns of memory that it cannot write
    return flat.view(image.height, image.width, -1).permute(2, 0, 1).float() / 255
