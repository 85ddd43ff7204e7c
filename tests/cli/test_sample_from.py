"""`sample.py --from`: a PNG is drawn again from its metadata, with what is changed."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageChops

from support.tiny_model import IMAGE_SIZE, make_tiny_model

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import sample  # noqa: E402
from dalle.files import sha256  # noqa: E402
from dalle.pipelines.text_to_image import TextToImage  # noqa: E402


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("from"))


@pytest.fixture
def drawn(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PNG with a seed and options of its own."""
    monkeypatch.chdir(tmp_path)
    options = ["--n", "2", "--seed", "11", "--temperature", "0.8", "--top-k", "9", "--no-grid", "--out", "first"]
    assert sample.main(["लाल दिल", *options, "--model", str(model)]) == 0
    return next(Path("first").glob("*/*-seed12.png"))


@pytest.fixture
def texts(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The metadata of `drawn`, which is read as what this is changed to."""
    own: dict[str, str] = Image.open(drawn).text  # type: ignore[attr-defined]
    monkeypatch.setattr("dalle.cli.sample_from.read_metadata", lambda file: own)
    return own


def only_image(folder: str) -> Path:
    (file,) = Path(folder).glob("*/*.png")
    return file


def same(one: Path, other: Image.Image) -> bool:
    return ImageChops.difference(Image.open(one), other).getbbox() is None


def test_from_option_reproduces_the_image(drawn: Path) -> None:
    assert sample.main(["--from", str(drawn), "--no-grid", "--out", "again"]) == 0
    again = Image.open(only_image("again"))
    assert same(drawn, again)
    one, other = (image.text for image in (again, Image.open(drawn)))  # type: ignore[attr-defined]
    assert json.loads(one.pop("options")) == json.loads(other.pop("options")) and one == other


def test_given_options_override_the_images(drawn: Path, model: Path) -> None:
    assert sample.main(["--from", str(drawn), "--guidance", "3", "--no-grid", "--out", "again"]) == 0
    pipe = TextToImage.from_pretrained(model, device="cpu")
    (expected,) = pipe("लाल दिल", seed=12, temperature=0.8, top_k=9, guidance=3)
    assert same(only_image("again"), expected.images[0])
    assert sample.main(["two green stars", "--from", str(drawn), "--seed", "5", "--no-grid", "--out", "other"]) == 0
    (expected,) = pipe("two green stars", seed=5, temperature=0.8, top_k=9)
    assert same(only_image("other"), expected.images[0])


def test_init_image_must_be_given_again(
    model: Path, drawn: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    Image.effect_noise((IMAGE_SIZE, IMAGE_SIZE), 90).convert("RGB").save("face.png")
    Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE)).save("black.png")
    common = ["--n", "1", "--no-grid", "--model", str(model)]
    assert sample.main(["a", "--image", "face.png", "--keep-rows", "2", "--out", "kept", *common]) == 0
    kept = str(only_image("kept"))
    assert sample.main(["--from", kept, "--out", "again"]) == 2
    assert "was generated from face.png: give it as --image" in capsys.readouterr().err
    assert sample.main(["--from", kept, "--image", "face.png", "--no-grid", "--out", "again"]) == 0
    assert same(only_image("again"), Image.open(kept)) and not caplog.records
    with caplog.at_level(logging.WARNING):
        assert sample.main(["--from", kept, "--image", "black.png", "--no-grid", "--out", "black"]) == 0
    assert "black.png is not the image that" in caplog.text


def test_image_and_mask_are_asked_for_together(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "teal").save("face.png")
    Image.new("L", (IMAGE_SIZE, IMAGE_SIZE), 255).save("mask.png")
    options = ["--image", "face.png", "--mask", "mask.png", "--n", "1", "--no-grid", "--out", "first"]
    assert sample.main(["a dog", *options, "--model", str(model)]) == 0
    made = str(only_image("first"))
    assert sample.main(["--from", made]) == 2
    assert "was generated from face.png and mask.png: give them as --image and --mask" in capsys.readouterr().err
    assert sample.main(["--from", made, "--image", "face.png"]) == 2
    assert "was generated from mask.png: give it as --mask" in capsys.readouterr().err


def test_a_servers_mask_is_asked_for_in_white(
    drawn: Path, texts: dict[str, str], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither no mask nor the server's own is taken, and any other is."""
    Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "teal").save("face.png")
    Image.new("RGBA", (IMAGE_SIZE, IMAGE_SIZE)).save("clear.png")
    Image.new("L", (IMAGE_SIZE, IMAGE_SIZE), 255).save("white.png")
    face, clear = ({"file": name, "sha256": sha256(Path(f"{name}.png"))} for name in ("face", "clear"))
    texts["options"] = json.dumps(json.loads(texts["options"]) | {"image": face, "mask": clear | {"transparent": True}})
    wanted = "was drawn where its clear is transparent: give as --mask an image that is white there\n"
    assert sample.main(["--from", str(drawn)]) == 2
    asked = f"sample.py: {drawn} was generated from face: give it as --image; it {wanted}"
    assert capsys.readouterr().err == asked
    for mask in ([], ["--mask", "clear.png"]):
        assert sample.main(["--from", str(drawn), "--image", "face.png", *mask]) == 2
        assert capsys.readouterr().err == f"sample.py: {drawn} {wanted}"
    with caplog.at_level(logging.WARNING):
        given = ["--image", "face.png", "--mask", "white.png", "--no-grid", "--out", "again"]
        assert sample.main(["--from", str(drawn), *given]) == 0
    assert "is not the" not in caplog.text
    assert sample.main(["--from", str(drawn), "--image", "face.png", "--keep-rows", "2", "--out", "kept"]) == 0


def test_another_model_is_refused_unless_given(
    model: Path, drawn: Path, texts: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_tiny_model(tmp_path / "other", seed=1)
    assert sample.main(["--from", str(drawn), "--model", str(other), "--out", "asked"]) == 0
    assert str(model) in texts["options"]
    texts["model"] = "0" * 64
    assert sample.main(["--from", str(drawn), "--out", "again"]) == 2
    assert "give its folder as --model" in capsys.readouterr().err


def test_file_without_metadata_is_refused(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.open(drawn).convert("RGB").save("bare.png")
    assert sample.main(["--from", "bare.png"]) == 2
    assert "bare.png has no prompt in its metadata" in capsys.readouterr().err
    assert sample.main(["--from", "none.png"]) == 2
    assert "none.png: no such image" in capsys.readouterr().err
    Path("folder.png").mkdir()
    assert sample.main(["--from", "folder.png"]) == 2
    assert capsys.readouterr().err == "sample.py: folder.png is a folder: give an image file\n"
    assert sample.main([]) == 2
    assert "no prompt given" in capsys.readouterr().err


def test_options_that_cannot_be_name_the_file(
    drawn: Path, texts: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    texts["options"] = json.dumps(json.loads(texts["options"]) | {"temperature": -1})
    assert sample.main(["--from", str(drawn), "--out", "again"]) == 2
    error = capsys.readouterr().err
    assert f"the metadata of {drawn}" in error and "temperature" in error and "command line" not in error


def test_options_that_the_model_refuses_name_the_file(
    drawn: Path, texts: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = json.loads(texts["options"])
    for option, message in {"eta": "--eta is for an unCLIP", "negative": "negative", "size": "size"}.items():
        value = 0.5 if option == "eta" else "9x9"
        texts["options"] = json.dumps(recorded | {option: value})
        assert sample.main(["--from", str(drawn), "--out", "again"]) == 2
        error = capsys.readouterr().err
        assert message in error and f"those of {drawn})" in error and error.count("\n") == 1


def test_options_that_are_unknown_or_missing_are_named(
    drawn: Path, texts: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    options = json.loads(texts["options"])
    del options["top_k"]
    texts["options"] = json.dumps(options | {"blur\x1b": 1})
    with caplog.at_level(logging.WARNING):
        assert sample.main(["--from", str(drawn), "--no-grid", "--out", "again"]) == 0
    assert "ignored: blur\\x1b" in caplog.text and "does not record top_k" in caplog.text and "\x1b" not in caplog.text


def test_null_on_the_command_line_replaces_the_models_own_option(model: Path, tmp_path: Path) -> None:
    """A model's own top_k can be turned off, and an image made so comes again from its PNG."""
    own = yaml.safe_load((model / "config.yaml").read_text(encoding="utf-8"))
    own["sampling"] = {**(own.get("sampling") or {}), "top_k": 1}
    narrow = shutil.copytree(model, tmp_path / "narrow")
    (narrow / "config.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")

    def draw(folder: str, *options: str) -> Image.Image:
        assert sample.main([*options, "--no-grid", "--out", str(tmp_path / folder)]) == 0
        return Image.open(only_image(str(tmp_path / folder)))

    prompt = ["a dog", "--n", "1", "--seed", "3", "--model", str(narrow)]
    wide = draw("wide", *prompt, "--top-k", "null")
    (expected,) = TextToImage.from_pretrained(model, device="cpu")("a dog", n=1, seed=3)
    assert ImageChops.difference(wide, expected.images[0]).getbbox() is None
    assert same(only_image(str(tmp_path / "wide")), draw("again", "--from", str(only_image(str(tmp_path / "wide")))))
    assert not same(only_image(str(tmp_path / "wide")), draw("narrow_images", *prompt))
