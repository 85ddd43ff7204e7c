"""`python -m dalle paint` on tiny random models: files, going on, Ctrl-C; every wrong input is one line."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dalle.__main__ import main
from dalle.apps.vqgan_clip.optimize import Painter
from dalle.files import install_command
from dalle.images import video


def line(parts: Path, out: Path, *more: str, prompt: str = "लाल दिल | text:-0.3") -> list[str]:
    """A command line that paints little; options of `more` replace the usual ones."""
    usual = ["--steps", "4", "--cutouts", "2", "--augment", "none", "--device", "cpu", "--out", str(out)]
    models = ["--image-tokenizer", str(parts / "image_tokenizer"), "--clip", str(parts / "clip")]
    options = [*usual, *models]
    kept = [words for words in zip(options[::2], options[1::2], strict=True) if words[0] not in more]
    return ["paint", prompt, *(word for words in kept for word in words), *more]


def only(out: Path) -> Path:
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    return folder


def test_painting_writes_files_whose_metadata_reproduce_it(
    tiny_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line(tiny_parts, tmp_path / "a", "--save-every", "2", "--seed", "3", "--saturation", "-0.5")) == 0
    folder = only(tmp_path / "a")
    assert folder.name == "लाल-दिल-text-0-3-3"
    assert capsys.readouterr().out == f"{folder / 'image.png'}\n"
    assert sorted(path.name for path in folder.iterdir()) == [
        "image.png",
        "state.safetensors",
        "step-00002.png",
        "step-00004.png",
    ]
    image = Image.open(folder / "image.png")
    texts: dict[str, str] = image.text  # type: ignore[attr-defined]
    assert (texts["prompt"], texts["seed"], texts["step"]) == ("लाल दिल | text:-0.3", "3", "4")
    assert json.loads(texts["options"])["saturation"] == -0.5
    assert set(json.loads(texts["models"])) == {"image tokenizer", "CLIP 1"}
    words = shlex.split(texts["command"])
    assert words[:4] == ["python", "-m", "dalle", "paint"]
    assert main([*words[3:], "--device", "cpu", "--out", str(tmp_path / "b")]) == 0
    again = Image.open(only(tmp_path / "b") / "image.png")
    assert again.tobytes() == image.tobytes()


def test_json_output_lists_files_and_videos_have_all_frames(
    tiny_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (name, format_) in enumerate((("a.gif", "GIF"), ("a.webp", "WEBP"), ("a.mp4", None))):
        film = tmp_path / "films" / name  # a folder that is not there yet
        more = ["--video", str(film), "--frame-every", "2", "--zoom", "1.1", "--json"]
        assert main(line(tiny_parts, tmp_path / str(number), *more)) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["video"] == str(film) and told["steps"] == 4 and set(told["losses"]) == {"loss", "clip"}
        assert Path(told["image"]).is_file() and Path(told["state"]).is_file()
        if format_ is not None:
            with Image.open(film) as animation:
                assert (animation.format, getattr(animation, "n_frames", 1)) == (format_, 3)
        else:
            av = pytest.importorskip("av")
            with av.open(str(film)) as file:
                assert [(f.width, f.height) for f in file.decode(video=0)] == [(16, 16)] * 3
    assert not list(tmp_path.glob(".*"))


def test_interrupted_painting_keeps_its_image_and_resumes(
    tiny_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(line(tiny_parts, tmp_path / "whole")) == 0
    take_step = Painter.take_step

    def interrupted(painter: Painter) -> dict[str, float]:
        if painter.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return take_step(painter)

    monkeypatch.setattr(Painter, "take_step", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(line(tiny_parts, tmp_path / "cut"))
    monkeypatch.undo()
    assert stop.value.code == 130
    said = capsys.readouterr().err
    assert "stopped at step 2 of 4; continue with: python -m dalle paint --resume" in said
    folder = only(tmp_path / "cut")
    assert Image.open(folder / "image.png").text["step"] == "2"  # type: ignore[attr-defined]
    assert main(["paint", "--resume", str(folder), "--device", "cpu", "--out", str(tmp_path / "rest")]) == 0
    images = [Image.open(only(tmp_path / name) / "image.png") for name in ("whole", "rest")]
    assert images[0].tobytes() == images[1].tobytes()
    assert main(["paint", "--resume", str(folder), "--steps", "2", "--out", str(tmp_path / "none")]) == 2
    assert "has done all 2 steps: give more with --steps" in capsys.readouterr().err


def test_painting_broken_off_before_its_first_image_leaves_no_folder(
    tiny_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(painter: Painter) -> dict[str, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Painter, "take_step", interrupted)
    assert main(line(tiny_parts, tmp_path / "out")) == 130
    assert capsys.readouterr().err.endswith("dalle paint: stopped\n")
    assert not list(tmp_path.iterdir())


def big(path: Path) -> Path:
    """A file that says it is a PNG of 20,000 x 20,000 pixels."""
    Image.new("1", (20_000, 20_000)).save(path)
    return path


WRONG: dict[str, tuple[list[str], str]] = {
    "no cutouts": (["--cutouts", "0"], "cutouts is 0; it must be at least 1"),
    "no steps": (["--steps", "0"], "steps is 0; it must be at least 1"),
    "only weights": (["PROMPT", ":1 | :0.5"], "has a weight without a text"),
    "only negative": (["PROMPT", "fog:-1"], "no prompt has a weight above 0 (fog)"),
    "empty": (["PROMPT", ""], "the prompt is empty: say what to paint"),
    "no multiple": (["--size", "30x17"], "size is 30x17: this image tokenizer paints multiples of 4; give 32x16"),
    "no size": (["--size", "large"], "size is 'large': give WIDTHxHEIGHT"),
    "huge": (["--size", "90000x90000"], "give from 1 to 67,108,864 pixels"),
    "huge init": (["--init", "BIG"], "it has more than 67,108,864 pixels"),
    "video as init": (["--init", "FILM"], "is not an image in a supported format"),
    "no init": (["--init", "nowhere.png"], "nowhere.png: no such image"),
    "URL as init": (["--init", "https://a.org/b.png"], "https://a.org/b.png is a URL, which is not fetched: download"),
    "URL as prompt": (["--image-prompt", "https://a.org/b.png:0.5"], "https://a.org/b.png is a URL, which is not"),
    "mask of another size": (["--init", "DOT", "--mask", "GIF"], "mask is 9x7 and init 1x1"),
    "mask alone": (["--mask", "DOT"], "mask needs init"),
    "black mask": (["--init", "DOT", "--mask", "BLACK"], "mask has no white pixel"),
    "augmentation": (["--augment", "affine,blur"], "augment has 'blur': choose from training, affine"),
    "strength": (["--augment", "training", "--augment-strength", "2"], "with augment=training give 1 at most"),
    "learning rate": (["--lr", "-1"], "lr is -1.0; it must be above 0"),
    "not a number": (["--tv", "nan"], "tv is nan; it must be a finite number"),
    "average": (["--average", "1"], "average is 1.0; it must be at least 0 and below 1"),
    "seed": (["--seed", "-1"], "seed is -1"),
    "optimizer": (["--optimizer", "sgd"], "invalid choice: 'sgd'"),
    "unknown option": (["--cut", "3"], "see --help"),
    "image prompt": (["--image-prompt", "nowhere.png:0.5"], "nowhere.png: no such image"),
    "noise prompt": (["--noise-prompt", "x"], "has the seed 'x'"),
    "tokenizer that is none": (["--image-tokenizer", "CLIP"], "holds a CLIP"),
    "tokenizer without use": (["--drawer", "pixels"], "the drawer pixels uses none"),
    "no state": (["--resume", "nowhere"], "nowhere: no such state"),
    "state of something else": (["--resume", "DOT"], "is no state of a painting"),
    "film": (["--video", "film.avi"], "give a name that ends in .mp4, .gif, .webp"),
    "film over init": (["--init", "LOOP", "--video", "LOOP"], "LOOP.gif is also an input, which would be replaced"),
    "film over prompt": (["--image-prompt", "LOOP", "--video", "LOOP"], "give another name as --video"),
    "frames a second": (["--fps", "0"], "--fps is 0"),
    "preview": (["--preview-every", "0"], "--preview-every is 0"),
    "out is a file": (["--out", "DOT"], "is not a folder that can be written"),
    "device": (["--device", "abacus"], "no device 'abacus'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_give_a_one_line_error(
    tiny_parts: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, message = WRONG[name]
    places: dict[str, Any] = {word: tmp_path / f"{word}.png" for word in ("DOT", "BLACK", "GIF", "FILM", "BIG")}
    places["LOOP"] = tmp_path / "LOOP.gif"
    Image.new("RGB", (1, 1), "red").save(places["LOOP"])
    Image.new("RGB", (1, 1), "red").save(places["DOT"])
    Image.new("L", (1, 1), 0).save(places["BLACK"])
    Image.new("P", (9, 7)).save(places["GIF"], "GIF")
    places["FILM"].write_bytes(b"\x00\x00\x00\x20ftypisom" + bytes(500))
    if name == "huge init":
        big(places["BIG"])
    places["CLIP"] = tiny_parts / "clip"
    words = [str(places.get(word, word)) for word in given]
    prompt = words.pop(1) if words[0] == "PROMPT" else "a red heart"
    words = [word for word in words if word != "PROMPT"]
    try:
        code = main(line(tiny_parts, tmp_path / "out", *words, prompt=prompt))
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1, said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["dot", "gif", "transparent", "thin"])
def test_init_images_of_any_mode_and_size_work(tiny_parts: Path, kind: str, tmp_path: Path) -> None:
    made = {
        "dot": Image.new("RGB", (1, 1), "red"),
        "gif": Image.new("P", (9, 7)),
        "transparent": Image.new("RGBA", (5, 5), (0, 0, 0, 0)),
        "thin": Image.new("L", (300, 1), 90),
    }[kind]
    made.save(tmp_path / "init", "GIF" if kind == "gif" else "PNG")
    assert main(line(tiny_parts, tmp_path / "out", "--init", str(tmp_path / "init"), "--steps", "1")) == 0
    with Image.open(only(tmp_path / "out") / "image.png") as image:
        assert (image.format, image.mode) == ("PNG", "RGB") and min(image.size) > 0


def test_negative_prompts_alone_work_with_an_image(tiny_parts: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "init.png")
    assert main(line(tiny_parts, tmp_path / "out", "--init", str(tmp_path / "init.png"), prompt="red:-1")) == 0
    with Image.open(only(tmp_path / "out") / "image.png") as image:
        assert image.text["prompt"] == "red:-1"  # type: ignore[attr-defined]


def test_a_blank_prompt_beside_an_image_is_none(tiny_parts: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "goal.png")
    assert main(line(tiny_parts, tmp_path / "out", "--image-prompt", str(tmp_path / "goal.png"), prompt=" ")) == 0
    with Image.open(only(tmp_path / "out") / "image.png") as image:
        assert image.text["step"] == "4"  # type: ignore[attr-defined]


def test_full_disk_gives_one_line_and_keeps_the_last_image(
    tiny_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save, count = Image.Image.save, [0]

    def full(image: Image.Image, *args: Any, **kwargs: Any) -> None:
        count[0] += 1
        if count[0] == 3:
            raise OSError(28, "No space left on device")
        save(image, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", full)
    assert main(line(tiny_parts, tmp_path, "--preview-every", "1")) == 2
    assert "No space left on device" in capsys.readouterr().err
    (file,) = only(tmp_path).iterdir()
    assert Image.open(file).text["step"] == "2"  # type: ignore[attr-defined]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder_is_refused(tiny_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert main(line(tiny_parts, tmp_path / "out")) == 2
    assert "is not a folder that can be written" in capsys.readouterr().err


def test_without_pyav_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ValueError, match=re.escape(install_command("video"))):
        video.check_video(tmp_path / "film.mp4")
    video.check_video(tmp_path / "film.gif")


def test_frames_of_odd_sides_become_a_video(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    frames = [Image.new("RGB", (33, 25), (60 * number, 0, 0)) for number in range(4)]
    video.write_video(frames, tmp_path / "film.mp4", fps=5)
    with av.open(str(tmp_path / "film.mp4")) as file:
        shown = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert [frame.shape for frame in shown] == [(24, 32, 3)] * 4
    assert [round(float(frame[..., 0].mean()) / 60) for frame in shown] == [0, 1, 2, 3]


def test_painting_restores_grad_mode(tiny_parts: Path, tmp_path: Path) -> None:
    before = torch.is_grad_enabled()
    assert main(line(tiny_parts, tmp_path, "--steps", "1")) == 0
    assert torch.is_grad_enabled() == before
