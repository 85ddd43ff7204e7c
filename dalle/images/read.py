"""Image files of users, read safely: by a list of formats and a limit of pixels, and never by a guess."""

from __future__ import annotations

import io
import math
import random
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dalle.images.transforms import REDUCING_GAP, Box, resized, to_rgb

Crop = Literal["centre", "random", "pad"]

MAX_PIXELS = 2**26  # 8192 x 8192: a larger file is refused before any of it is decoded
EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".jfif",
    ".jpe",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".jp2",
    ".avif",
    ".ppm",
    ".pgm",
)
# The formats of these endings, and nothing else that Pillow reads: Ghostscript would run an EPS as a program.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM")
# All that Pillow's readers raise on broken files.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
)


class UnreadableImage(ValueError):
    """Why an image file cannot be read, without its name."""


def read_image(path: Path) -> Image.Image:
    """A user's image file: upright, 8 bits a channel, in the mode and size that it has; of an animation the first.

    Raises:
        ValueError: there is no such file, or it cannot be read.
    """
    try:
        return decode_image(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such image") from None
    except UnreadableImage as error:
        raise ValueError(f"{path}: {error}") from error
    except OSError as error:
        raise ValueError(f"{path}: the image cannot be read ({error})") from error


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The bytes of a user's image file, as `read_image` gives it.

    Raises:
        UnreadableImage: they are no image, only a part of one, or it has more pixels than `max_pixels`.
    """
    with _opened(data, max_pixels) as image:
        return _loaded(image)


def square_image(data: bytes, size: int, crop: Crop = "centre", share: float = 1.0, seed: int = 0) -> np.ndarray:
    """An image file as a square image.

    Its bytes tell the kind, one of those of EXTENSIONS. The EXIF orientation is obeyed, what is transparent becomes
    white, grey and CMYK become RGB, 16 bits become 8, and of an animation the first frame is taken. Colour profiles are
    not looked at.

    Args:
        data: the file's bytes.
        size: side of the result in pixels; smaller images are enlarged.
        crop: "centre" takes the largest square in the middle; "random" takes a square of at least `share` of its area
            anywhere in the image; "pad" takes all of the image, with white on both sides of the shorter one.
        share: from 0 (exclusive) to 1, for "random".
        seed: all that is random comes from it.

    Returns:
        uint8 [size, size, 3].

    Raises:
        UnreadableImage: the bytes are no image, only a part of one, more than 8192 x 8192 pixels, of a kind whose
            brightness is not defined (32 bits a channel), or a line so thin that nothing of it is left when padded.
    """
    with _opened(data) as image:
        x, y, part = _square(crop, share, seed)
        side = max(image.size) if crop == "pad" else part * min(image.size)
        reduction = max(1.0, side / (size * REDUCING_GAP))
        image.draft(None, (math.ceil(image.width / reduction), math.ceil(image.height / reduction)))
        rgb = to_rgb(_loaded(image))
    if crop == "pad":
        if round(size * min(rgb.size) / max(rgb.size)) < 1:
            raise UnreadableImage(f"{rgb.width} x {rgb.height} pixels leave nothing to see when padded to a square")
        return np.asarray(ImageOps.pad(rgb, (size, size), Image.Resampling.LANCZOS, "white"))
    return np.asarray(resized(rgb, size, size, box=_box(rgb.size, x, y, part)))


def dimensions(data: bytes) -> tuple[int, int]:
    """Width and height that the header of an image file tells, before any rotation."""
    with _opened(data) as image:
        return image.size


@contextmanager
def _opened(data: bytes, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """An image file whose header is read; whatever its reader raises in the block becomes UnreadableImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of large images: those are refused below
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise UnreadableImage(f"{image.width} x {image.height} pixels are more than {max_pixels:,}")
                yield image
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(_what_is(data)) from error
    except (Image.DecompressionBombError, *_BROKEN) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UnreadableImage(f"the image cannot be decoded ({reason})") from error


def _loaded(image: Image.Image) -> Image.Image:
    """The pixels of an opened file, upright, with 8 bits a channel."""
    image.load()
    of_16_bits = image.format in ("PNG", "PPM")  # then 16 are what Pillow holds in 32
    try:
        upright = ImageOps.exif_transpose(image)
    except _BROKEN:  # of the EXIF block alone: the pixels are there
        upright = image.copy()
    if upright.mode == "F" or (upright.mode == "I" and not of_16_bits):
        raise UnreadableImage("32 bits a channel, and nothing says which value is white: save it with 8 or 16")
    return _from_16_bits(upright) if upright.mode.startswith("I") else upright


def _square(crop: Crop, share: float, seed: int) -> tuple[float, float, float]:
    """Where a crop lies, in shares of the room there is across and down, and its side in shares of the shorter side."""
    if crop != "random":
        return 0.5, 0.5, 1.0
    rng = random.Random(seed)
    return rng.random(), rng.random(), math.sqrt(rng.uniform(share, 1))


def _box(extent: tuple[int, int], x: float, y: float, part: float) -> Box:
    """The same in pixels of the decoded image."""
    width, height = extent
    side = part * min(width, height)
    left, upper = x * (width - side), y * (height - side)
    return left, upper, min(left + side, width), min(upper + side, height)


def _from_16_bits(image: Image.Image) -> Image.Image:
    """16 bits of grey to 8: Pillow's own conversion would cut off all above 255."""
    values = np.asarray(image).astype(np.uint32)
    values = np.where(values == image.info.get("transparency", -1), 65535, values)  # a clear level of grey is white
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _what_is(data: bytes) -> str:
    """Why no reader took the file."""
    if not data:
        return "the file is empty"
    if not re.search(rb"[\x00-\x08\x0e-\x1f]", data[:512]):
        lines = data[:200].decode("utf-8", "replace").split("\n")
        return f"the file is text, not an image: {lines[0][:40].strip()!r}"
    return "the file is not an image of a known kind"
