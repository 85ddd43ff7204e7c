"""vary, blend, edit and inpainting with unusual and wrong inputs: what works, and one line with exit code 2."""

from __future__ import annotations

import json
import os
import struct
import zlib
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import dalle
import sample
from dalle.__main__ import main
from dalle.cli.blend import _read, parse_item
from dalle.pipelines.unclip import UnCLIP
from support.tiny_unclip import make_tiny_unclip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_unclip(tmp_path_factory.mktemp("unclip"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images, good and bad."""
    Image.new("RGB", (24, 24), "red").save(tmp_path / "a.png")
    Image.new("RGB", (20, 30), "blue").save(tmp_path / "b.png")
    Image.new("RGB", (1, 1), "green").save(tmp_path / "dot.png")
    frames = [Image.new("RGB", (24, 24), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "words.png").write_text("no image")
    (tmp_path / "huge.png").write_bytes(png_header(30_000))
    Image.new("L", (24, 24)).save(tmp_path / "black.png")
    Image.new("L", (7, 7), 255).save(tmp_path / "small.png")
    return tmp_path


def png_header(side: int) -> bytes:
    """The beginning of a PNG: enough to know its size."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def run(words: list[str], folder: Path, images: Path, out: str = "out.png") -> int:
    files = {file.name: str(file) for file in images.iterdir()}
    words = [files.get(word, word) for word in words]
    return main([*words, "--model", str(folder), "--device", "cpu", "--out", str(images / out)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vary", "a.png", "--steps", "0"], "steps is 0"),
        (["vary", "a.png", "--eta", "2"], "eta is 2.0; it must be from 0 to 1 (0 adds no noise, 1 as much as DDPM)"),
        (["vary", "a.png", "--eta", "nan"], "eta is nan"),
        (["vary", "a.png", "--n", "0"], "n is 0"),
        (["vary", "a.png", "--steps", "5000"], "steps is 5000"),
        (["blend", "a.png"], "a blend is of 2 or more"),
        (["blend", "a.png:0", "b.png:0"], "the weights sum to 0"),
        (["blend", "a.png:-1", "b.png:2"], "a weight is -1"),
        (["blend", "a.png:nan", "b.png:2"], "a weight is nan; each must be a finite number, 0 or more"),
        (["blend", "a.png:inf", "b.png:2"], "a weight is inf; each must be a finite number, 0 or more"),
        (["blend", "a.png:1e308", "b.png:1e308"], "the weights sum to more than 2e+308"),
        (["blend", "a.png", "b.png:"], "b.png is '': give a number"),
        (["blend", "a.png", "b.png:0,5"], "b.png is '0,5': give a number"),
        (["blend", "a.png", "missing.png:x"], "missing.png is 'x': give a number"),
        (["blend", "a.png", "b.png", "--frames", "1"], "frames is 1"),
        (["blend", "a.png", "a hat:"], "'a hat:' ends without a weight: give a number, such as a hat:0.5"),
        (["blend", "a.png", ": "], "': ' ends without a weight"),
        (["blend", "a.png", "tests"], "tests is a folder: give an image file"),
        (["blend", "a.png", "tests/cli/:0.5"], "tests/cli/ is a folder: give an image file"),
        (["blend", "a.png", "tests/hat"], "tests/hat: no such image; if it is a text, write spaces around the /"),
        (["blend", "a.png", "./nowhere/hat:2"], "./nowhere/hat: no such image"),
        (["blend", "a.png", "https://example.org/a.png"], "https://example.org/a.png is a URL, which is not fetched"),
        (["blend", "a.png", "HTTP://example.org/a:0.5"], "HTTP://example.org/a is a URL, which is not fetched"),
        (["vary", "https://example.org/a.png"], "https://example.org/a.png is a URL, which is not fetched: download"),
        (["edit", "http://example.org/a", "--to", "a dog"], "http://example.org/a is a URL, which is not fetched"),
        (["blend", "a.png:1", "b.png", "--frames", "9"], "--frames is for two items without weights, and weights give"),
        (["blend", "a.png", "b.png", "a hat", "--frames", "3"], "and 3 items give one image: leave one of them out"),
        (["edit", "a.png", "--to", "a dog", "--theta", "-1"], "theta is -1"),
        (["edit", "a.png", "--to", "a dog", "--theta", "nan"], "theta is nan"),
        (["edit", "a.png", "--from", "a dog", "--to", "a dog"], "both texts have the same embedding"),
        (["edit", "a.png", "--to", "a dog", "--frames", "0"], "frames is 0"),
        (["edit", "a.png", "--to", "a dog", "--theta", "0.2", "--theta", "1.5"], "theta is 1.5"),
        (
            ["edit", "a.png", "--to", "a dog", "--theta", "0.2", "--theta", "0.3", "--frames", "2"],
            "frames is 2 with 2 thetas",
        ),
        (["edit", "a.png", "--to", "a\0dog"], "has a NUL"),
        (["blend", "a.png", "a\0dog"], "has a NUL"),
        (["blend", "a.png", "b.png", "--frames", "1000000000"], "frames is 1000000000: at most 100,000"),
        (["vary", "a.png", "--n", "1000000000"], "n is 1000000000: at most 100,000"),
        (["vary", "a.png", "--seed", "-1"], "seed is -1"),
        (["blend", "a.png", "b.png", "--seed", str(2**63)], f"seed is {2**63}"),
        (["blend", "a.png", "b.png", "--seed", "-1"], "seed is -1"),
        (["edit", "a.png", "--to", "a dog", "--seed", "-1"], "seed is -1"),
        (["vary", "words.png"], "words.png"),
        (["vary", "huge.png"], "huge.png"),
        (["edit", "missing.png", "--to", "a dog"], "missing.png"),
    ],
)
def test_wrong_inputs_give_a_one_line_error(
    words: list[str], message: str, folder: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A weight belongs to the file before the colon
    words = [
        f"{images / word.partition(':')[0]}:{word.partition(':')[2]}" if ".png:" in word else word for word in words
    ]
    assert run(words, folder, images) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (images / "out.png").exists()


@pytest.mark.parametrize("mask, message", [("black.png", "no white pixel"), ("small.png", "7x7")])
def test_masks_that_do_not_fit_give_a_one_line_error(
    mask: str, message: str, folder: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--image", str(images / "a.png"), "--mask", str(images / mask), "--out", str(images / "out")]
    assert sample.main(["a hat", "--model", str(folder), "--device", "cpu", "--steps", "2", *given]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_dot_and_the_first_frame_of_an_animation_are_images(folder: Path, images: Path) -> None:
    assert run(["vary", "dot.png", "--n", "2", "--steps", "2"], folder, images) == 0
    assert run(["vary", "film.gif", "--n", "1", "--eta", "0", "--steps", "2"], folder, images, "film.png") == 0
    assert run(["vary", "a.png", "--n", "1", "--eta", "0", "--steps", "2"], folder, images, "a-again.png") == 0
    with Image.open(images / "film.png") as film, Image.open(images / "a-again.png") as first:
        assert film.tobytes() == first.tobytes()


@pytest.mark.parametrize("name", ["blend.gif", "blend.webp", "blend.png"])
def test_full_disk_leaves_no_file(
    name: str, folder: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = Image.Image.save

    def until_full(image: Image.Image, file: Path, **options: object) -> None:
        save(image, file, **options)
        Path(file).write_bytes(Path(file).read_bytes()[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", until_full)
    before = set(images.iterdir())
    assert run(["blend", "a.png", "b.png", "--frames", "3", "--steps", "2"], folder, images, name) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error and error.count("\n") == 1
    assert set(images.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "batches", "shape"),
    [
        (["vary", "a.png", "--n", "5"], 1, (32, 16, 1)),
        (["vary", "a.png", "--n", "5"], 0, None),
        (["blend", "a.png", "a hat", "--frames", "6"], 2, (16, 16, 4)),
        (["edit", "a.png", "--to", "a dog", "--frames", "3"], 1, (32, 16, 1)),
    ],
)
def test_an_interrupt_leaves_what_is_finished(
    words: list[str],
    batches: int,
    shape: tuple[int, int, int] | None,
    folder: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    upsample, calls = UnCLIP._upsample, 0

    def until_interrupted(self: UnCLIP, *given: object, **options: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > batches:
            raise KeyboardInterrupt
        return upsample(self, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(UnCLIP, "_upsample", until_interrupted)
    monkeypatch.setattr(UnCLIP, "_rows_that_fit", lambda self, guided: 2)
    name = "out.gif" if words[0] == "blend" else "out.png"
    assert run([*words, "--steps", "2"], folder, images, name) == 130
    line = capsys.readouterr().err.rpartition("\r")[2].splitlines()[-1]  # after the progress bar
    if shape is None:
        assert line.endswith("vary: stopped; nothing was finished") and not (images / name).exists()
        return
    assert line.endswith(f": stopped; {2 * batches} finished images: {images / name}")
    with Image.open(images / name) as image:
        assert (*image.size, getattr(image, "n_frames", 1)) == shape


def test_an_interrupt_leaves_the_candidates_that_are_finished(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one prompt, 32 at a time."""
    upsample, calls = UnCLIP._upsample, 0

    def until_interrupted(self: UnCLIP, *given: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise KeyboardInterrupt
        return upsample(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(UnCLIP, "_upsample", until_interrupted)
    monkeypatch.setattr(UnCLIP, "_rows_that_fit", lambda self, guided: 16)
    given = ["--model", str(folder), "--device", "cpu", "--steps", "1", "--out", str(tmp_path / "out")]
    assert sample.main(["a hat", "--n", "40", "--keep", "3", *given]) == 130
    line = capsys.readouterr().err.rpartition("\r")[2].splitlines()[-1]
    (scores,) = tmp_path.rglob("scores.json")
    assert line == f"sample.py: stopped; finished images: {scores.parent / 'grid.png'}"
    assert len(json.loads(scores.read_text())["images"]) == len(list(scores.parent.glob("01-*.png"))) == 3


def test_progress_counts_all_passes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two passes a step of inversion for each given image, then each image's steps in decoder and upsampler."""
    monkeypatch.setattr(UnCLIP, "_rows_that_fit", lambda self, guided: 2)
    pipe, image = dalle.UnCLIP.from_pretrained(folder, device="cpu"), Image.new("RGB", (16, 16))
    told: list[tuple[int, int]] = []
    for make, total in (
        (partial(pipe.vary, image, 3), 2 * 4 + 3 * (4 + 3)),
        (partial(pipe.blend, [image, "a hat"], frames=5), 2 * 4 + 5 * (4 + 3)),
        (partial(pipe.blend, [image, image, image], [1, 1, 1]), 3 * 2 * 4 + 4 + 3),
        (partial(pipe.edit, image, "a cat", "a dog"), 2 * 4 + 4 + 3),
    ):
        told.clear()
        found: list[Image.Image] = []
        images = make(steps=4, progress=lambda done, of: told.append((done, of)), finished=found.extend)
        assert told[-1] == (total, total) and {of for _, of in told} == {total}
        assert [one.tobytes() for one in found] == [one.tobytes() for one in images]


def test_edit_makes_an_image_of_each_theta(folder: Path, images: Path) -> None:
    edit = ["edit", "--to", "a dog", "--steps", "1"]
    assert run([*edit, "--theta", "0.5", "--theta", "0.25", "a.png"], folder, images) == 0
    assert run([*edit, "--theta", "0.5", "--frames", "3", "a.png"], folder, images, "frames.png") == 0
    assert [Image.open(images / name).size for name in ("out.png", "frames.png")] == [(32, 16), (48, 16)]
    with Image.open(images / "out.png") as both, Image.open(images / "frames.png") as frames:
        assert both.crop((0, 0, 16, 16)).tobytes() == frames.crop((32, 0, 48, 16)).tobytes()


def test_texts_like_paths_are_texts(folder: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a space, or in no folder that exists; an image may be called as a text may be."""
    for text in ("a cat/dog", "and/or", "tests / cli", "12:30", "at: ten", "a:b"):
        assert _read(text) == text
    assert parse_item("a hat::1") == ("a hat:", 1) and parse_item("at: ten") == ("at: ten", None)
    monkeypatch.chdir(images)
    (images / "a.png").rename(images / "hat")
    assert isinstance(_read("hat"), Image.Image) and _read("a hat") == "a hat"
    assert run(["blend", "a cat/dog", "hat", "--frames", "2", "--steps", "1"], folder, images) == 0


def test_long_and_foreign_texts_are_texts(folder: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Longer than the name of a file can be, in UTF-8 whatever the locale, or nothing at all."""
    long = "रातो मुटु " * 40
    assert run(["blend", long, "a.png", "--frames", "2", "--steps", "2"], folder, images) == 0
    assert run(["blend", f"{long}:0.3", ":0.7", "--steps", "2"], folder, images, "w.png") == 0
    assert run(["edit", "a.png", "--from", "", "--to", long, "--steps", "2"], folder, images, "e.png") == 0
    given = os.fsencode("रातो").decode("ascii", "surrogateescape")  # as Python gives it in LC_ALL=C
    assert parse_item(given) == (given, None)
    assert run(["blend", given, "रातो", "--steps", "2", "--frames", "2"], folder, images, "s.gif") == 0
    assert run(["edit", "a.png", "--to", given, "--from", "रातो", "--steps", "2"], folder, images, "t.png") == 2
    assert "both texts have the same embedding" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["prior", "decoder", "upsampler"])
def test_weights_that_are_nan_are_not_loaded(part: str, tmp_path: Path) -> None:
    folder = make_tiny_unclip(tmp_path)
    file = folder / part / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.ndim == 2)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(ValueError, match=f"{name} is nan or infinite"):
        (dalle.load_prior if part == "prior" else dalle.load_diffusion)(folder / part)
    with pytest.raises(ValueError, match=part):  # it is not what was put together, either
        dalle.UnCLIP.from_pretrained(folder, device="cpu")


def test_images_that_are_nan_are_not_written(folder: Path) -> None:
    pipe = dalle.UnCLIP.from_pretrained(folder, device="cpu")
    with torch.no_grad():
        pipe.decoder.unet.conv_out.bias.fill_(float("nan"))  # as of an overflow in 16 bits
    with pytest.raises(ValueError, match="the decoder's images are nan or infinite"):
        pipe("a hat", steps=2)
    with pytest.raises(ValueError, match="the decoder's images are nan or infinite"):
        pipe.vary(Image.new("RGB", (16, 16)), n=1, steps=2)
