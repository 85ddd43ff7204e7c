"""Reads users' image files safely: an allow-list of formats and a limit on pixels."""

from __future__ import annotations

import io
import math
import random
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dalle.files import lfs_pointer, missing_path
from dalle.images.png import without_metadata
from dalle.images.transforms import REDUCING_GAP, Box, resize, to_rgb

Crop = Literal["center", "random", "pad"]
_T = TypeVar("_T")

MAX_PIXELS = 2**26  # 8192 x 8192; checked in the header, before anything is decoded
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
# The formats of these extensions only, not all that Pillow reads: it would hand an EPS to Ghostscript, which runs it.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM")
# What such a file begins with, whatever its name says: phones write HEIC that is called .jpg
_OTHER_FORMATS = {
    "HEIC": rb".{4}ftyp(?:hei[cmsx]|hev[cmx]|mif1|msf1)",
    "JPEG XL": rb"\xff\x0a|\x00\x00\x00\x0cJXL ",
    "PDF": rb"%PDF-",
    "ZIP": rb"PK\x03\x04",
    "gzip": rb"\x1f\x8b",
    "PSD": rb"8BPS",
}
# The exceptions that Pillow's readers raise on broken files.
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
    """An image file cannot be read; the message gives the reason without the file's name."""


def read_image(path: Path) -> Image.Image:
    """Read a user's image file upright and with 8 bits per channel, in its own mode and size.

    Of an animation the first frame is read.

    Raises:
        ValueError: there is no such file, or it cannot be read.
    """
    try:
        return decode_image(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(missing_path(path, f"{path}: no such image")) from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder: give an image file") from None
    except UnreadableImage as error:
        raise ValueError(f"{path}: {error}") from error
    except OSError as error:
        raise ValueError(f"{path}: the image cannot be read ({error.strerror or error})") from error


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The bytes of a user's image file, as `read_image` gives it.

    Raises:
        UnreadableImage: they are no image, only a part of one, or it has more pixels than `max_pixels`.
    """
    return _despite_metadata(data, partial(_decode, max_pixels=max_pixels))


def square_image(data: bytes, size: int, crop: Crop = "center", share: float = 1.0, seed: int = 0) -> np.ndarray:
    """Decode an image file to a square RGB image.

    The format is detected from the bytes and must be one of those of EXTENSIONS. The EXIF orientation is applied,
    transparency becomes white, gray and CMYK become RGB, 16 bits become 8, and of an animation the first frame is
    read. Color profiles are ignored.

    Args:
        data: the file's bytes.
        size: side of the result in pixels; smaller images are enlarged.
        crop: "center" takes the largest central square; "random" a random square of at least `share` of its area;
            "pad" the whole image, padded with white to a square.
        share: smallest area of a random crop, in (0, 1].
        seed: random seed of the crop.

    Returns:
        uint8 [size, size, 3].

    Raises:
        UnreadableImage: the bytes are no image or a truncated one; it has more than 8192 x 8192 pixels, or 32 bits per
            channel, whose range is undefined; or it is so elongated that nothing would be left when padded.
    """
    return _despite_metadata(data, partial(_square_pixels, size=size, crop=crop, share=share, seed=seed))


def dimensions(data: bytes) -> tuple[int, int]:
    """Width and height from the header of an image file, before EXIF rotation."""
    return _despite_metadata(data, _dimensions)


def _despite_metadata(data: bytes, read: Callable[[bytes], _T]) -> _T:
    """Read an image; a PNG that Pillow refuses is tried again without its texts and profiles, which may be broken."""
    try:
        return read(data)
    except UnreadableImage:
        pixels = without_metadata(data)
        if pixels is None or len(pixels) == len(data):
            raise
        try:
            return read(pixels)
        except UnreadableImage:
            pass  # the pixels are broken as well: the reason is that of the whole file
        raise


def _decode(data: bytes, max_pixels: int) -> Image.Image:
    with _open(data, max_pixels) as image:
        return _load(image)


def _dimensions(data: bytes) -> tuple[int, int]:
    with _open(data) as image:
        return image.size


def _square_pixels(data: bytes, size: int, crop: Crop, share: float, seed: int) -> np.ndarray:
    with _open(data) as image:
        x, y, part = _square(crop, share, seed)
        side = max(image.size) if crop == "pad" else part * min(image.size)  # in pixels of the file
        reduction = max(1.0, side / (size * REDUCING_GAP))
        # JPEG can decode at 1/2, 1/4 or 1/8 of its size, which saves most of the time for large photos.
        image.draft(None, (math.ceil(image.width / reduction), math.ceil(image.height / reduction)))
        rgb = to_rgb(_load(image))
    if crop == "pad":
        if round(size * min(rgb.size) / max(rgb.size)) < 1:
            raise UnreadableImage(f"{rgb.width} x {rgb.height} pixels leave nothing to see when padded to a square")
        return np.asarray(ImageOps.pad(rgb, (size, size), Image.Resampling.LANCZOS, "white"))
    return np.asarray(resize(rgb, size, size, box=_box(rgb.size, x, y, part)))


@contextmanager
def _open(data: bytes, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open an image file's header; errors inside the block, such as while decoding, become UnreadableImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, and about large images, which are refused below
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise UnreadableImage(
                        f"{image.width} x {image.height} pixels are more than {max_pixels:,}: scale it down"
                    )
                yield image
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(_describe_content(data)) from error
    except Image.DecompressionBombError as error:  # Pillow's own limit, which is above ours
        raise UnreadableImage(f"it has more than {max_pixels:,} pixels: scale it down") from error
    except _BROKEN as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UnreadableImage(f"the image cannot be decoded ({reason})") from error


def _load(image: Image.Image) -> Image.Image:
    """Decode an opened file, upright and with 8 bits per channel."""
    image.load()
    of_16_bits = image.format in ("PNG", "PPM")  # Pillow opens these in a 32-bit mode
    try:
        upright = ImageOps.exif_transpose(image)
    except _BROKEN:  # only the EXIF block is broken: keep the pixels
        upright = image.copy()
    if upright.mode == "F" or (upright.mode == "I" and not of_16_bits):
        raise UnreadableImage("it has 32 bits per channel, whose range is undefined: save it with 8 or 16")
    return _from_16_bits(upright) if upright.mode.startswith("I") else upright


def _square(crop: Crop, share: float, seed: int) -> tuple[float, float, float]:
    """A crop (x, y, side): its position in the free space and its side relative to the shorter one, in [0, 1]."""
    if crop != "random":
        return 0.5, 0.5, 1.0
    rng = random.Random(seed)
    return rng.random(), rng.random(), math.sqrt(rng.uniform(share, 1))  # the share is of the area


def _box(extent: tuple[int, int], x: float, y: float, part: float) -> Box:
    """The crop of `_square` in pixels of the decoded image."""
    width, height = extent
    side = part * min(width, height)
    left, upper = x * (width - side), y * (height - side)
    return left, upper, min(left + side, width), min(upper + side, height)  # rounding may exceed the edges


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Convert 16-bit gray to 8 bits by scaling: Pillow's own conversion clips everything above 255."""
    values = np.asarray(image).astype(np.uint32)  # times 255 exceeds 16 bits
    values = np.where(
        values == image.info.get("transparency", -1), 65535, values
    )  # a transparent gray level becomes white
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _describe_content(data: bytes) -> str:
    """Why no reader recognized the file."""
    if not data:
        return "the file is empty"
    pointer = lfs_pointer(data)
    if pointer is not None:
        return f"the file is {pointer}"
    for name, start in _OTHER_FORMATS.items():
        if re.match(start, data, re.DOTALL):
            return f"it is a {name} file, which is not read: convert it"
    # Control characters that text does not have
    if not re.search(rb"[\x00-\x08\x0e-\x1f]", data[:512]):
        lines = data[:200].decode("utf-8", "replace").split("\n")
        return f"the file is text, not an image: {lines[0][:40].strip()!r}"
    return "the file is not an image in a supported format"
