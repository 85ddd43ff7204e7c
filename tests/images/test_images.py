"""Images are read whatever their kind, PNGs carry their metadata, every row of a grid has a readable label."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import EpsImagePlugin, Image, ImageChops, ImageDraw, ImageFont

from dalle.images import fonts
from dalle.images.fonts import font_for, words_for
from dalle.images.grid import labeled_columns, labeled_grid, split_to_pages
from dalle.images.png import write_png
from dalle.images.read import dimensions, read_image, square_image


def test_png_metadata_of_any_script_reads_back(tmp_path: Path) -> None:
    image = Image.effect_noise((8, 8), 50).convert("RGB")
    texts = {"prompt": "गुलाबी हात्ती 🐘\nsecond line", "seed": "7", "empty": ""}
    write_png(image, tmp_path / "a.png", texts)
    with Image.open(tmp_path / "a.png") as file:
        assert file.text == texts  # type: ignore[attr-defined]
        assert ImageChops.difference(file, image).getbbox() is None
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_png_is_written_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Image.Image, path: Path, *args: object, **options: object) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    write_png(Image.new("RGB", (4, 4), "red"), tmp_path / "a.png", {})
    before = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write_png(Image.new("RGB", (4, 4), "blue"), tmp_path / "a.png", {})
    assert (tmp_path / "a.png").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_images_are_read_upright_and_in_8_bits(tmp_path: Path) -> None:
    wide = Image.new("RGB", (6, 2), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    wide.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (2, 6)
    deep = Image.new("I;16", (3, 1))
    for x, value in enumerate((0, 257 * 100, 65535)):
        deep.putpixel((x, 0), value)
    deep.save(tmp_path / "deep.png")
    assert [read_image(tmp_path / "deep.png").getpixel((x, 0)) for x in range(3)] == [0, 100, 255]


def test_postscript_named_as_an_image_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript named .png: Pillow, asked for any format, would hand it to Ghostscript."""
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", "eps")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("run"))
    with pytest.raises(ValueError, match=r"x\.png: the file is text, not an image: '%!PS-Adobe"):
        read_image(tmp_path / "x.png")


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (9000, 8000)).save(tmp_path / "big.png")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"big\.png: 9000 x 8000 pixels are more than 67,108,864: scale it down$"):
        read_image(tmp_path / "big.png")


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"MM\0*\0\0", b"II*\0\xff\xff\xff\xff", bytes(40)])
def test_broken_metadata_is_ignored(tmp_path: Path, exif: bytes) -> None:
    image = Image.effect_noise((16, 16), 60).convert("RGB")
    image.save(tmp_path / "a.png", exif=exif or None)
    assert ImageChops.difference(read_image(tmp_path / "a.png"), image).getbbox() is None
    assert square_image((tmp_path / "a.png").read_bytes(), 16).shape == (16, 16, 3)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


LONG = zlib.compress(b"a" * 3_000_000)  # Pillow refuses texts and profiles of more than a megabyte
METADATA = {
    "long text": chunk(b"zTXt", b"workflow\0\0" + LONG),
    "long text in Unicode": chunk(b"iTXt", b"workflow\0\1\0\0\0" + LONG),
    "long color profile": chunk(b"iCCP", b"profile\0\0" + LONG),
    "unknown compression": chunk(b"zTXt", b"workflow\0\7x"),
    "short": b"".join(chunk(kind, b"") for kind in (b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"acTL", b"fcTL")),
    "wrong checksum": chunk(b"tEXt", b"a\0b")[:-4] + bytes(4),
}


@pytest.mark.parametrize("name", METADATA)
def test_pngs_with_broken_or_large_metadata_are_read(name: str, tmp_path: Path) -> None:
    """Of a whole PNG the pixels are read, whatever is in its other chunks; of a cut one the reason is told."""
    image = Image.effect_noise((16, 16), 60).convert("RGB")
    image.save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    content = content[:33] + METADATA[name] + content[33:]  # behind the header
    (tmp_path / "a.png").write_bytes(content)
    assert ImageChops.difference(read_image(tmp_path / "a.png"), image).getbbox() is None
    assert square_image(content, 16).shape == (16, 16, 3)
    assert dimensions(content) == (16, 16)
    (tmp_path / "a.png").write_bytes(content[:-200])
    with pytest.raises(ValueError, match=r"a\.png: the (image cannot be decoded|file is not an image)"):
        read_image(tmp_path / "a.png")


def test_files_that_are_no_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.png: no such image"):
        read_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"text\.png: the file is text, not an image"):
        read_image(tmp_path / "text.png")
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut\.png: the image cannot be decoded"):
        read_image(tmp_path / "cut.png")
    with pytest.raises(ValueError, match="is a folder: give an image file"):
        read_image(tmp_path)


def test_grid_shows_every_image_under_its_label() -> None:
    colors = [["red", "lime"], ["blue"]]
    rows = [("a prompt", [Image.new("RGB", (64, 64), c) for c in row], ["seed 1"] * len(row)) for row in colors]
    grid = labeled_grid(rows)
    counts = {color: count for count, color in grid.getcolors(1 << 24)}
    for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255)):
        assert counts[color] == 128 * 128  # enlarged twice
    first = next(y for y in range(grid.height) if grid.getpixel((9, y)) == (255, 0, 0))
    label = grid.crop((0, 0, grid.width, first)).convert("L")
    assert label.getextrema() == (0, 255)


def test_rows_of_many_images_are_wrapped() -> None:
    colors = ["red"] * 8 + ["blue"] * 3
    row = ("a prompt", [Image.new("RGB", (64, 64), c) for c in colors], [""] * 11)
    grid = labeled_grid([row])
    assert grid.width == 8 * (128 + 8) + 8
    counts = {color: count for count, color in grid.getcolors(1 << 24)}
    assert counts[(255, 0, 0)] == 8 * 128 * 128 and counts[(0, 0, 255)] == 3 * 128 * 128
    blue = [x for x in range(grid.width) if any(grid.getpixel((x, y)) == (0, 0, 255) for y in range(0, grid.height, 9))]
    assert (blue[0], blue[-1]) == (8, 3 * (128 + 8) - 1), "the second line begins at the left"


def test_columns_of_a_grid_are_the_grids_of_their_rows() -> None:
    """Three rows in two columns: the first two at the left, the third beside the first."""
    rows = [(f"prompt {c}", [Image.new("RGB", (64, 64), c)], ["a"]) for c in ("red", "lime", "blue")]
    left, right = labeled_grid(rows[:2]), labeled_grid(rows[2:])
    sheet = labeled_columns(rows)
    assert sheet.size == (left.width + right.width, left.height)
    assert ImageChops.difference(sheet.crop((0, 0, *left.size)), left).getbbox() is None
    assert ImageChops.difference(sheet.crop((left.width, 0, sheet.width, right.height)), right).getbbox() is None
    assert sheet.crop((left.width, right.height, *sheet.size)).getcolors() == [
        (right.width * (left.height - right.height), (255, 255, 255))
    ]


def test_grids_have_pages_of_bounded_height() -> None:
    """Of 30 prompts, and of one with 300 candidates, every image is on one page, in order, under its prompt."""
    image = Image.new("RGB", (64, 64))
    rows = [(f"prompt {i}", [image] * 4, [f"{i}/{j}" for j in range(4)]) for i in range(30)]
    rows += [("many", [image] * 300, [str(j) for j in range(300)])]
    pages = split_to_pages(rows, 5)
    captions = [caption for _, page in pages for _, _, own in page for caption in own]
    assert captions == [caption for row in rows for caption in row[2]]
    assert [label for _, page in pages for label, _, _ in page] == [row[0] for row in rows[:30]] + ["many", "many"]
    assert [first for first, _ in pages] == [5, 5 + len(pages[0][1]), 35, 35]
    assert all(labeled_grid(page, first).height <= 4000 for first, page in pages)
    assert len(pages) == 4


def test_long_labels_are_wrapped() -> None:
    image = Image.new("RGB", (64, 64), "red")
    short, long = (labeled_grid([(text, [image], [""])]) for text in ("a dog", "a dog and " * 20))
    assert long.width == short.width and long.height > short.height + 50


def test_label_without_a_font_becomes_the_row_number(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = ImageFont.truetype

    def built_in_only(font: object, *args: object, **options: object) -> ImageFont.FreeTypeFont:
        if isinstance(font, str):
            raise OSError("cannot open resource")
        return original(font, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(fonts.shutil, "which", lambda name: None)
    monkeypatch.setattr(ImageFont, "truetype", built_in_only)
    image = Image.new("RGB", (64, 64), "red")
    with caplog.at_level(logging.WARNING):
        drawn = labeled_grid([("a dog", [image], [""]), ("हात्ती", [image], [""])])
        numbered = labeled_grid([("a dog", [image], [""]), ("prompt 2", [image], [""])])
    assert ImageChops.difference(drawn, numbered).getbbox() is None
    assert [r.getMessage() for r in caplog.records] == [
        "no font found for 'हात्ती': its row of the grid is labeled by number; install a font with Devanagari, for "
        "example fonts-lohit-deva or fonts-noto-core"
    ]
    caplog.clear()
    labeled_grid([(text, [image], [""]) for text in ("हात्ती", "a dog", "घर", "हात्ती", "गुलाबी फूल")])
    assert [r.getMessage()[:78] for r in caplog.records] == [
        "no font found for 'हात्ती' and 2 more: their rows of the grid are labeled by n"
    ]
    caplog.clear()
    assert font_for("a red heart, 3d style!", 12) is not None  # Pillow's own
    labeled_grid([("", [image], [""])])
    caplog.clear()
    labeled_grid([("a\x01dog\x7f", [image], [""])])
    assert not caplog.records  # a control character is no glyph that a font could have
    labeled_grid([("\U0001f525", [image], [""])])
    assert caplog.records[0].getMessage().endswith("a font with outlines of emoji, for example fonts-symbola")


def test_devanagari_is_shaped_if_a_font_is_installed() -> None:
    font = font_for("पृष्ठभूमि", 40)
    if font is None:
        pytest.skip("no font with Devanagari, or no layout engine, on this machine")
    assert fonts._covers(font, "पृष्ठभूमि")
    # Shaped, a conjunct is one glyph, narrower than its letters side by side
    assert font.getlength("ष्ठ") < font.getlength("ष") + font.getlength("ठ")


def test_a_label_in_two_scripts_has_two_fonts(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caption in Nepali names its style in English, and fonts of Devanagari may have no Latin letters."""
    if font_for("हात्ती", 15) is None:
        pytest.skip("no font with Devanagari, or no layout engine, on this machine")
    whole = fonts.font_for

    def of_one_script(text: str, size: int, known: Sequence[fonts.Font] = ()) -> fonts.Font | None:
        latin = any(c.isascii() and c.isalpha() for c in text)
        return None if latin and not text.isascii() else whole(text, size, known)

    monkeypatch.setattr(fonts, "font_for", of_one_script)
    words = words_for("गुलाबी हात्ती, 3d style", 15)
    assert words is not None and [word for word, _ in words] == ["गुलाबी", "हात्ती,", "3d", "style"]
    own = [font.path for _, font in words]
    assert own[0] == own[1] and own[2] == own[3] and own[0] != own[2]
    image = Image.new("RGB", (64, 64), "red")
    mixed = labeled_grid([("गुलाबी हात्ती, 3d style", [image], [""])])
    assert not caplog.records
    for half in ("गुलाबी हात्ती,", "3d style"):  # both are there, the first where it is alone
        alone = labeled_grid([(half, [image], [""])])
        assert ImageChops.difference(mixed, alone).getbbox() is not None
    first = ImageDraw.Draw(mixed).textlength("गुलाबी हात्ती,", words[0][1])
    box = (0, 0, int(first), 30)
    alone = labeled_grid([("गुलाबी हात्ती,", [image], [""])])
    assert ImageChops.difference(mixed.crop(box), alone.crop(box)).getbbox() is None


def test_missing_glyphs_are_detected() -> None:
    font = ImageFont.load_default(15)
    assert isinstance(font, ImageFont.FreeTypeFont)
    assert fonts._covers(font, "abc XYZ, 0-9!")
    assert not fonts._covers(font, "a ह")
