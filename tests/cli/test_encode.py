"""`python -m dalle encode`: shards train as images do; killed at any moment; every wrong input is one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from PIL import Image

import train
from dalle.__main__ import main
from dalle.checkpoints import model_folder
from dalle.data.token_shards.files import read_index
from dalle.data.token_shards.provenance import TokenProvenance
from dalle.files import FileLock
from support.tiny_model import DALLE_MODEL, make_tiny_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_state() -> Iterator[None]:
    """Accelerate holds the first settings of a process for good."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def recipe(parts: Path, folder: Path, data: dict) -> Path:
    content = {
        "stage": "dalle",
        "model": DALLE_MODEL,
        "data": data,
        "optim": {"lr": 1e-2, "warmup": 2},
        "run": {"dir": str(folder / "run"), "steps": 9, "batch_size": 8, "device": "cpu", "tracker": "none"}
        | {"log_every": 1, "validate_every": 4, "validation_images": 20},
        "text_tokenizer": str(parts / "text_tokenizer"),
        "image_tokenizer": str(parts / "image_tokenizer"),
        "bpe_dropout": 0.2,
        "caption_dropout": 0.2,
    }
    file = folder / f"{data['kind']}.yaml"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def figures(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = ("_per_s", "_gb", "data_wait")
    return [{name: value for name, value in line.items() if not name.endswith(rates)} for line in lines]


@pytest.mark.parametrize("shuffle", [{"shift": 0.0, "size": 40}, {"shift": 0.05, "size": 80}])
def test_training_on_token_shards_equals_training_on_images(shuffle: dict, tiny_parts: Path, tmp_path: Path) -> None:
    """Over epochs where nothing varies in an image, else in the first epoch; dropouts of captions are on."""
    config = str(recipe(tiny_parts, tmp_path, {"kind": "shapes"} | shuffle))
    assert main(["encode", config, str(tmp_path / "tokens"), "--shard-images", "32"]) == 0
    assert train.main([config, f"run.dir={tmp_path / 'images'}"]) == 0
    from_tokens = str(recipe(tiny_parts, tmp_path, {"kind": "tokens", "path": str(tmp_path / "tokens")}))
    assert train.main([from_tokens, f"run.dir={tmp_path / 'shards'}"]) == 0
    expected = figures(tmp_path / "images")
    assert figures(tmp_path / "shards") == expected
    losses = [line["train/image"] for line in expected if "train/image" in line]
    assert len(losses) == 9 and len(set(losses)) == 9
    assert sum("validation/image_nats" in line for line in expected) == 3


def test_eval_on_token_shards_equals_eval_on_images(
    tiny_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(recipe(tiny_parts, tmp_path, {"kind": "shapes", "size": 40}))
    tokens = tmp_path / "tokens"
    assert main(["encode", config, str(tokens)]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"{tokens}: 40 rows of train, 5 rows of validation in 2 shards, 0.0 MB; broken records")
    figures = []
    for data in (["kind=shapes", "size=40"], ["kind=tokens", f"path={tokens}"]):
        assert (
            main(["eval", str(tiny_parts / "model"), *data, "--split", "validation", "--device", "cpu", "--json"]) == 0
        )
        figures.append(json.loads(capsys.readouterr().out)["splits"])
    assert figures[0] == figures[1]
    assert main(["eval", str(tiny_parts / "image_tokenizer"), "kind=tokens", f"path={tokens}"]) == 2
    assert "holds codes and no images" in capsys.readouterr().err


def test_token_shards_of_another_image_tokenizer_are_refused(
    tiny_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(recipe(tiny_parts, tmp_path, {"kind": "shapes", "size": 40}))
    tokens, other = tmp_path / "tokens", make_tiny_model(tmp_path / "other", clip=False, seed=1).parent
    assert main(["encode", config, str(tokens)]) == 0
    assert "45/45" in capsys.readouterr().err
    hashes = [model_folder.folder_hash(folder / "image_tokenizer") for folder in (tiny_parts, other)]
    from_tokens = str(recipe(tiny_parts, tmp_path, {"kind": "tokens", "path": str(tokens)}))
    assert train.main([from_tokens, f"image_tokenizer={other / 'image_tokenizer'}"]) == 2
    first = capsys.readouterr().err
    assert main(["eval", str(other / "model"), "kind=tokens", f"path={tokens}", "--split", "validation"]) == 2
    second = capsys.readouterr().err
    for told in (first, second):
        assert f"sha256 {hashes[0]}" in told and f"has {hashes[1]}" in told and told.count("\n") == 1
    assert main(["encode", config, str(tokens), f"image_tokenizer={other / 'image_tokenizer'}"]) == 2
    assert f"image tokenizer was {hashes[0]}, is now {hashes[1]}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


WRONG = {
    "another stage": (["configs/emoji/clip.yaml", "OUT"], "is of stage clip: give a recipe of stage dalle, prior"),
    "no recipe": (["nowhere.yaml", "OUT"], "nowhere.yaml: no such file"),
    "no views": (["configs/emoji/dalle.yaml", "OUT", "--views", "0"], "views is 0: give at least 1"),
    "shards of shards": (["TOKENS", "OUT"], "data.kind is tokens already"),
    "a file": (["configs/shapes/dalle.yaml", "README.md", "image_tokenizer=IMAGES"], "README.md"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_give_a_one_line_error(
    name: str, tiny_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    arguments, told = WRONG[name]
    tokens = recipe(tiny_parts, tmp_path, {"kind": "tokens", "path": str(tmp_path)})
    named = {"OUT": str(tmp_path / "out"), "TOKENS": str(tokens)}
    named["image_tokenizer=IMAGES"] = f"image_tokenizer={tiny_parts / 'image_tokenizer'}"
    assert main(["encode", *(named.get(argument, argument) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("dalle encode: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def encoding(config: Path, out: Path, processes: int = 1) -> list[str]:
    start = (
        [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    )
    options = ["--shard-images", "16", "--batch-size", "8", "--device", "cpu"]
    return [sys.executable, *start, "-m", "dalle", "encode", str(config), str(out), *options]


def test_two_encodings_in_one_folder_are_refused(
    tiny_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = recipe(tiny_parts, tmp_path, {"kind": "shapes", "size": 20}), tmp_path / "out"
    given = ["encode", str(config), str(out), "--device", "cpu"]
    out.mkdir()
    (out / ".part-1-train.parquet").write_text("of the other, or of one that was killed")
    with FileLock(out / ".lock"):
        assert main(given) == 2
        assert f"this process is encoding into {out}: wait for it" in capsys.readouterr().err
        assert (out / ".part-1-train.parquet").exists()
    assert main(given) == 0
    assert {path.suffix for path in out.iterdir()} == {".parquet", ".json"}


def test_broken_records_alone_are_an_error_and_read_again_when_mended(
    tiny_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for name in "abc":
        (images / f"{name}.png").write_bytes(b"")
        (images / f"{name}.txt").write_text(f"image {name}")
    given = ["encode", str(recipe(tiny_parts, tmp_path, {"kind": "pairs", "path": str(images)})), str(out)]
    given += ["--device", "cpu"]
    assert main(given) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("dalle encode: all 3 records of train are broken, for example a.png: the file is empty")
    for name in "abc":
        Image.new("RGB", (16, 16), "red").save(images / f"{name}.png")
    assert main(given) == 0
    shards = read_index(out, TokenProvenance).shards
    assert shards is not None and sum(shard.rows for shard in shards["train"]) == 3


@pytest.mark.slow
def test_encoding_killed_repeatedly_ends_with_the_same_shards(tiny_parts: Path, tmp_path: Path) -> None:
    config = recipe(tiny_parts, tmp_path, {"kind": "shapes", "size": 2000})
    whole, out = tmp_path / "whole", tmp_path / "out"
    subprocess.run(encoding(config, whole), check=True, cwd=ROOT)
    for signal_number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        before = len(list(out.glob("*.parquet")))
        process = subprocess.Popen(
            encoding(config, out),
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run behind an `&`
        )
        while process.poll() is None and len(list(out.glob("*.parquet"))) < before + 3:
            pass
        process.send_signal(signal_number)
        _, told = process.communicate()
        assert (
            process.returncode in (-signal_number, 128 + signal_number)
            and read_index(out, TokenProvenance).shards is None
        )
        if process.returncode > 0:
            assert told.splitlines()[-1] == "dalle encode: stopped; complete shards are kept: the same command goes on"
    subprocess.run(encoding(config, out), check=True, cwd=ROOT)
    assert {f.name: f.read_bytes() for f in out.iterdir()} == {f.name: f.read_bytes() for f in whole.iterdir()}


@pytest.mark.slow
def test_two_processes_write_the_same_shards_as_one(tiny_parts: Path, tmp_path: Path) -> None:
    config = recipe(tiny_parts, tmp_path, {"kind": "shapes", "size": 200})
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for processes in (1, 2):
        command = encoding(config, tmp_path / str(processes), processes)
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.count("rows of train") == 1
        assert ("encoding:" if processes == 1 else "process 1 of 2:") in done.stderr
    one, two = ({f.name: f.read_bytes() for f in (tmp_path / n).iterdir()} for n in ("1", "2"))
    assert one == two and TokenProvenance.index in one and len(one) > 13
