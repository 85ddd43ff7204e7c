"""Files of vary, blend and edit: a free name by default, no input is replaced, no complete file by a part."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from dalle.__main__ import main
from dalle.pipelines.unclip import UnCLIP
from support.tiny_unclip import make_tiny_unclip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = make_tiny_unclip(tmp_path_factory.mktemp("unclip"))
    return ["--model", str(folder), "--device", "cpu", "--steps", "1"]


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an image and links to it."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (16, 16), "red").save("a.png")
    os.symlink("a.png", "link.png")
    os.link("a.png", "hard.png")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["vary", "a.png", "--n", "1"], "variations"),
        (["blend", "a.png:1", "a hat:1"], "blend"),
        (["edit", "a.png", "--to", "a dog"], "edit"),
    ],
)
def test_without_out_the_name_is_free(
    words: list[str], name: str, model: list[str], images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (f"{name}.png", f"{name}-2.png", f"{name}-3.png"):
        assert main([*words, *model]) == 0
        assert capsys.readouterr().out == f"{file}\n"
    earlier = Path(f"{name}.png").read_bytes()
    Path(f"{name}-2.png").write_bytes(b"")
    assert main([*words, *model, "--out", f"{name}-2.png"]) == 0  # what is asked for is replaced
    assert Path(f"{name}-2.png").read_bytes() == Path(f"{name}.png").read_bytes() == earlier


@pytest.mark.parametrize("words", [["vary", "a.png"], ["blend", "a.png", "a hat"], ["edit", "a.png", "--to", "a dog"]])
def test_seed_changes_the_images(words: list[str], model: list[str], images: Path) -> None:
    for name, seed in (("0.png", "0"), ("7.png", "7"), ("again.png", "7")):
        assert main([*words, *model, "--seed", seed, "--out", name]) == 0
    assert Path("7.png").read_bytes() == Path("again.png").read_bytes() != Path("0.png").read_bytes()


@pytest.mark.parametrize("words", [["vary", "IN"], ["blend", "IN:0.5", "a hat"], ["edit", "IN", "--to", "a dog"]])
@pytest.mark.parametrize(
    ("given", "out"), [("a.png", "a.png"), ("link.png", "./a.png"), ("a.png", "link.png"), ("a.png", "hard.png")]
)
def test_out_that_is_an_input_is_refused(
    words: list[str], given: str, out: str, model: list[str], images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path("a.png").read_bytes()
    assert main([*(word.replace("IN", given) for word in words), *model, "--out", out]) == 2
    error = capsys.readouterr().err
    assert f"{Path(out)} is also an input" in error and error.endswith("give another name as --out\n")
    assert error.count("\n") == 1 and Path("a.png").read_bytes() == before
    assert sorted(os.listdir()) == ["a.png", "hard.png", "link.png"] and os.path.islink("link.png")


@pytest.mark.parametrize("out", [["--out", "row.png"], []])
def test_an_interrupt_replaces_no_file(
    out: list[str],
    model: list[str],
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    upsample, calls = UnCLIP._upsample, 0

    def until_interrupted(self: UnCLIP, *given: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls % 2 == 0:
            raise KeyboardInterrupt
        return upsample(self, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(UnCLIP, "_upsample", until_interrupted)
    monkeypatch.setattr(UnCLIP, "_rows_that_fit", lambda self, guided: 2)
    name = "row" if out else "variations"
    Path(f"{name}.png").write_text("complete")
    for file in (f"{name}-2.png", f"{name}-3.png"):
        assert main(["vary", "a.png", "--n", "4", *model, *out]) == 130
        assert capsys.readouterr().err.endswith(f"dalle vary: stopped; 2 finished images: {file}\n")
        assert Image.open(file).size == (32, 16)
    assert Path(f"{name}.png").read_text() == "complete"


def test_a_failed_write_leaves_no_empty_file(
    model: list[str], images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    before = sorted(os.listdir())
    monkeypatch.setattr(Image.Image, "save", full)
    assert main(["vary", "a.png", "--n", "1", *model]) == 2
    assert "variations.png: No space left on device" in capsys.readouterr().err
    assert sorted(os.listdir()) == before


def test_a_folder_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert main(["vary", "a.png", "--model", "nowhere"]) == 2
    assert "is not a folder that can be written: give another as --out" in capsys.readouterr().err
