"""Scripts of benchmarks/ and docs/: errors are one line and exit code 2, and figures are those of the options given."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

import train
from dalle.cli.tool import run_tool

ROOT = Path(__file__).parents[2]
RECIPE = "configs/emoji/dalle.yaml"
PARTS = ("text_tokenizer=tokenizers/emoji-bpe", "image_tokenizer=tokenizers/emoji-vqgan-8x8", "run.batch_size=2")
STUDY = ("benchmarks/scaling.py", RECIPE, *PARTS, "--sizes", "64x1", "--budgets", "0.01")


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    """The exit code of a script."""
    monkeypatch.setattr(sys, "argv", list(words))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(words[0], run_name="__main__")
    return ended.value.code


GALLERY, SCALING, ABLATION = "docs/gallery.py", "benchmarks/scaling.py", "benchmarks/ablation.py"
BAD = {
    "gallery without a model": ([GALLERY, "/nowhere"], "/nowhere"),
    "gallery of a CLIP": ([GALLERY, "models/emoji/clip"], "clip"),
    "no candidates": ([GALLERY, "--n", "0"], "n is 0"),
    "more kept than there are": ([GALLERY, "--n", "1", "--keep", "4"], "keep is 4"),
    "negative seed": ([GALLERY, "--seed", "-1"], "-1"),
    "no such option": ([GALLERY, "--nope"], "unrecognized arguments: --nope"),
    "no recipe": ([SCALING, "/nowhere"], "/nowhere"),
    "another stage": ([SCALING, "configs/shapes/clip.yaml"], "is of stage clip: give a recipe of stage dalle"),
    "no size": ([SCALING, RECIPE, "--sizes", "abc"], "argument --sizes: 'abc' is not a whole number of at least 1"),
    "half a size": ([SCALING, RECIPE, "--sizes", "64x"], "argument --sizes: '' is not"),
    "size of 0": ([SCALING, RECIPE, "--sizes", "0x0"], "argument --sizes: '0' is not"),
    "budget nan": ([SCALING, RECIPE, "--budgets", "nan"], "argument --budgets: 'nan' is not a finite number above 0"),
    "budget inf": ([SCALING, RECIPE, "--budgets", "inf"], "argument --budgets: 'inf' is not"),
    "negative budget": ([SCALING, RECIPE, "--budgets", "-3"], "argument --budgets: '-3' is not"),
    "budget of no step": ([SCALING, RECIPE, *PARTS, "--budgets", "1e-9"], "1e-09 TFLOP is less than a step of 128x4"),
    "learning rate nan": ([SCALING, RECIPE, "--lr", "nan"], "argument --lr: 'nan' is not"),
    "option of the study": ([SCALING, RECIPE, "optim.lr=1"], "optim.lr is chosen for each run: give --lr instead"),
    "unknown metric": ([ABLATION, RECIPE, *PARTS, "--metrics", "nope"], "--metrics has no 'nope': choose from valid"),
    "one folder": ([ABLATION, RECIPE, *PARTS, "--variant", "a b", "--variant", "a-b"], "share the folder"),
    "one name": ([ABLATION, RECIPE, *PARTS, "--variant", "a", "--variant", "a"], "--variant 'a' is given twice"),
    "no steps": ([ABLATION, RECIPE, *PARTS, "run.steps=0"], "run.steps is 0: train 1 step at least"),
    "no such override": ([ABLATION, RECIPE, "nope=1"], "nope"),
    "stage without metrics": ([ABLATION, "tokenizers/emoji-bpe/config.yaml"], "has no metrics"),
}


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_a_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(train, "train", lambda recipe: pytest.fail("trained"))
    assert run(monkeypatch, *words, "--out", str(tmp_path / "out")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{Path(words[0]).name}: ") and message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [[GALLERY], [SCALING, RECIPE], [ABLATION, RECIPE]])
def test_out_is_checked_first(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *words, "--out", "/proc/x") == 2
    assert re.fullmatch(r"\S+\.py: /proc/x cannot be made .*: give another folder as --out\n", capsys.readouterr().err)


def test_every_script_with_arguments_ends_so() -> None:
    scripts = [file for folder in ("benchmarks", "docs") for file in (ROOT / folder).glob("*.py")]
    parsing = [file for file in scripts if re.search(r"ArgumentParser\(|CommandLine\(", file.read_text("utf-8"))]
    assert len(parsing) > 20
    for file in parsing:
        text = file.read_text("utf-8")
        assert "ArgumentParser(" not in text and "run_tool(main)" in text, file
        assert f'explain_startup_errors("{file.name}")' in text, file


def test_interrupt_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["docs/gallery.py"])
    assert run_tool(interrupted) == 130
    assert capsys.readouterr().err == "gallery.py: stopped\n"


def test_scaling_reports_no_other_runs_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished run is read again with the same options alone; other options, or a damaged result, are a line."""
    trained = []

    def short(argv: list[str]) -> int:
        folder = Path(next(word for word in argv if word.startswith("run.dir=")).removeprefix("run.dir="))
        folder.mkdir(parents=True)
        metrics = {"step": 1, "validation/image_nats": 7.5, "validation/text_nats": 6.5}
        (folder / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
        trained.append(folder)
        return 0

    monkeypatch.setattr(train, "main", short)
    out = tmp_path / "out"
    for _ in range(2):
        assert run(monkeypatch, *STUDY, "--out", str(out)) == 0
    assert len(trained) == 1
    (result,) = json.loads((out / "results.json").read_text())["results"]
    assert (result["image_nats"], result["width"], result["depth"]) == (7.5, 64, 1)
    before = (out / "results.json").read_bytes()
    capsys.readouterr()
    for other in (["run.seed=77"], ["optim.kind=adamw"], ["--lr", "0.5"], ["model.transformer.dropout=0.1"]):
        assert run(monkeypatch, *STUDY, "--out", str(out), *other) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "was trained with" in line and line.endswith("give another --out")
    assert (out / "results.json").read_bytes() == before and len(trained) == 1
    for damaged in ("{", "[]", json.dumps(result)):
        (trained[0] / "scaling.json").write_text(damaged)
        assert run(monkeypatch, *STUDY, "--out", str(out)) == 2
        assert "scaling.json is damaged, or of an earlier version: delete" in capsys.readouterr().err


def test_ablation_writes_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A metric that one variant leaves out is a dash; one that none logs is a line."""

    def short(argv: list[str]) -> int:
        folder = Path(next(word for word in argv if word.startswith("run.dir=")).removeprefix("run.dir="))
        folder.mkdir(parents=True, exist_ok=True)
        metrics = {"step": 1, "train/image": 7.0} | ({} if "z_weight=0" in argv else {"train/image_z": 0.25})
        (folder / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
        return 0

    monkeypatch.setattr(train, "main", short)
    words = [ABLATION, RECIPE, *PARTS, "--variant", "no z", "z_weight=0", "--out", str(tmp_path)]
    assert run(monkeypatch, *words, "--metrics", "train/image", "train/image_z") == 0
    assert (tmp_path / "results.md").read_text().splitlines()[2:] == ["| as it is | 7 | 0.25 |", "| no z | 7 | - |"]
    capsys.readouterr()
    assert run(monkeypatch, *words, "--metrics", "train/nope") == 2
    assert "no run logs train/nope: choose from train/image, train/image_z" in capsys.readouterr().err
