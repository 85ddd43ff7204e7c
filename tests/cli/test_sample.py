"""sample.py end to end on a tiny random model: files, metadata, exit codes; every wrong input is one line."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageChops

from support.tiny_model import IMAGE_SIZE, make_tiny_model

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import dalle.images.grid  # noqa: E402
import dalle.images.png  # noqa: E402
import sample  # noqa: E402
from dalle.cli.sample import SampleConfig  # noqa: E402
from dalle.pipelines.text_to_image import TextToImage  # noqa: E402


@pytest.fixture(scope="module")
def model_without_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("sample_plain"), clip=False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with an image and a mask of its size."""
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((IMAGE_SIZE, IMAGE_SIZE), 90).convert("RGB").save("face.png")
    mask = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    mask.paste(255, (0, 0, 8, 8))
    mask.save("mask.png")
    return tmp_path


def test_sample_writes_reranked_images_and_scores(
    tiny_model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--n", "5", "--keep", "2", "--seed", "7", "--guidance", "3", "--top-k", "9", "--model", str(tiny_model)]
    assert sample.main(["a red heart", "लाल दिल", *options]) == 0
    folder = here / "outputs" / "a-red-heart-7"
    assert capsys.readouterr().out.strip() == str(Path("outputs", "a-red-heart-7", "grid.png"))
    content = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    assert [p["prompt"] for p in content["images"]] == ["a red heart"] * 2 + ["लाल दिल"] * 2
    names = {p["file"] for p in content["images"]}
    assert {p.name for p in folder.iterdir()} == names | {"grid.png", "scores.json"}
    assert len(names) == 4 and all(7 <= p["seed"] < 12 for p in content["images"])
    first, second = (p["score"] for p in content["images"][:2])
    assert 1 >= first >= second >= -1
    assert Image.open(folder / "grid.png").width > 2 * 128
    assert len(content["model"]) == 64
    assert (content["options"]["guidance"], content["options"]["temperature"]) == (3.0, 1.0)  # given, and the model's


def test_png_metadata_reproduces_the_image(tiny_model: Path, here: Path) -> None:
    drawn = ["--n", "3", "--seed", "11", "--temperature", "0.8", "--top-p", "0.9", "--image", "face.png"]
    assert sample.main(["लाल दिल", *drawn, "--mask", "mask.png", "--model", str(tiny_model), "--no-grid"]) == 0
    (folder,) = (here / "outputs").iterdir()
    assert not (folder / "grid.png").exists()
    pipe = TextToImage.from_pretrained(tiny_model, device="cpu")
    files = sorted(folder.glob("*.png"))
    assert len(files) == 3
    for file in files:
        image = Image.open(file)
        texts = image.text  # type: ignore[attr-defined]
        assert texts["prompt"] == "लाल दिल" and texts["model"] == pipe.model_hash
        options = json.loads(texts["options"])
        assert options["image"]["file"] == "face.png" and len(options["mask"]["sha256"]) == 64
        names = ("temperature", "top_k", "top_p", "guidance", "keep_rows")
        given = {name: options[name] for name in names} | {n: Image.open(options[n]["file"]) for n in ("image", "mask")}
        (again,) = pipe(texts["prompt"], seed=int(texts["seed"]), **given)
        assert ImageChops.difference(again.images[0], image).getbbox() is None


def test_window_gives_the_same_files_in_fewer_steps(tiny_model: Path, here: Path) -> None:
    found = []
    for window in ("1", "8"):
        options = ["--n", "3", "--batch-size", "1", "--temperature", "0.5", "--window", window, "--out", window]
        assert sample.main(["लाल दिल", *options, "--model", str(tiny_model)]) == 0
        (folder,) = (here / window).iterdir()
        content = json.loads((folder / "scores.json").read_text())
        found.append((content["steps"], [(folder / p["file"]).read_bytes() for p in content["images"]]))
    assert found[0][1] == found[1][1]
    assert found[0][0] == 3 * 16 and 3 < found[1][0] < 3 * 16


def test_memory_limit_keeps_the_images_and_guidance_changes_them(tiny_model: Path, here: Path) -> None:
    found = {}
    ways = {"plain": [], "little memory": ["--max-memory", "1kB"], "8 bits": ["--dtype", "int8"]}
    ways |= {"all guided": ["--guidance", "3"], "guided": ["--guidance", "3", "--guidance-until", "16"]}
    ways |= {"half guided": ["--guidance", "3", "--guidance-until", "4"]}
    for name, options in ways.items():
        assert sample.main(["a dog", "--n", "6", "--model", str(tiny_model), "--out", name, *options]) == 0
        (folder,) = (here / name).iterdir()
        content = json.loads((folder / "scores.json").read_text())
        images = sorted(content["images"], key=lambda image: image["seed"])
        found[name] = content["steps"], [Image.open(folder / p["file"]).tobytes() for p in images]
    assert found["little memory"] == (6 * 16, found["plain"][1])  # one after the other, the same
    assert found["all guided"] == found["guided"] != found["plain"]
    assert found["half guided"][1] not in (found["plain"][1], found["guided"][1])
    assert len(found["8 bits"][1]) == 6


def test_earlier_outputs_are_not_overwritten(model_without_clip: Path, here: Path) -> None:
    for _ in range(3):
        assert sample.main(["A dog?", "--n", "1", "--model", str(model_without_clip), "--out", "there"]) == 0
    assert sorted(p.name for p in (here / "there").iterdir()) == ["a-dog-0", "a-dog-0-2", "a-dog-0-3"]
    content = json.loads((here / "there" / "a-dog-0" / "scores.json").read_text())
    assert content["images"][0]["score"] is None


def test_many_prompts_are_generated_in_groups_and_all_written(tiny_model: Path, here: Path) -> None:
    prompts = [f"{i} red hearts" for i in range(5)]
    assert sample.main([*prompts, "--n", "16", "--keep", "1", "--model", str(tiny_model)]) == 0
    content = json.loads((here / "outputs" / "0-red-hearts-0" / "scores.json").read_text())
    assert [p["prompt"] for p in content["images"]] == prompts


def test_keep_rows_continues_an_image(tiny_model: Path, here: Path) -> None:
    options = ["--image", "face.png", "--keep-rows", "0.5", "--n", "2", "--model", str(tiny_model)]
    assert sample.main(["a dog", *options]) == 0
    pipe = TextToImage.from_pretrained(tiny_model, device="cpu")
    (result,) = pipe("a dog", n=2, image=Image.open("face.png"), keep_rows=0.5)
    (folder,) = (here / "outputs").iterdir()
    written = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["images"]
    found = {one["seed"]: Image.open(folder / one["file"]).tobytes() for one in written}
    assert found == {seed: image.tobytes() for seed, image in zip(result.seeds, result.images, strict=True)}


WRONG = {
    "no prompt": ([], "no prompt given"),
    "no such option": (["a", "--guidence", "3"], "unrecognized arguments: --guidence"),
    "not a number": (["a", "--n", "four"], "--n: invalid int value: 'four'"),
    "no candidates": (["a", "--n", "0"], "n is 0"),
    "no window": (["a", "--window", "0"], "window is 0"),
    "keep more than n": (["a", "--n", "2", "--keep", "3"], "keep is 3 of n=2"),
    "keep none": (["a", "--keep", "0"], "keep is 0"),
    "top-k 0": (["a", "--top-k", "0"], "top_k is 0"),
    "top-p 0": (["a", "--top-p", "0"], "top_p is 0.0; it must be above 0"),
    "top-p above 1": (["a", "--top-p", "1.1"], "top_p is 1.1"),
    "negative temperature": (["a", "--temperature", "-1"], "temperature is -1.0; it must be at least 0"),
    "no temperature": (["a", "--temperature", "nan"], "temperature is nan"),
    "negative guidance": (["a", "--guidance", "-2"], "guidance is -2"),
    "negative steps with guidance": (["a", "--guidance-until", "-1"], "guidance_until is -1; it must be at least 0"),
    "no memory": (["a", "--max-memory", "0"], "--max-memory is '0': expected a number with a unit, 80GB"),
    "memory in apples": (["a", "--max-memory", "3 apples"], "--max-memory is '3 apples'"),
    "negative seed": (["a", "--seed", "-1"], "seed is -1"),
    "no batch": (["a", "--batch-size", "0"], "batch_size is 0"),
    "no rows": (["a", "--image", "face.png", "--keep-rows", "0"], "keep_rows is 0: give a fraction from 0.25 to 0.75"),
    "all rows": (["a", "--image", "face.png", "--keep-rows", "4"], "or a whole number of rows from 1 to 3"),
    "half a row more": (["a", "--image", "face.png", "--keep-rows", "1.5"], "keep_rows is 1.5"),
    "rows without image": (["a", "--keep-rows", "2"], "keep_rows needs an image"),
    "rows and mask": (
        ["a", "--image", "face.png", "--keep-rows", "2", "--mask", "mask.png"],
        "either keep_rows or mask",
    ),
    "a folder as image": (["a", "--image", ".", "--keep-rows", "1"], ". is a folder: give an image file"),
    "half an image": (["a", "--image", "cut.png", "--keep-rows", "1"], "cut.png: the image cannot be decoded"),
    "text as mask": (["a", "--image", "face.png", "--mask", "text.txt"], "text.txt: the file is text, not an image"),
    "black mask": (["a", "--image", "face.png", "--mask", "black.png"], "no white pixel"),
    "an empty folder as model": (
        ["a", "--model", "empty"],
        "empty is neither a model folder (no config.yaml)",
    ),
    "a file as model": (["a", "--model", "text.txt"], "text.txt was not written by torch.save, or is damaged"),
    "a CLIP as model": (["a", "--model", "MODEL/clip"], "holds a CLIP, expected a DALL-E"),
    "a model as CLIP": (["a", "--clip", "MODEL"], "holds a DALL-E, expected a CLIP"),
    "out under a file": (["a", "--out", "text.txt/out"], "text.txt is not a folder that can be written"),
    "out is a file": (["a", "--out", "text.txt"], "text.txt is not a folder that can be written"),
    "not a prompt": (["a\udcff"], "surrogate"),
    "a URL": (["a", "--image", "https://a.org/b.png", "--keep-rows", "1"], "https://a.org/b.png is a URL"),
    "no such image": (["a", "--image", "none.png", "--keep-rows", "1"], "none.png: no such image"),
    "text as image": (["a", "--image", "text.txt", "--keep-rows", "1"], "text.txt: the file is text, not an image"),
    "mask of another size": (["a", "--image", "face.png", "--mask", "small.png"], "mask is 4x4 and image 16x16"),
    "mask without image": (["a", "--mask", "mask.png"], "mask needs an image"),
    "image alone": (["a", "--image", "face.png"], "either keep_rows or mask"),
    "no such model": (["a", "--model", "./nowhere"], "nowhere"),
    "no such device": (["a", "--device", "abacus"], "no device 'abacus'"),
    "dtype": (["a", "--dtype", "int3"], "invalid choice: 'int3'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_give_a_one_line_error(
    tiny_model: Path, here: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, message = WRONG[name]
    (here / "text.txt").write_text("not an image")
    (here / "empty").mkdir()
    (here / "cut.png").write_bytes((here / "face.png").read_bytes()[:200])
    Image.new("L", (4, 4), 255).save(here / "small.png")
    Image.new("L", (IMAGE_SIZE, IMAGE_SIZE)).save(here / "black.png")
    arguments = [argument.replace("MODEL", str(tiny_model)) for argument in arguments]
    if "--model" not in arguments:
        arguments = [*arguments, "--model", str(tiny_model)]
    try:
        code = sample.main(arguments)
    except SystemExit as stop:  # argparse's own
        code = stop.code  # type: ignore[assignment]
    out, err = capfd.readouterr()
    assert code == 2 and out == ""
    assert message in err and err.startswith("sample.py: ") and err.count("\n") == 1
    assert not (here / "outputs").exists()


def test_without_clip_no_candidate_can_be_chosen(
    tiny_model: Path, model_without_clip: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["a", "--n", "3", "--keep", "1", "--model", str(model_without_clip)]
    assert sample.main(arguments) == 2
    assert "no CLIP to choose 1 of 3" in capsys.readouterr().err
    assert sample.main([*arguments, "--clip", str(tiny_model / "clip")]) == 0


BROKEN = {
    "model.safetensors": (-100, "model.safetensors is not a safetensors file, or is truncated"),
    "config.yaml": (0, "config.yaml: expected `key: value` lines, found nothing"),
    "image_tokenizer/model.safetensors": (-100, "is not the image_tokenizer that"),  # names both hashes
    "text_tokenizer/bpe.model": (100, "is not the text_tokenizer that"),
    "clip/config.yaml": (40, "clip"),
}


@pytest.mark.parametrize("file", BROKEN)
def test_damaged_model_folder_gives_a_one_line_error(
    file: str, tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_tiny_model(tmp_path / "broken")
    left, message = BROKEN[file]
    (folder / file).write_bytes((folder / file).read_bytes()[:left])
    assert sample.main(["a", "--model", str(folder)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize("prompt", ["गुलाबी हात्ती", "一只粉色的大象", "🐘❤️", "", "  ", "a dog\nand a cat", "--n"])
def test_prompts_of_any_script_are_in_the_metadata(prompt: str, tiny_model: Path, here: Path) -> None:
    assert sample.main(["--n", "1", "--model", str(tiny_model), "--", prompt]) == 0
    (folder,) = (here / "outputs").iterdir()
    (file,) = folder.glob("01-*.png")
    assert Image.open(file).text["prompt"] == prompt  # type: ignore[attr-defined]


def test_long_prompts_are_truncated_with_a_warning(
    tiny_model: Path, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert sample.main(["a red heart " * 500, "--n", "40", "--keep", "1", "--model", str(tiny_model)]) == 0
    # One line, though the CLIP reads it too, and both read it twice: for the first 32 candidates and the others
    cut = [record.getMessage() for record in caplog.records if re.search("cut to|truncated to", record.getMessage())]
    assert len(cut) == 1 and "tokens cut to the model's 12" in cut[0]


def test_full_disk_keeps_finished_images(
    tiny_model: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = dalle.images.png.write_png

    def full(image: Image.Image, path: Path, texts: dict[str, str]) -> None:
        if path.name.startswith("02-02"):
            raise OSError(28, "No space left on device", str(path))
        write(image, path, texts)

    monkeypatch.setattr(dalle.images.png, "write_png", full)
    assert sample.main(["a dog", "a cat", "--n", "2", "--model", str(tiny_model)]) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith("sample.py: ") and "02-02-seed0.png: No space left on device" in err
    assert err.endswith("; what was finished before is in outputs/a-dog-0")
    folder = here / "outputs" / "a-dog-0"
    images = json.loads((folder / "scores.json").read_text())["images"]
    assert [one["file"][:5] for one in images] == ["01-01", "01-02", "02-01"]
    assert sorted(p.name[:5] for p in folder.glob("*.png")) == ["01-01", "01-02", "02-01"]


@pytest.mark.parametrize(
    ("target", "again", "said", "left"),
    [
        ("dalle.images.png.write_png", 1, "nothing was finished", None),
        ("dalle.images.grid.labeled_grid", 1, "finished images: outputs/a-dog-0/grid.png", "grid.png"),
        ("dalle.images.grid.labeled_grid", 2, "finished images, without their grid: outputs/a-dog-0", "scores.json"),
    ],
)
def test_ctrl_c_while_files_are_written_names_what_is_there(
    target: str,
    again: int,
    said: str,
    left: str | None,
    tiny_model: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, _, name = target.rpartition(".")
    write, calls = getattr(sys.modules[module], name), []

    def interrupted(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) <= again:
            raise KeyboardInterrupt
        return write(*args, **options)

    monkeypatch.setattr(target, interrupted)
    assert sample.main(["a dog", "--n", "2", "--model", str(tiny_model)]) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == f"sample.py: stopped; {said}"
    found = {path.name for path in (here / "outputs").rglob("*")}
    if left is None:
        assert not found
        return
    assert left in found and ("grid.png" in found) == (again == 1)
    assert len(json.loads((here / "outputs" / "a-dog-0" / "scores.json").read_text())["images"]) == 2


@pytest.mark.slow
def test_sigint_ends_the_process_with_130(tiny_model: Path, here: Path) -> None:
    arguments = [
        "a dog",
        "a cat",
        "--n",
        "100000",
        "--batch-size",
        "8",
        "--model",
        str(tiny_model),
        "--out",
        str(here / "o"),
    ]
    process = subprocess.Popen(
        [sys.executable, "sample.py", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    begun = ""
    while "drawing" not in begun:  # the progress bar
        letter = process.stderr.read(1)
        assert letter, begun
        begun += letter
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130 and "Traceback" not in err
    (line,) = [line for line in err.splitlines() if "sample.py" in line]
    assert line.startswith(("sample.py: stopped; nothing was finished", "sample.py: stopped; finished images: "))


def test_keyboard_interrupt_keeps_finished_images(
    tiny_model: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, calls = TextToImage.__call__, []

    def interrupted(self: TextToImage, *args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return draw(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(TextToImage, "__call__", interrupted)
    monkeypatch.setattr("dalle.cli.sample_prompts._MAX_CANDIDATES", 2)
    assert sample.main(["a dog", "a cat", "--n", "2", "--model", str(tiny_model)]) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("sample.py: stopped; finished images: ")
    folder = here / "outputs" / "a-dog-0"
    assert len(json.loads((folder / "scores.json").read_text())["images"]) == 2
    assert len(list(folder.glob("01-*.png"))) == 2 and (folder / "grid.png").exists()
    assert sample.main(["a dog", "--n", "2", "--model", str(tiny_model)]) == 0
    calls.clear()
    calls.append(())
    assert sample.main(["a dog", "--model", str(tiny_model)]) == 130
    assert "nothing was finished" in capsys.readouterr().err


def test_sigterm_keeps_finished_images(
    tiny_model: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, calls = TextToImage.__call__, []

    def terminated(self: TextToImage, *args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self, *args, **options)  # type: ignore[arg-type]

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(TextToImage, "__call__", terminated)
    monkeypatch.setattr("dalle.cli.sample_prompts._MAX_CANDIDATES", 2)
    assert sample.main(["a dog", "a cat", "--n", "2", "--model", str(tiny_model)]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("sample.py: stopped; finished images: ")
    folder = here / "outputs" / "a-dog-0"
    assert len(json.loads((folder / "scores.json").read_text())["images"]) == 2
    assert len(list(folder.glob("01-*.png"))) == 2 and (folder / "grid.png").exists()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("agreement", ["0", "0.5"])
def test_interrupted_prompt_keeps_its_finished_candidates(
    tiny_model: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, agreement: str
) -> None:
    """Of 70 candidates in parts of 32, Ctrl-C comes in the third; uninterrupted, parts change nothing."""
    command = ["a dog", "--n", "70", "--keep", "3", "--seed", "5", "--no-distinct", "--model", str(tiny_model)]
    command += ["--agreement", agreement]
    assert sample.main(command) == 0
    pipe = TextToImage.from_pretrained(tiny_model, device="cpu")
    (expected,) = pipe("a dog", n=70, keep=3, seed=5, distinct=False, agreement=float(agreement))
    content = json.loads((here / "outputs" / "a-dog-5" / "scores.json").read_text())
    assert [one["seed"] for one in content["images"]] == expected.seeds
    draw, seeds = TextToImage.__call__, []

    def interrupted(self: TextToImage, *args: object, **options: object) -> object:
        seeds.append(options["seed"])
        if len(seeds) == 3:
            raise KeyboardInterrupt
        return draw(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(TextToImage, "__call__", interrupted)
    assert sample.main(command) == 130 and seeds == [5, 37, 69]
    assert "stopped; finished images: outputs/a-dog-5-2/grid.png" in capsys.readouterr().err
    content = json.loads((here / "outputs" / "a-dog-5-2" / "scores.json").read_text())
    pipe = TextToImage.from_pretrained(tiny_model, device="cpu")
    (expected,) = draw(pipe, "a dog", n=64, keep=3, seed=5, distinct=False, agreement=float(agreement))
    assert [one["seed"] for one in content["images"]] == expected.seeds


def test_grids_of_many_prompts_are_split_into_pages(tiny_model: Path, here: Path) -> None:
    prompts = [f"{i} red hearts" for i in range(60)]
    assert sample.main([*prompts, "--n", "1", "--model", str(tiny_model)]) == 0
    folder = here / "outputs" / "0-red-hearts-0"
    sizes = [Image.open(folder / name).size for name in ("grid.png", "grid-2.png", "grid-3.png")]
    assert not (folder / "grid-4.png").exists() and all(height <= 4000 for _, height in sizes)
    content = json.loads((folder / "scores.json").read_text())
    assert content["scored_by"] == "CLIP" and [one["prompt"] for one in content["images"]] == prompts


def strokes(left: int, right: int) -> Image.Image:
    """A drawing program's layer: white strokes, and white (not black) under what is transparent."""
    layer = Image.new("RGBA", (IMAGE_SIZE, IMAGE_SIZE), (255, 255, 255, 0))
    layer.paste((255, 255, 255, 255), (left, 0, right, IMAGE_SIZE))
    return layer


def test_transparent_mask_pixels_keep_the_image(tiny_model: Path, here: Path) -> None:
    strokes(4, 8).save("strokes.png")
    command = ["a", "--n", "1", "--no-grid", "--image", "face.png", "--mask", "strokes.png", "--model", str(tiny_model)]
    assert sample.main(command) == 0
    (file,) = (here / "outputs").glob("*/*.png")
    changed = ImageChops.difference(Image.open(file), Image.open("face.png")).getbbox()
    assert changed is not None and (changed[0], changed[2]) == (4, 8)


def test_print_config_shows_the_resolved_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert sample.main(["a dog", "--top-k", "5", "--print-config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert set(shown) == {field.name for field in fields(SampleConfig)}
    assert (shown["prompts"], shown["sampling"], shown["out"]) == (["a dog"], {"top_k": 5}, "outputs")


def test_help_lists_every_option_without_loading_torch() -> None:
    run = [sys.executable, "-X", "importtime", "sample.py", "--help"]
    shown = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "dalle.config" in imported and "torch" not in imported
    text = " ".join(shown.stdout.split())
    for flag in ("--n INT", "--keep-rows FLOAT", "--mask PATH", "--no-grid", "(default: outputs)", "float32,bfloat16"):
        assert flag in text
    assert "Seed of the first candidate" in text
