"""`python -m dalle eval` and `export`: what they print and write, and that every wrong input is one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import dalle
from dalle.__main__ import main
from dalle.data import ShapesConfig
from dalle.evaluation.run import evaluate

ROOT = Path(__file__).parents[2]
SHAPES = ["kind=shapes", "size=64"]


@pytest.mark.parametrize("name", ["image_tokenizer", "clip", "model"])
def test_eval_prints_what_evaluate_gives(
    tiny_parts: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dalle.evaluation.run.feature_network", lambda device: None)  # a second each time
    expected = evaluate(tiny_parts / name, ShapesConfig(size=64), limit=5)
    options = [str(tiny_parts / name), *SHAPES, "--limit", "5", "--batch-size", "2", "--device", "cpu"]
    assert main(["eval", *options, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["source"], printed["data"], list(printed["splits"])) == (
        str(tiny_parts / name),
        "shapes",
        list(expected),
    )
    for split, metrics in expected.items():
        assert printed["splits"][split] == pytest.approx(metrics, rel=1e-3)
    assert main(["eval", *options, "--split", "validation"]) == 0
    title, splits, *lines = capsys.readouterr().out.splitlines()
    assert title == str(tiny_parts / name) and splits.split() == ["validation"]
    shown = {line.split()[0]: line.split()[1] for line in lines}
    for measure, value in expected["validation"].items():
        assert shown[measure] == "-" if value is None else float(shown[measure]) == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8", "float32"])
def test_export_error_is_within_its_dtype(
    tiny_parts: Path, dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("a card")
    assert main(["export", str(tiny_parts), str(tmp_path / "out"), "--dtype", dtype]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'out'}: 0.")
    before, after = (dalle.load_model(folder).state_dict() for folder in (tiny_parts / "model", tmp_path / "out"))
    error = {"float32": 0.0, "float16": 2**-10, "bfloat16": 2**-7, "int8": 1 / 127}[dtype]
    for name, value in before.items():
        assert (after[name] - value).abs().max() <= error * value.abs().max(), name
    assert (tmp_path / "out" / "README.md").read_text() == "a card"
    pipe = dalle.TextToImage.from_pretrained(tmp_path / "out", device="cpu")
    assert torch.isfinite(torch.tensor(pipe("a red circle")[0].scores)).all()


def test_classify_prints_the_classifiers_probabilities(
    tiny_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        Image.effect_noise((9, 9), 30 * number + 1).convert("RGB").save(tmp_path / f"{number}.png")
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    classifier = dalle.ZeroShotClassifier.from_pretrained(["दिल", "star"], tiny_parts / "clip", ["a {}"], "cpu")
    options = ["--labels", "दिल,star", "--clip", str(tiny_parts / "clip"), "--template", "a {}", "--device", "cpu"]
    assert main(["classify", str(tmp_path), *options, "--json"]) == 0
    out, err = capsys.readouterr()
    bad, *rest = json.loads(out)["images"][-1:] + json.loads(out)["images"][:-1]
    assert bad["image"] == str(tmp_path / "bad.jpg") and "error" in bad and "skipped" in err
    for number, found in enumerate(rest):
        (expected,) = classifier(tmp_path / f"{number}.png")
        assert [one["label"] for one in found["labels"]] == expected.labels
        assert [one["probability"] for one in found["labels"]] == pytest.approx(expected.probabilities, abs=1e-5)
    assert main(["classify", str(tmp_path / "0.png"), *options, "--top", "1"]) == 0
    title, line = capsys.readouterr().out.splitlines()
    assert title == str(tmp_path / "0.png") and line.split()[1] == classifier(tmp_path / "0.png")[0].labels[0]


def test_eval_classify_prints_accuracy_and_writes_the_confusion_image(
    tiny_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--by", "group", "--split", "test_block", "--clip", str(tiny_parts / "clip"), "--device", "cpu"]
    assert main(["eval", "classify", "emoji", *options, "--confusion", str(tmp_path / "new" / "c.png")]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "emoji, 121 images, 8 labels" and [line.split()[0] for line in lines][:2] == ["top_1", "top_5"]
    assert Image.open(tmp_path / "new" / "c.png").width > 8 * 40
    assert main(["eval", "classify", "emoji", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert float(lines[0].split()[1]) == pytest.approx(found["top_1"], abs=1e-4)
    assert sum(map(sum, found["confusion"])) == found["images"] == 121


@pytest.fixture(scope="module")
def index(tiny_parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of five images with captions."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(5):
        Image.effect_noise((9, 9), 30 * number + 1).convert("RGB").save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"दिल {number}\n", encoding="utf-8")
    out = tmp_path_factory.mktemp("out") / "index"
    assert main(["index", str(folder), "--out", str(out), "--clip", str(tiny_parts / "clip"), "--device", "cpu"]) == 0
    return out


def test_index_and_search_commands_print_and_export(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["index", "--out", str(index), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["images"], told["unchanged"], told["embedded"], told["broken"]) == (5, 5, 0, [])
    assert main(["index", "--out", str(index), "--export", str(tmp_path / "out.parquet")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out.parquet'}: 5 vectors\n"
    assert main(["search", str(index), "दिल", "--minus", "a star", "--top", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["query"] == "दिल − a star" and len(found["found"]) == 3
    assert main(["search", str(index), "दिल", "--minus", "a star", "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [hit["path"] for hit in found["found"]]
    assert main(["search", str(index), "a", "--html", str(tmp_path / "a.html")]) == 0
    assert (tmp_path / "a.html").read_text(encoding="utf-8").count("<figure>") == 5
    assert main(["search", str(index), "--image", found["found"][0]["path"], "--captions"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 5  # after the name of the page
    assert main(["search", str(index), "--duplicates", "1"]) == 0


def test_show_opens_the_page_in_a_browser(
    index: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: bool(opened.append(address)) or len(opened) == 1)
    assert main(["search", str(index), "a", "--show"]) == 0 and opened[0].endswith("found.html")
    capsys.readouterr()
    assert main(["search", str(index), "a", "--show"]) == 2
    assert "no browser could be opened" in capsys.readouterr().err


WRONG = {
    "nothing there": (["eval", "./nowhere"], "nowhere: no such file or folder"),
    "no weights": (["eval", "EMPTY", *SHAPES], "(no config.yaml)"),
    "truncated": (["eval", "BROKEN", *SHAPES], "model.safetensors is not a safetensors file, or is truncated"),
    "unknown key": (["eval", "RUN", "kind=shapes", "sizes=3"], "command line: sizes: unknown key; did you mean size?"),
    "wrong type": (["eval", "RUN", "kind=shapes", "size=few"], "size: expected an integer, got 'few'"),
    "unknown kind": (["eval", "RUN", "kind=shape"], "kind: expected one of drawings, shapes"),
    "unknown split": (["eval", "RUN", *SHAPES, "--split", "dev"], "unknown data split 'dev'"),
    "no images": (["eval", "RUN", *SHAPES, "--limit", "0"], "limit is 0"),
    "no such device": (["eval", "RUN", *SHAPES, "--device", "abacus"], "no device 'abacus'"),
    "no source": (["eval"], "required: SOURCE"),
    "no command": ([], "required: COMMAND"),
    "unknown command": (["evaluate"], "invalid choice: 'evaluate'"),
    "export of nothing": (["export", "EMPTY", "OUT"], "is no folder of a run"),
    "dtype": (["export", "RUN", "OUT", "--dtype", "int4"], "invalid choice: 'int4'"),
    "no labels": (["classify", "FILE"], "no labels: give --labels"),
    "one label": (["classify", "FILE", "--labels", "a"], "1 label: give 2 at least"),
    "labels twice over": (["classify", "FILE", "--labels", "a,b", "--labels-file", "FILE"], "give only one of them"),
    "templates twice over": (
        ["classify", "FILE", "--labels", "a,b", "--template", "{}", "--templates", "plain"],
        "both",
    ),
    "templates of no name": (["classify", "FILE", "--labels", "a,b", "--templates", ""], "no set of templates ''"),
    "subclasses of no file": (
        ["classify", "FILE", "--labels", "a,b", "--subclasses"],
        "--subclasses needs --labels-file",
    ),
    "calibration into a folder": (
        ["eval", "classify", "emoji", "--calibrate", "EMPTY"],
        "name of a file as --calibrate",
    ),
    "empty labels file": (["classify", "FILE", "--labels-file", "FILE"], "is empty: expected one label per line"),
    "empty folder": (["classify", "EMPTY", "--labels", "a,b"], "holds no images"),
    "no image there": (["classify", "./nowhere", "--labels", "a,b"], "no such file or folder"),
    "classify a URL": (["classify", "https://a.org/b.png", "--labels", "a,b"], "b.png is a URL, which is not fetched"),
    "index a URL": (["index", "https://a.org/b.png", "--out", "INDEX"], "https://a.org/b.png is a URL, which is not"),
    "classes of a URL": (["eval", "classify", "https://a.org/b?c=1"], "https://a.org/b?c=1 is a URL, which is not"),
    "an empty image": (["classify", "FILE", "--labels", "a,b", "--clip", "CLIP"], "file: the file is empty"),
    "no CLIP": (["classify", "FILE", "--labels", "a,b", "--clip", "RUN"], "holds a DALL-E, expected a CLIP"),
    "no index": (["search", "./nowhere", "a"], "no index: make one with"),
    "no query": (["search", "INDEX"], "no query: give a text, an image, or both"),
    "captions of nothing": (["search", "INDEX", "--captions"], "--captions takes one --image"),
    "a filter that is none": (["search", "INDEX", "a", "--where", "hue=red"], "filter 'hue=red'"),
    "html and json": (["search", "INDEX", "a", "--html", "x", "--json"], "not allowed with"),
    "another CLIP": (["search", "INDEX", "a", "--clip", "models/emoji/clip"], "was made with another CLIP"),
    "nothing to index": (["index", "--out", "OUT"], "say which images are to be indexed"),
    "index of nothing": (["index", "EMPTY", "--out", "INDEX"], "holds no images"),
    "index over other things": (["index", "EMPTY", "--out", "RUNS"], "holds other things than an index"),
    "no classes": (["eval", "classify", "EMPTY"], "holds no images"),
    "no such split": (["eval", "classify", "emoji", "--split", "dev"], "unknown data split 'dev'"),
    "out is a file": (["export", "RUNS", "FILE/out"], "is not a folder that can be written"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_give_a_one_line_error(
    tiny_parts: Path, index: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    broken = make_broken(tiny_parts / "image_tokenizer", tmp_path / "broken")
    places = {"EMPTY": tmp_path / "empty", "BROKEN": broken, "OUT": tmp_path / "out"}
    places |= {"RUNS": tiny_parts, "RUN": tiny_parts / "model", "CLIP": tiny_parts / "clip"}
    places |= {"FILE": tmp_path / "file", "INDEX": index}
    arguments, message = WRONG[name]
    arguments = [str(places.get(a, a)).replace("FILE", str(tmp_path / "file")) for a in arguments]
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse's own
        code = stop.code  # type: ignore[assignment]
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert message in err and err.startswith("dalle") and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def make_broken(source: Path, target: Path) -> Path:
    """A copy of a folder of weights whose file lacks its end."""
    target.mkdir()
    (target / "config.yaml").write_bytes((source / "config.yaml").read_bytes())
    (target / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-100])
    return target


def test_closed_pipe_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As of `| head -1`, which ends while a command still prints."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as closed, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", closed)
        assert main(["plan", str(ROOT / "configs/paper/dalle-12b.yaml")]) == 141
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_closed_pipe_is_no_error_of_a_process() -> None:
    command = [sys.executable, "-m", "dalle", "plan", "configs/paper/dalle-12b.yaml"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 141
