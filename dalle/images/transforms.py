"""Pictures and masks of users as tensors of the painting's size."""

from __future__ import annotations

import torch
from PIL import Image, ImageOps
from torch import Tensor


def to_tensor(picture: Image.Image, width: int, height: int) -> Tensor:
    """A picture as float [1, 3, height, width] in [0, 1], cut to that shape; what is transparent becomes white."""
    layers = picture.convert("RGBA")
    opaque = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    return _values(ImageOps.fit(opaque, (width, height), Image.Resampling.LANCZOS))


def to_mask(mask: Image.Image, picture: Image.Image, width: int, height: int) -> Tensor:
    """A mask as float [1, 1, height, width], 1 where it is white: cut and resized like its picture.

    Raises:
        ValueError: it is not of the picture's size, or nothing of it is white.
    """
    if mask.size != picture.size:
        raise ValueError(
            f"mask is {mask.width}x{mask.height} and init {picture.width}x{picture.height}: "
            "give a mask of the picture's size"
        )
    white = _values(ImageOps.fit(mask.convert("L"), (width, height), Image.Resampling.BOX))
    if not white.any():
        raise ValueError("mask has no white pixel in its middle: paint white what is to be painted")
    return white


def to_picture(image: Tensor) -> Image.Image:
    """Float [1, 3, H, W] in [0, 1] as an RGB picture."""
    return Image.fromarray((image[0].detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def _values(picture: Image.Image) -> Tensor:
    """[1, channels, H, W] in [0, 1]."""
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.view(picture.height, picture.width, -1).permute(2, 0, 1)[None].float() / 255
