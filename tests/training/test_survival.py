"""What a run survives: damaged checkpoints and logs, what a killed process leaves, two runs at once."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load, load_file

import train
from dalle.__main__ import main as dalle
from dalle.data.batch import Batch
from dalle.evaluation.metrics import CodebookUsage
from dalle.files import remove_scratch
from dalle.training import state
from dalle.training.checkpoint import checkpoint
from dalle.training.checkpoint.folders import folders
from dalle.training.checkpoint.latest import load_latest
from dalle.training.run.log import RunLog
from dalle.training.run.run_dir import LOCK, lock_run_dir
from dalle.training.tasks.image_tokenizer import ImageTokenizerTask, Inputs
from support.tiny_model import VQGAN_MODEL

ROOT = Path(__file__).parents[2]
VQGAN = {
    "stage": "image_tokenizer",
    "model": VQGAN_MODEL | {"quantizer": VQGAN_MODEL["quantizer"] | {"update": "ema"}},
    "data": {"kind": "shapes", "size": 32},
    "optim": {"lr": 1e-3, "ema": 0.9},
    "run": {
        "dir": "run",
        "steps": 6,
        "batch_size": 4,
        "validation_images": 2,
        "device": "cpu",
        "tracker": "none",
        "report": False,
        "log_every": 1,
        "save_every": 2,
        "keep": 9,
    },
}


@pytest.fixture(scope="module")
def six_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that is done, with checkpoints after 2, 4 and 6 steps."""
    folder = tmp_path_factory.mktemp("done")
    (folder / "vqgan.yaml").write_text(yaml.safe_dump(VQGAN))
    assert train.main([str(folder / "vqgan.yaml"), f"run.dir={folder / 'run'}"]) == 0
    return folder / "run"


@pytest.fixture
def run(six_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run in the working folder, beside its recipe."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vqgan.yaml").write_text(yaml.safe_dump(VQGAN))
    return Path(shutil.copytree(six_steps, tmp_path / "run"))


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {x["step"]: x["train/generator_loss"] for x in lines if "train/generator_loss" in x}


def newest(run: Path) -> dict[str, torch.Tensor]:
    return load_file(folders(run)[-1] / "weights.safetensors")


@pytest.mark.parametrize("gone", ["state.pt", pytest.param("average.safetensors", marks=pytest.mark.slow)])
def test_resume_skips_damaged_checkpoints_and_renames_them(
    gone: str, run: Path, six_steps: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cut, missing = (run / "checkpoints" / name for name in ("step-00000006", "step-00000004"))
    (cut / "weights.safetensors").write_bytes((cut / "weights.safetensors").read_bytes()[:-50])
    (missing / gone).unlink()
    (run / "checkpoints" / "step-00000006.damaged").mkdir()  # of an earlier time
    assert train.main(["vqgan.yaml", "resume=true"]) == 0
    told = caplog.text
    assert "step-00000006 is damaged" in told and "renamed to step-00000006.damaged-2" in told
    assert "step-00000004 is damaged" in told and "resuming from step 2" in told
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        *("step-00000002", "step-00000004", "step-00000006"),
        *("step-00000004.damaged", "step-00000006.damaged", "step-00000006.damaged-2"),
    }
    assert losses(run) == losses(six_steps) and set(losses(run)) == {1, 2, 3, 4, 5, 6}
    for name, value in newest(six_steps).items():
        assert torch.equal(value, newest(run)[name]), name


@pytest.mark.parametrize(
    "file",
    [
        *("weights.safetensors", "SHA256SUMS"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("average.safetensors", "state.pt")),
    ],
)
def test_flipped_byte_is_detected(file: str, run: Path, six_steps: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = run / "checkpoints" / "step-00000006"
    flip(folder / file, 0.6)
    assert dalle(["export", str(folder), "exported"]) == 2
    assert train.main(["vqgan.yaml", "resume=true"]) == 0
    reason = "has lines that are not|has changed since|is missing" if file == "SHA256SUMS" else file
    assert re.search(rf"step-00000006 is damaged \(.*({reason}).*\): renamed to step-00000006.damaged", caplog.text)
    assert "resuming from step 4" in caplog.text
    for name, value in newest(six_steps).items():
        assert torch.equal(value, newest(run)[name]), name


def test_missing_checksums_are_damage_except_in_early_checkpoints(run: Path, six_steps: Path) -> None:
    folder = folders(run)[-1]
    digests = folder / "SHA256SUMS"
    names = {line.split()[1]: line.split()[0] for line in digests.read_text().splitlines()}
    assert names.keys() == {path.name for path in folder.iterdir()} - {digests.name}
    assert all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for name, digest in names.items())
    digests.unlink()
    state = torch.load(folder / "state.pt", weights_only=True)
    assert state.pop("hashed")
    torch.save(state, folder / "state.pt")
    assert load_latest(run).step == 6
    torch.save(state | {"hashed": True}, folder / "state.pt")
    assert load_latest(run).step == 4
    assert (run / "checkpoints" / "step-00000006.damaged").exists()


def test_resume_auto_starts_and_resumes_a_run(run: Path, six_steps: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run)
    command = ["vqgan.yaml", "resume=auto"]

    def interrupted(self: RunLog) -> None:
        self.bar.update()
        if self.bar.n == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # a launcher passes on what the scheduler sent to all

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "step", interrupted)
        assert train.main(command) == 128 + signal.SIGTERM
    assert "starting a new run" in capfd.readouterr().out
    assert load_latest(run).step == 3
    assert train.main(command) == 0
    assert "resuming after step 3" in capfd.readouterr().out
    assert losses(run) == losses(six_steps)
    assert train.main(command) == 0
    assert "nothing to train: run.steps is 6, and 6 are done" in capfd.readouterr().out


def test_resume_names_changed_options_and_how_to_accept_them(
    run: Path, six_steps: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The line that a stopped run prints has all its options: pasted, it goes on as if it had not stopped."""
    shutil.rmtree(run)

    def interrupted(self: RunLog) -> None:
        self.bar.update()
        if self.bar.n == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "step", interrupted)
        assert train.main(["vqgan.yaml", "optim.lr=2e-3", "run.dir=run #1"]) == 128 + signal.SIGTERM
    line = capfd.readouterr().out.splitlines()[-1]
    assert line == "stopped at step 3; continue with: python train.py 'run #1/config.yaml' resume=true"
    assert train.main(["vqgan.yaml", "run.dir=run #1", "resume=true", "run.steps=4"]) == 0
    told = [line for line in capfd.readouterr().out.splitlines() if line.startswith("resume=true: ")]
    assert told == ["resume=true: optim.lr was 0.002, is now 0.001", "resume=true: run.steps was 6, is now 4"]
    assert train.main(shlex.split(line.partition("train.py ")[2])) == 0
    out = capfd.readouterr().out
    assert "resume=true: " not in out and "nothing to train: run.steps is 4" in out


def test_resume_auto_refuses_another_config(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for changed, told in (
        (["optim.lr=2e-3"], "run contains a run with another config: optim.lr was 0.001, is now 0.002; choose"),
        (["run.steps=8", "run.keep=3", "model.channels=16", "l1_weight=2"], "and 1 more; choose another run.dir="),
        (["run.precision=fp16"], "run.precision is fp16, which needs a GPU"),
    ):
        assert train.main(["vqgan.yaml", "resume=auto", *changed]) == 2
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 1 and told in lines[0]
    (run / "config.yaml").write_text("stage: clip\n")
    assert train.main(["vqgan.yaml", "resume=auto"]) == 2
    assert "stage was clip, is now image_tokenizer" in capfd.readouterr().err
    (run / "config.yaml").unlink()
    assert train.main(["vqgan.yaml", "resume=auto"]) == 2
    assert "in run (run/config.yaml: no such file); choose" in capfd.readouterr().err
    for name in ("checkpoints", "model"):  # nothing is there to go on with, nor to lose
        shutil.rmtree(run / name)
    assert train.main(["vqgan.yaml", "resume=auto", "run.steps=1"]) == 0


def flip(file: Path, where: float) -> None:
    """Change one bit of a file."""
    content = bytearray(file.read_bytes())
    content[int(len(content) * where)] ^= 1
    file.write_bytes(content)


def test_broken_metrics_lines_are_dropped_with_a_warning(
    run: Path, six_steps: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = run / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    broken = [b'{"step": 1, "tra\n', b"\0\0\0\xff\n", b"[3]\n", b'{"loss": 3}\n', b"\n"]
    log.write_bytes(b"".join([*lines[:2], *broken, *lines[2:], b'{"step": 5, "tr']))
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    assert train.main(["vqgan.yaml", "resume=true"]) == 0
    assert "run/metrics.jsonl: 5 broken lines dropped" in capfd.readouterr().out
    assert losses(run) == losses(six_steps)
    assert len(log.read_text().splitlines()) == len(lines)


def test_half_written_checkpoints_of_killed_processes_are_removed(run: Path) -> None:
    checkpoints = run / "checkpoints"
    shutil.copytree(checkpoints / "step-00000002", checkpoints / ".step-00000008-ab_12xyz" / "new")
    (checkpoints / ".step-00000010-abcdefgh").mkdir()
    other = run / ".mine-abcdefgh"
    (other / "of another kind").mkdir(parents=True)
    assert train.main(["vqgan.yaml", "resume=true"]) == 0
    assert not list(checkpoints.glob(".*")) and other.exists()


def test_interrupted_folder_replacement_is_completed(tmp_path: Path) -> None:
    """As a kill between the two renames leaves it."""
    scratch = tmp_path / ".model-abcdefgh"
    for name in ("old", "new"):
        (scratch / name).mkdir(parents=True)
        (scratch / name / "config.yaml").write_text(name)
    remove_scratch(tmp_path)
    assert (tmp_path / "model" / "config.yaml").read_text() == "new" and not scratch.exists()


def test_two_runs_cannot_train_in_one_folder(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # As `lock_run_dir` does, in a process that need not import torch for it
    hold = "import sys; from pathlib import Path; from dalle.files import FileLock; "
    hold += f"lock = FileLock(Path('run') / '{LOCK}'); print('held', flush=True); sys.stdin.read()"
    command, found = [sys.executable, "-c", hold], os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=found) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert train.main(["vqgan.yaml", "resume=true"]) == 2
        assert f"process {holder.pid} on " in (error := capfd.readouterr().err) and "is training in run" in error
        holder.kill()
    assert train.main(["vqgan.yaml", "resume=true"]) == 0
    lock_run_dir(run).close()


@pytest.mark.parametrize(
    "place, message",
    [
        ("nowhere", "nowhere: no such folder; give the run.dir of a training"),
        ("begun", "begun has saved no weights yet: train on"),
        ("run/model", "run/model is no run but has a config.yaml"),
        ("samples", "samples is no folder of a run"),
    ],
)
def test_export_of_a_folder_that_is_no_run_is_refused(
    place: str, message: str, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("begun/metrics.jsonl", "samples/a.png"):
        (run.parent / name).parent.mkdir()
        (run.parent / name).write_text("")
    assert dalle(["export", place, "exported"]) == 2
    assert message in (error := capfd.readouterr().err) and error.count("\n") == 1
    assert not (run.parent / "exported").exists()


@pytest.mark.parametrize(
    "place, message",
    [
        ("file", "file is not a folder that can be written: give another as run.dir=FOLDER"),
        ("file/under", "file is not a folder that can be written"),
        ("other", "other/model is there already and of no run: choose another run.dir=FOLDER"),
        ("run", "contains a run already: continue it with resume=true"),
        ("run/model", "run/model holds a model, and a run would write over its config.yaml: choose another run.dir"),
    ],
)
def test_wrong_run_folders_are_refused_before_anything_is_loaded(
    place: str, message: str, run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (run.parent / "file").write_text("text")
    (run.parent / "other" / "model").mkdir(parents=True)
    (run.parent / "other" / "model" / "code.py").write_text("")
    monkeypatch.setattr(state, "build_task", None)
    assert train.main(["vqgan.yaml", f"run.dir={place}"]) == 2
    assert message in (error := capfd.readouterr().err) and error.count("\n") == 1
    assert (run.parent / "other" / "model" / "code.py").is_file() and (run.parent / "file").read_text() == "text"


def test_lost_model_is_exported_again(run: Path, six_steps: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "model")
    for source in ("run", "run/checkpoints/step-00000004"):
        assert dalle(["export", source, "exported"]) == 2
        error = capfd.readouterr().err
        assert "run has checkpoints but no " in error and "run/config.yaml resume=true run.dir=" in error
    assert dalle(["inspect", "run"]) == 2
    assert (
        "run is a run that has lost its model: resume it (resume=true) to get run/model back" in capfd.readouterr().err
    )
    assert train.main(["vqgan.yaml", "resume=true"]) == 0
    assert "nothing to train" in capfd.readouterr().out
    assert exported(run).read_bytes() == exported(six_steps).read_bytes()
    for end in (" MB\n", " MB, in place of the model that was there\n"):
        assert dalle(["export", "run", "exported"]) == 0
        assert capfd.readouterr().out.endswith(end)


def exported(run: Path) -> Path:
    return run / "model" / "model.safetensors"


def test_export_that_failed_is_made_up_for(
    run: Path, six_steps: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full once the last checkpoint is written: the model is of an earlier one."""
    shutil.rmtree(folders(run)[-1])
    export, steps = ImageTokenizerTask.export, [4]  # of the resumed run's own export, and that of step 6

    def full(*args: Any) -> None:
        if not steps:
            raise OSError(errno.ENOSPC, "No space left on device")
        steps.pop()
        export(*args)

    with monkeypatch.context() as patch:
        patch.setattr(ImageTokenizerTask, "export", full)
        assert train.main(["vqgan.yaml", "resume=true"]) == 2
    said = "step 6 is saved, but its weights could not be exported to run/model (No space left on device): free some"
    assert said in (error := capfd.readouterr().err) and "then export them with resume=true" in error
    assert exported(run).read_bytes() != exported(six_steps).read_bytes()
    assert train.main(["vqgan.yaml", "resume=true"]) == 0
    assert exported(run).read_bytes() == exported(six_steps).read_bytes()


@pytest.mark.parametrize("gone", ["step-00000002", "step-00000006", "model"])
def test_best_weights_are_exported_again(gone: str, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With `keep_best` a stale model becomes that of the best checkpoint; where that is gone, the model stays."""
    best = ["vqgan.yaml", "resume=true", "run.keep_best=psnr", "run.steps=6"]
    (run / "metrics.jsonl").write_text('{"step": 2, "validation/psnr": 99}\n{"step": 6, "validation/psnr": 9}\n')
    weights = {name: (run / "checkpoints" / name / "average.safetensors").read_bytes() for name in named(run)}
    before = exported(run).read_bytes()
    shutil.rmtree(run / gone if gone == "model" else run / "checkpoints" / gone)
    assert train.main(best) == 0
    if gone == "step-00000002":
        assert "the checkpoint of the best weights" in capfd.readouterr().out
        assert exported(run).read_bytes() == before
    else:
        kept = load(weights["step-00000002"])
        assert all(torch.equal(value, kept[name]) for name, value in load_file(exported(run)).items())


def named(run: Path) -> list[str]:
    return [folder.name for folder in folders(run)]


def test_failing_first_save_does_not_speak_of_checkpoints(
    run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        assert train.main(["vqgan.yaml", "run.dir=new"]) == 2
    said = "step 2 could not be saved in new (No space left on device), and there is no earlier checkpoint: free some"
    assert said in (error := capfd.readouterr().err) and "then start again" in error and "resume" not in error
    assert train.main(["vqgan.yaml", "run.dir=new", "run.steps=2"]) == 0


@pytest.mark.parametrize("out", ["run/checkpoints/step-00000099", "run/samples", "run/initial/clip", "run"])
def test_export_into_the_folders_of_the_run_is_refused(out: str, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(run.rglob("*"))
    for source in ("run", "run/checkpoints/step-00000004"):
        assert dalle(["export", source, out]) == 2
        assert re.search(rf"{out} is of the run .*run, which writes it itself: give another", capfd.readouterr().err)
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("resume", ["false", "auto", "true"])
def test_trained_model_without_checkpoints_is_not_replaced(
    resume: str, run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints are many times as large as the model: who deletes them keeps the model."""
    shutil.rmtree(run / "checkpoints")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    monkeypatch.setattr(state, "build_task", None)
    assert train.main(["vqgan.yaml", f"resume={resume}"]) == 2
    assert "run contains a trained model and no checkpoint to resume from" in capfd.readouterr().err
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_dead_loader_process_gives_a_one_line_error(
    run: Path, six_steps: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    trained = RunLog.train

    def kill_a_worker(self: RunLog, step: int, metrics: dict[str, float]) -> None:
        trained(self, step, metrics)
        worker = multiprocessing.active_children()[0]
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()

    options = ["vqgan.yaml", "resume=true", "run.workers=2"]
    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "train", kill_a_worker)
        assert train.main([*options, "run.steps=500"]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("train.py: ")]
    assert len(lines) == 1 and "a data loader worker has died (DataLoader worker (pid" in lines[0]
    assert train.main(options) == 0
    assert losses(run) == losses(six_steps)


@pytest.mark.slow
def test_losses_do_not_depend_on_the_clock(run: Path, six_steps: Path, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler and Linux")
    library = tmp_path / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # as sums depend on how many threads share them
    environment = alone | {"LD_PRELOAD": str(library)}
    told = subprocess.check_output(
        [sys.executable, "-c", "import time; print(time.time() - time.time())"], env=environment, text=True
    )
    assert abs(float(told)) > 3600  # it does jump
    command = [sys.executable, "train.py", str(tmp_path / "vqgan.yaml"), f"run.dir={tmp_path / 'jumped'}"]
    command += ["run.tracker=tensorboard", "run.report=true", "run.workers=1"]
    for options in (["run.steps=3"], ["run.steps=6", "resume=true"]):  # the second reads what is there
        subprocess.run(
            [*command, *options, "optim.final_lr=1", "optim.warmup=0"], cwd=ROOT, env=environment, check=True
        )
    steady = [str(tmp_path / "vqgan.yaml"), f"run.dir={tmp_path / 'steady'}", "optim.final_lr=1", "optim.warmup=0"]
    subprocess.run([sys.executable, "train.py", *steady], cwd=ROOT, env=alone, check=True)
    assert losses(tmp_path / "jumped") == losses(tmp_path / "steady")
    for name, value in newest(tmp_path / "steady").items():
        assert torch.equal(value, newest(tmp_path / "jumped")[name]), name
    assert (tmp_path / "jumped" / "report.html").exists()


def test_logged_codebook_usage_covers_all_batches_since_the_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vqgan.yaml").write_text(yaml.safe_dump(VQGAN))
    counted, passes = CodebookUsage.update, []

    def noted(self: CodebookUsage, codes: torch.Tensor) -> None:
        counted(self, codes)
        passes.append(codes.flatten().tolist())

    monkeypatch.setattr(CodebookUsage, "update", noted)
    options = ["run.log_every=2", "run.steps=4", "run.accumulation=2", "run.validate_every=9", "run.save_every=9"]
    assert train.main(["vqgan.yaml", *options]) == 0
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    for step, first in ((2, 0), (4, 4)):
        found = next(line for line in lines if line["step"] == step and "train/codebook_used" in line)
        counts = Counter(code for codes in passes[first : first + 4] for code in codes)
        size = VQGAN_MODEL["quantizer"]["codebook_size"]
        shares = [n / sum(counts.values()) for n in counts.values()]
        assert found["train/codebook_used"] == len(counts) / size and found["train/dead_codes"] == size - len(counts)
        perplexity = math.exp(-sum(share * math.log(share) for share in shares))
        assert found["train/codebook_perplexity"] == pytest.approx(perplexity)


def test_nan_batch_is_skipped_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vqgan.yaml").write_text(yaml.safe_dump(VQGAN))
    inputs, seen = ImageTokenizerTask.inputs, []

    def nan_at_3(self: ImageTokenizerTask, batch: Batch) -> Inputs:
        made = inputs(self, batch)
        seen.append(len(batch.captions))
        if len(seen) == 3:
            made.images = made.images * float("nan")
        return made

    monkeypatch.setattr(ImageTokenizerTask, "inputs", nan_at_3)
    assert train.main(["vqgan.yaml", "run.save_every=1"]) == 0
    assert "step 3: skipped, non-finite loss or gradient in generator (1 in a row)" in capfd.readouterr().out
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [x for x in lines if "train/skipped" in x] == [{"step": 3, "train/skipped": 1}]
    assert set(losses(Path("run"))) == {1, 2, 4, 5, 6} and all(map(math.isfinite, losses(Path("run")).values()))
    before, after = (load_file(f"run/checkpoints/step-0000000{n}/weights.safetensors") for n in (2, 3))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(value.isfinite().all() for value in newest(Path("run")).values())
