"""A file of prompts: every image is the one it is alone, however the work is shared, stopped and gone on with."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from support.tiny_model import make_tiny_model
from support.tiny_unclip import make_tiny_unclip

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import sample  # noqa: E402
from dalle.data.custom.webdataset import TarSource  # noqa: E402
from dalle.files import FileLock  # noqa: E402
from dalle.pipelines.familiarity import unfamiliar_words  # noqa: E402
from dalle.pipelines.text_to_image import TextToImage  # noqa: E402
from dalle.pipelines.unclip import UnCLIP  # noqa: E402

ROWS: list[dict[str, Any]] = [
    {"prompt": "a red heart"},
    {"prompt": "लाल दिल", "seed": 11, "guidance": 2.0},
    {"prompt": "", "n": 3, "keep": 2, "temperature": 0.7},
    {"prompt": "two green stars", "top_k": 5},
    {"prompt": "a red heart", "seed": 2**62 - 9},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="module")
def alone(model: Path) -> dict[tuple[int, int], bytes]:
    """Pixels of each image that is kept, drawn alone, by the number of its row and its seed."""
    pipe = TextToImage.from_pretrained(model, device="cpu")
    found = {}
    for number, row in enumerate(ROWS):
        options = {"n": 2, "seed": 3} | row
        (result,) = pipe(options.pop("prompt"), **options)
        found |= {(number, seed): image.tobytes() for seed, image in zip(result.seeds, result.images, strict=True)}
    return found


@pytest.fixture
def arguments(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    common = ["--prompts-file", "prompts.jsonl", "--n", "2", "--seed", "3", "--out", "drawn", "--device", "cpu"]
    return [*common, "--shard-size", "2", "--model", str(model)]


# Both write one file for many prompts, with the same bookkeeping
FEWER_KINDS = ["folders", "shards", pytest.param("parquet", marks=pytest.mark.slow)]


def as_process(rank: int, world: int, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    return sample.main(arguments)


def images(kind: str) -> dict[tuple[int, int], bytes]:
    """PNG files of a finished run, by row and seed; none is there twice."""
    found: list[tuple[str, bytes]] = []
    if kind == "folders":
        found = [(path.stem, path.read_bytes()) for path in Path("drawn").glob("0*/*.png")]
    elif kind == "shards":
        for path in Path("drawn").glob("*.tar"):
            with tarfile.open(path) as tar:
                members = [(Path(one.name), tar.extractfile(one)) for one in tar.getmembers()]
                found += [(name.stem, file.read()) for name, file in members if file and name.suffix == ".png"]
    else:
        for path in Path("drawn").glob("*.parquet"):
            rows = pq.read_table(path).to_pylist()
            found += [(Path(row["image"]["path"]).stem, row["image"]["bytes"]) for row in rows]
    keys = [(int(name[:8]), int(name.rpartition("seed")[2])) for name, _ in found]
    assert len(set(keys)) == len(keys)
    return {key: data for key, (_, data) in zip(keys, found, strict=True)}


def pixels(files: dict[tuple[int, int], bytes]) -> dict[tuple[int, int], bytes]:
    return {key: Image.open(io.BytesIO(data)).convert("RGB").tobytes() for key, data in files.items()}


@pytest.mark.parametrize("kind", ["folders", "shards", "parquet"])
def test_processes_share_the_prompts(
    kind: str,
    arguments: list[str],
    alone: dict[tuple[int, int], bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert as_process(1, 2, [*arguments, "--write", kind], monkeypatch) == 0
    assert "process 2 of 2 is done; 2 parts are not finished" in capsys.readouterr().err
    assert not Path("drawn/report.json").exists()
    assert as_process(0, 2, [*arguments, "--write", kind], monkeypatch) == 0
    assert capsys.readouterr().out == "drawn\n"
    files = images(kind)
    assert pixels(files) == alone and len(alone) == 10
    report = json.loads(Path("drawn/report.json").read_text())
    assert (report["prompts"], report["candidates"], report["images"], report["failed"]) == (5, 11, 10, [])
    texts = Image.open(io.BytesIO(files[1, 11])).text  # type: ignore[attr-defined]
    assert texts["prompt"] == "लाल दिल" and json.loads(texts["options"])["guidance"] == 2.0


def test_records_say_how_each_image_was_rated(model: Path, arguments: list[str]) -> None:
    rated = [*arguments, "--agreement", "0.5"]
    assert sample.main([*rated, "--write", "shards"]) == 0
    (result,) = TextToImage.from_pretrained(model, device="cpu")(
        "", n=3, keep=2, seed=3, temperature=0.7, agreement=0.5
    )
    with tarfile.open("drawn/000001.tar") as tar:
        first, second = (file for one in tar if one.name.startswith("00000002") and (file := of_json(tar, one)))
    for rank, found in enumerate((first, second)):
        own = {"prompt": "", "seed": result.seeds[rank], **result.scores_of(rank)}
        options = found.pop("options")
        assert found == pytest.approx(own) and (options["agreement"], options["temperature"]) == (0.5, 0.7)
        assert found["agreement"] < 0
    again = [word.replace("drawn", "table") for word in rated]
    assert sample.main([*again, "--write", "parquet"]) == 0
    rows = [row for row in pq.read_table("table/000001.parquet").to_pylist() if row["number"] == 2]
    assert [(row["score"], row["agreement"]) for row in rows] == [
        pytest.approx((found["score"], found["agreement"])) for found in (first, second)
    ]
    images = json.loads(Path("drawn/parts/000001.json").read_text())["images"]
    assert [one["agreement"] for one in images if one["key"].startswith("00000002")] == pytest.approx(
        [first["agreement"], second["agreement"]]
    )


def of_json(tar: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any] | None:
    """The content of a JSON file of a shard; None of another file."""
    file = tar.extractfile(member)
    return json.load(file) if file is not None and member.name.endswith(".json") else None


def test_shards_are_read_as_training_data(arguments: list[str]) -> None:
    assert sample.main([*arguments, "--write", "shards"]) == 0
    records = TarSource(sorted(Path("drawn").glob("*.tar")), None, None).rows()
    assert len(records) == 10
    assert {records.record(i).captions for i in range(4)} == {("a red heart",), ("लाल दिल",)}


@pytest.mark.parametrize("kind", FEWER_KINDS)
def test_killed_run_resumes_after_the_last_complete_part(
    kind: str, arguments: list[str], alone: dict[tuple[int, int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, calls = TextToImage.draw, []

    class Killed(BaseException):
        """As SIGKILL: no handler of the command runs on it."""

    def interrupted(self: TextToImage, *args: Any, **options: Any) -> Any:
        calls.append(args[0][0].prompt)
        if len(calls) == 4:
            raise Killed
        return draw(self, *args, **options)

    monkeypatch.setattr(TextToImage, "draw", interrupted)
    arguments = [*arguments, "--write", kind, "--batch-size", "2"]
    with pytest.raises(Killed):
        sample.main(arguments)
    done = {path.name for path in Path("drawn/parts").iterdir()}
    assert done == {"000000.json"}
    calls.clear()

    def counted(self: TextToImage, *args: Any, **options: Any) -> Any:
        calls.append(args[0][0].prompt)
        return draw(self, *args, **options)

    monkeypatch.setattr(TextToImage, "draw", counted)
    assert sample.main(arguments) == 0
    assert calls == ["", "two green stars", "a red heart"]  # the first part is not drawn again
    assert pixels(images(kind)) == alone
    assert not list(Path("drawn").rglob(".part-*"))
    calls.clear()
    assert sample.main(arguments) == 0 and calls == []


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"],
    "accelerate": ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--main_process_port", "0"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_start_processes_that_share_the_prompts(
    launcher: str, arguments: list[str], alone: dict[tuple[int, int], bytes]
) -> None:
    name = ["-m", "--"] if launcher == "torchrun" else ["-m"]  # else torchrun takes --n for one of its own
    command = [sys.executable, "-m", *LAUNCHERS[launcher], *name, "dalle", "sample", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "drawn"  # of the process that finishes last
    assert pixels(images("folders")) == alone


@pytest.mark.slow
def test_killed_processes_end_with_each_image_once(arguments: list[str], alone: dict[tuple[int, int], bytes]) -> None:
    """A real process, killed over and over at another place of its output, ends with each image once."""
    command = [sys.executable, str(ROOT / "sample.py"), *arguments, "--write", "shards", "--batch-size", "1"]
    for number in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=Path.cwd())
        while process.poll() is None:
            parts = Path("drawn/parts")
            if parts.is_dir() and len(list(parts.glob("0*.json"))) > number:
                process.send_signal(signal.SIGKILL)
                process.wait()
    subprocess.run(command, check=True, capture_output=True)
    assert pixels(images("shards")) == alone


def test_failing_prompt_is_reported_and_the_others_are_generated(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("prompts.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": "\\ud800"}\n')  # half of a surrogate pair: JSON, but no text
    assert sample.main(arguments) == 1
    assert "1 of 6 prompts could not be drawn: drawn/report.json" in capsys.readouterr().err
    (failed,) = json.loads(Path("drawn/report.json").read_text())["failed"]
    assert failed["place"] == "line 6" and failed["prompt"] == "\\ud800" and "surrogate" in failed["error"]
    assert len(images("folders")) == 10


@pytest.mark.parametrize("kind", FEWER_KINDS)
def test_failed_prompts_are_tried_again_by_the_same_command(
    kind: str,
    arguments: list[str],
    alone: dict[tuple[int, int], bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing else is drawn again; what fails again is reported again; an attempt that draws nothing leaves nothing."""
    draw = TextToImage.draw
    bad, calls = {"", "two green stars"}, []

    def failing(self: TextToImage, requests: Any, *args: Any, **options: Any) -> Any:
        prompts = [request.prompt for request in requests]
        calls.append(prompts)
        if bad.intersection(prompts):
            raise RuntimeError("the weather is bad")
        return draw(self, requests, *args, **options)

    monkeypatch.setattr(TextToImage, "draw", failing)
    arguments = [*arguments, "--write", kind]
    arguments[arguments.index("--shard-size") + 1] = "3"
    assert sample.main(arguments) == 1
    assert "2 of 5 prompts" in capsys.readouterr().err and len(images(kind)) == 6
    before = sorted(Path("drawn").rglob("*"))
    calls.clear()
    assert sample.main(arguments) == 1
    assert calls == [[""], ["two green stars"]] and sorted(Path("drawn").rglob("*")) == before
    bad.remove("")
    assert sample.main(arguments) == 1 and "1 of 5 prompts" in capsys.readouterr().err
    assert len(images(kind)) == 8
    bad.clear()
    calls.clear()
    assert sample.main(arguments) == 0
    assert calls == [["two green stars"]] and pixels(images(kind)) == alone
    report = json.loads(Path("drawn/report.json").read_text())
    assert (report["images"], report["failed"]) == (10, [])


def test_prompts_without_a_visible_character_are_named(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, each once; an empty prompt asks for no caption."""
    monkeypatch.chdir(tmp_path)
    blank = "drawn without a caption, as no character of the prompt is visible: "
    options = ["--model", str(tiny_model), "--device", "cpu", "--n", "1"]
    assert sample.main(["", "   ", "\u200b", "\u200b", "a dog", *options, "--out", "few"]) == 0
    assert [text for text in caplog.messages if "caption" in text] == [blank + r"'   ', '\u200b'"]
    caplog.clear()
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"\u202e{' ' * i}"}) + "\n" for i in range(5)))
    assert sample.main(["--prompts-file", "prompts.jsonl", *options, "--out", "many"]) == 0
    (line,) = [text for text in caplog.messages if "caption" in text]
    assert line == blank + r"'\u202e', '\u202e ', '\u202e  ' and 2 more"


def test_unfamiliar_words_are_counted_and_named(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that `sample` tells of the same prompts."""
    monkeypatch.setattr("dalle.pipelines.familiarity.unfamiliar_words.__defaults__", (3.0,))
    monkeypatch.setattr("dalle.pipelines.familiarity.warn_of_unfamiliar_words.__defaults__", (3.0,))
    assert sample.main(arguments) == 0
    told = [text for text in caplog.messages if "hardly seen" in text]
    counts = json.loads(Path("drawn/report.json").read_text())["unfamiliar"]
    assert len(told) == 1 and "drawn/report.json" in told[0] and all(word in told[0] for word in counts)
    caplog.clear()
    prompts = [row["prompt"] for row in ROWS]
    assert sample.main([*prompts, "--n", "1", "--no-grid", "--device", "cpu", "--model", arguments[-1]]) == 0
    (line,) = [text for text in caplog.messages if "hardly seen" in text]
    assert set(line.rpartition(": ")[2].split(", ")) == set(counts)
    pipe = TextToImage.from_pretrained(arguments[-1], device="cpu")
    assert sum(counts.values()) == sum(map(len, unfamiliar_words(pipe.model, pipe.text_tokenizer, prompts, 3.0)))


def test_full_disk_gives_one_line_and_the_same_command_resumes(
    arguments: list[str], alone: dict[tuple[int, int], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """The system refuses what is written beyond a size, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        assert sample.main([*arguments, "--write", "shards"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "File too large" in last and "the same command continues from there" in last
    assert not list(Path("drawn").glob("*.tar")) and not list(Path("drawn/parts").iterdir())
    assert sample.main([*arguments, "--write", "shards"]) == 0
    assert pixels(images("shards")) == alone


def test_without_out_the_folder_is_named_after_the_prompts(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also beside other drawings, and the same command goes on there."""
    del arguments[arguments.index("--out") : arguments.index("--out") + 2]
    Path("outputs/a-dog-0").mkdir(parents=True)
    assert sample.main(arguments) == 0 and Path("outputs/prompts/report.json").is_file()
    monkeypatch.setattr(TextToImage, "draw", lambda *_, **__: pytest.fail("drawn again"))
    assert sample.main(arguments) == 0


WRONG = {
    "other options": (["--temperature", "0.5"], "drawn was begun with temperature 1.0, and this is 0.5"),
    "another format": (["--write", "shards"], 'was begun with write "folders"'),
    "another CLIP": (["--clip", "models/emoji/clip"], 'was begun with clip null, and this is "models/emoji/clip"'),
    "a prompt too": (["a dog"], "--prompts-file takes the place of PROMPT"),
}


@pytest.mark.parametrize("name", WRONG)
def test_folder_of_another_run_is_refused(name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    more, message = WRONG[name]
    assert sample.main(arguments) == 0
    assert sample.main([*more, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_what_was_given_at_the_start_is_given_again(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 64), "red").save("red.png")
    Image.new("L", (64, 64), "white").save("mask.png")
    assert sample.main([*arguments, "--image", "red.png", "--mask", "mask.png"]) == 0
    assert sample.main(arguments) == 2
    assert 'drawn was begun with image {"file": "red.png"' in capsys.readouterr().err


def test_a_folder_is_gone_on_with_by_the_same_weights_and_one_process(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample.main(arguments) == 0
    with FileLock(Path("drawn/.lock-0")):
        assert sample.main(arguments) == 2
    assert "this process is drawing into drawn: wait for it" in capsys.readouterr().err
    file = Path("drawn/run.json")
    content = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(content | {"model_sha256": "0" * 64}), "utf-8")
    assert sample.main(arguments) == 2
    assert 'drawn was begun with model_sha256 "000' in capsys.readouterr().err
    file.write_text(json.dumps({key: value for key, value in content.items() if key != "model_sha256"}), "utf-8")
    assert sample.main(arguments) == 0  # of an older version, which did not record it


def test_a_run_from_before_agreement_goes_on_without_it(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample.main(arguments) == 0
    file = Path("drawn/run.json")
    content = json.loads(file.read_text("utf-8"))
    del content["agreement"]
    file.write_text(json.dumps(content), encoding="utf-8")
    assert sample.main([*arguments, "--agreement", "0.5"]) == 2
    assert "drawn was begun with agreement 0.0, and this is 0.5" in capsys.readouterr().err
    assert sample.main([*arguments, "--agreement", "0"]) == 0


def test_other_wrong_inputs_give_a_one_line_error(
    arguments: list[str], model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("drawn").mkdir()
    Path("drawn/mine.txt").write_text("mine")
    assert sample.main(arguments) == 2 and "files of something else" in capsys.readouterr().err
    Path("prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "top_k": 0}\n')
    assert sample.main(arguments) == 2 and "prompts.jsonl, line 2: top_k is 0" in capsys.readouterr().err
    Path("prompts.jsonl").write_text('{"prompt": "a", "keep": 9}\n')
    assert sample.main(arguments) == 2 and "line 1: keep is 9 of n=2" in capsys.readouterr().err
    assert sample.main(["a", "--write", "shards", "--model", str(model)]) == 2
    assert "--write and --shard-size are for --prompts-file" in capsys.readouterr().err
    assert as_process(0, 2, ["a", "--model", str(model)], monkeypatch) == 2
    assert "several processes share a --prompts-file" in capsys.readouterr().err
    Path("drawn/mine.txt").unlink()
    Path("prompts.jsonl").write_text('{"prompt": "a", "negative": "blurry"}\n')
    assert sample.main(arguments) == 2 and "line 1: this model takes no negative prompt" in capsys.readouterr().err
    Path("prompts.jsonl").write_text('{"prompt": "a", "steps": 3}\n')
    assert sample.main(arguments) == 2 and "line 1: steps is not a sampling option" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "prompts.jsonl cannot be read: No such file"),
        ("[" * 20_000, "prompts.jsonl, line 1 is not JSON: it is nested too deeply"),
        ('{"prompt": "a", "seed": -1}', "prompts.jsonl, line 1: seed is -1"),
        ('{"prompt": "a", "top_p": 2}', "prompts.jsonl, line 1: top_p is 2"),
        ('{"prompt": "a\\u0000b"}', "line 1: the prompt has a NUL as character 2: remove it"),
        ('{"prompt": "a", "negative": "\\u0000"}', "line 1: the negative prompt has a NUL"),
        (json.dumps({"prompt": "a" * 10_000_000}), "line 1: the prompt has 10,000,000 characters: at most 100,000"),
    ],
)
def test_wrong_files_are_refused_before_the_model_is_loaded(
    content: str | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sample, "load_pipeline", lambda _: pytest.fail("the model was loaded"))
    if content is not None:
        Path("prompts.jsonl").write_text(content)
    assert sample.main(["--prompts-file", "prompts.jsonl", "--out", "drawn"]) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1 and len(line) < 300


def test_prompts_that_are_cut_are_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("two green stars " * 200)
    assert sample.main(["--prompts-file", "prompts.txt", "--n", "1", "--out", "drawn", "--model", str(model)]) == 0
    assert any("cut to the model's" in text for text in caplog.messages)


def test_unclip_draws_files_of_prompts(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows with seeds and options of their own, each as it is alone but for rounding; processes share them."""
    folder = make_tiny_unclip(tmp_path / "two")
    rows: list[dict[str, Any]] = [
        {"prompt": "a red heart"},
        {"prompt": "a dog", "seed": 11, "guidance": 2.0},
        {"prompt": "two green stars", "n": 3, "steps": 2, "sampler": "ddim", "eta": 0.5},
        {"prompt": "a blue circle"},
    ]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    arguments = [*arguments[:-1], str(folder)]
    assert as_process(1, 2, arguments, monkeypatch) == 0
    assert as_process(0, 2, arguments, monkeypatch) == 0
    found = pixels(images("folders"))
    pipe = UnCLIP.from_pretrained(folder, device="cpu")
    assert len(found) == 9
    for number, row in enumerate(rows):
        options = {"n": 2, "seed": 3} | row
        (result,) = pipe(options.pop("prompt"), **options)
        for seed, image in zip(result.seeds, result.images, strict=True):
            one, other = (np.frombuffer(data, np.uint8).astype(int) for data in (found[number, seed], image.tobytes()))
            assert abs(one - other).max() <= 1
    file = next(Path("drawn").glob("0*/00000002-*-seed3.png"))
    assert json.loads(Image.open(file).text["options"])["eta"] == 0.5  # type: ignore[attr-defined]
    wrong = {
        '{"prompt": "a", "top_p": 0.5}': "line 1: top_p is an option of models that sample tokens",
        '{"prompt": "a", "eta": 2.0}': "line 1: eta is 2.0",
        '{"prompt": "a", "sampler": 3}': "line 1: sampler is 3; it must be text",
        '{"prompt": "a", "negative": "b"}': "line 1: negative is for models that sample tokens",
    }
    for line, message in wrong.items():
        Path("prompts.jsonl").write_text(line + "\n")
        assert as_process(0, 1, arguments, monkeypatch) == 2
        assert message in capsys.readouterr().err
