"""Reading images of every kind, each against the same conversion worked out by hand."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dalle.data.base import BadRecord, read_image
from dalle.images import read

RNG = np.random.default_rng(0)
RGBA = RNG.integers(0, 256, (8, 8, 4), dtype=np.uint8)
GRAY16 = RNG.integers(0, 65536, (8, 8), dtype=np.uint16)


def saved(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def over_white(rgba: np.ndarray) -> np.ndarray:
    color, alpha = rgba[..., :3].astype(float), rgba[..., 3:] / 255
    return color * alpha + 255 * (1 - alpha)


def difference(got: np.ndarray, expected: np.ndarray) -> float:
    assert got.dtype == np.uint8 and got.shape == expected.shape
    return float(np.abs(got - expected.astype(float)).max())


def test_rgb_is_unchanged() -> None:
    assert difference(read_image(saved(Image.fromarray(RGBA[..., :3])), "x", 8), RGBA[..., :3]) == 0


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
def test_transparent_parts_are_white(kind: str) -> None:
    rgba = RGBA.copy()
    rgba[:2, :, 3] = 0
    got = read_image(saved(Image.fromarray(rgba), kind, **({"lossless": True} if kind == "webp" else {})), "x", 8)
    assert difference(got, over_white(rgba)) <= 1
    assert (got[:2] == 255).all()


def test_gray_with_alpha_is_composed_over_white() -> None:
    layer = RGBA[..., 2:]
    expected = over_white(np.concatenate((layer[..., :1].repeat(3, -1), layer[..., 1:]), -1))
    assert difference(read_image(saved(Image.fromarray(layer, "LA")), "x", 8), expected) <= 1


def test_gray_becomes_three_channels() -> None:
    expected = RGBA[..., :1].repeat(3, -1)
    assert difference(read_image(saved(Image.fromarray(RGBA[..., 0])), "x", 8), expected) == 0


def test_one_bit_images_become_black_and_white() -> None:
    bits = RGBA[..., 0] > 127
    expected = (bits * 255)[..., None].repeat(3, -1)
    assert difference(read_image(saved(Image.fromarray(bits)), "x", 8), expected) == 0


@pytest.mark.parametrize("transparent", [None, 3, bytes([255, 128, 0, 7])])
def test_palette_images_with_transparency_are_composed_over_white(transparent: int | bytes | None) -> None:
    indices = RGBA[..., 0] % 4
    colors = np.array([[250, 0, 10], [0, 200, 30], [40, 50, 60], [90, 80, 170]])
    image = Image.fromarray(indices, "P")
    image.putpalette(colors.astype(np.uint8).tobytes())
    alpha = np.full(4, 255)
    options = {}
    if transparent is not None:
        options["transparency"] = transparent
        if isinstance(transparent, bytes):
            alpha[:] = list(transparent)
        else:
            alpha[transparent] = 0
    expected = over_white(np.concatenate((colors, alpha[:, None]), -1)[indices])
    assert difference(read_image(saved(image, **options), "x", 8), expected) <= 1


def test_transparent_color_becomes_white() -> None:
    rgb = (RGBA[..., :3] // 128) * 200
    got = read_image(saved(Image.fromarray(rgb), transparency=(200, 0, 200)), "x", 8)
    clear = (rgb == (200, 0, 200)).all(-1)
    assert clear.any() and difference(got, np.where(clear[..., None], 255, rgb)) == 0


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bit_gray_is_scaled(kind: str) -> None:
    expected = (GRAY16 / 65535 * 255)[..., None].repeat(3, -1)
    assert difference(read_image(saved(Image.fromarray(GRAY16), kind), "x", 8), expected) <= 0.5


def test_sixteen_bit_values_in_32_bits_are_scaled() -> None:
    expected = (GRAY16 / 65535 * 255)[..., None].repeat(3, -1)
    assert difference(read_image(b"P5 8 8 65535\n" + GRAY16.astype(">u2").tobytes(), "x", 8), expected) <= 0.5


def test_sixteen_bit_transparent_level_becomes_white() -> None:
    clear = int(GRAY16[3, 3])
    expected = np.where(clear == GRAY16, 255, GRAY16 / 65535 * 255)[..., None].repeat(3, -1)
    got = read_image(saved(Image.fromarray(GRAY16), transparency=clear), "x", 8)
    assert difference(got, expected) <= 0.5


@pytest.mark.parametrize("values", [GRAY16.astype(np.int32), GRAY16.astype(np.float32)])
def test_images_of_32_bits_per_channel_are_refused(values: np.ndarray) -> None:
    with pytest.raises(BadRecord, match="32 bits per channel"):
        read_image(saved(Image.fromarray(values), "tiff"), "x", 8)


def test_cmyk_becomes_rgb() -> None:
    cmyk = RNG.integers(0, 256, (8, 8, 4), dtype=np.uint8)
    ink = cmyk / 255
    expected = 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])
    assert difference(read_image(saved(Image.fromarray(cmyk, "CMYK"), "tiff"), "x", 8), expected) <= 2


TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    wide = RGBA[:4, :, :3]  # the middle 4 x 4 remain
    got = read_image(saved(Image.fromarray(wide), exif=exif.tobytes()), "x", 4)
    assert (
        difference(got, TURNS[orientation](wide)[tuple(slice(s // 2 - 2, s // 2 + 2) for s in _turned(orientation))])
        == 0
    )


def _turned(orientation: int) -> tuple[int, int]:
    return (4, 8) if orientation < 5 else (8, 4)


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("#204060", "#ff0000")]
    got = read_image(saved(frames[0], "gif", save_all=True, append_images=frames[1:]), "x", 8)
    assert (got == (0x20, 0x40, 0x60)).all()


def test_multi_picture_jpegs_give_their_first_image() -> None:
    """Cameras and phones write these under the name .jpg; Pillow calls them MPO."""
    images = [Image.new("RGB", (8, 8), color) for color in ("#808080", "#ff0000")]
    got = read_image(saved(images[0], "mpo", save_all=True, append_images=images[1:]), "x", 8)
    assert difference(got, np.full((8, 8, 3), 0x80)) <= 1


def photo(width: int, height: int) -> Image.Image:
    """Smooth, as photographs are, so that ways of scaling differ little."""
    y, x = np.mgrid[:height, :width] / 60
    channels = [127 + 120 * np.sin(x + k) * np.cos(y * (k + 1) / 2) for k in range(3)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (40, 60)])
def test_reduced_jpeg_decoding_is_near_full_decoding(size: tuple[int, int]) -> None:
    """Decoding at a reduced size gives nearly what decoding whole, cropping and scaling gives."""
    image = photo(*size)
    width, height = size
    side = min(size)
    left, upper = (width - side) // 2, (height - side) // 2
    slow = image.crop((left, upper, left + side, upper + side)).resize((32, 32), Image.Resampling.LANCZOS)
    got = read_image(saved(image, "jpeg", quality=98), "x", 32)
    assert difference(got, np.asarray(slow)) <= 6


def test_pad_fills_with_white() -> None:
    got = read_image(saved(photo(64, 32)), "x", 32, crop="pad")
    assert (got[:8] == 255).all() and (got[24:] == 255).all()
    slow = photo(64, 32).resize((32, 16), Image.Resampling.LANCZOS)
    assert difference(got[8:24], np.asarray(slow)) <= 1


def test_pad_of_a_one_pixel_line_is_refused() -> None:
    line = Image.new("RGB", (1000, 8))
    assert read_image(saved(line), "x", 64, "pad").min() == 0
    with pytest.raises(BadRecord, match="1040 x 8 pixels leave nothing to see"):
        read_image(saved(line.resize((1040, 8))), "x", 64, "pad")


def test_random_crop_lies_anywhere_and_shows_enough() -> None:
    """Of an image that codes its columns and rows in red and green, the corners tell where a crop was."""
    y, x = np.mgrid[:100, :200]
    data = saved(Image.fromarray(np.stack((x, y, 0 * x), -1).astype(np.uint8)))
    seen = []
    for seed in range(60):
        got = read_image(data, "x", 50, crop="random", share=0.5, seed=seed).astype(float)
        assert difference(read_image(data, "x", 50, crop="random", share=0.5, seed=seed), got) == 0
        across, down = got[25, -1, 0] - got[25, 0, 0], got[-1, 25, 1] - got[0, 25, 1]
        assert abs(across - down) <= 3  # a square
        assert 100 * np.sqrt(0.5) * 0.95 <= across <= 100
        seen.append((got[25, 0, 0], got[0, 25, 1], across))
    left, upper, side = np.array(seen).T
    assert left.max() > 90 and left.min() < 15 and upper.max() > 15 and np.ptp(side) > 15


def test_huge_images_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(Image.new("1", (9000, 8000)))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(BadRecord, match="9000 x 8000 pixels"):
        read_image(data, "big.png", 8)


@pytest.mark.filterwarnings("error")
def test_bombs_that_pillow_itself_refuses_and_warns_of(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(Image.new("1", (300, 300)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    assert read_image(data, "x", 8).shape == (8, 8, 3)  # Pillow only warns, and ours is the limit
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(BadRecord, match="x: it has more than 67,108,864 pixels"):
        read_image(data, "x", 8)


WHOLE = {kind: saved(photo(64, 64), kind) for kind in ("png", "jpeg", "webp", "gif", "bmp", "tiff")}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95])
def test_truncated_files_are_bad_records(kind: str, share: float) -> None:
    with pytest.raises(BadRecord) as caught:
        read_image(WHOLE[kind][: int(len(WHOLE[kind]) * share)], "cut", 8)
    assert str(caught.value).startswith("cut: ") and "\n" not in str(caught.value)


def test_broken_avif_is_a_bad_record() -> None:
    """Its reader raises RuntimeError, as no other does."""
    data = saved(photo(64, 64), "avif").replace(b"pitm", b"xitm")  # what tells which of its items is the image
    with pytest.raises(BadRecord, match=r"x: the image cannot be decoded \(Failed to decode"):
        read_image(data, "x", 8)


@pytest.mark.parametrize("kind", WHOLE)
def test_flipped_bytes_give_an_image_or_a_bad_record(kind: str) -> None:
    """Whatever is broken, no other exception comes out."""
    rng = np.random.default_rng(1)
    for _ in range(40):
        data = bytearray(WHOLE[kind])
        for at in rng.integers(0, min(len(data), 400), 6):
            data[at] = rng.integers(256)
        with contextlib.suppress(BadRecord):
            assert read_image(bytes(data), "x", 8).shape == (8, 8, 3)


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "the file is empty"),
        (b"<html>404</html>\nmore", "the file is text, not an image: '<html>404</html>'"),
        ("रातो मुटु".encode(), "the file is text, not an image: 'रातो मुटु'"),
        (b"\x00\x01\x02\x03", "the file is not an image in a supported format"),
        (
            b"BLP2\7\0\0\0\1\1\1\1\10\0\0\0\10\0\0\0" + bytes(2000),
            "the file is not an image in a supported format",
        ),
        (saved(Image.new("RGB", (8, 8)), "eps"), "the file is text, not an image: '%!PS-Adobe-3.0 EPSF-3.0'"),
    ],
)
def test_files_that_are_no_images_are_bad_records(data: bytes, reason: str) -> None:
    with pytest.raises(BadRecord) as caught:
        read_image(data, "a.jpg", 8)
    assert str(caught.value) == f"a.jpg: {reason}"


def test_extensions_are_what_pillow_reads() -> None:
    Image.init()
    kinds = {read.Image.EXTENSION[extension] for extension in read.EXTENSIONS}
    assert kinds == set(read._FORMATS) <= set(Image.OPEN)
