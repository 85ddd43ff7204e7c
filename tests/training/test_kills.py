"""SIGKILL at random moments, many times in a run: what comes out is the uninterrupted run's, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dalle.training.checkpoint.folders import folders
from dalle.training.checkpoint.latest import load_latest
from support.tiny_model import VQGAN_MODEL

ROOT = Path(__file__).parents[2]
ONE = [sys.executable, "train.py"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py"]
# Two phases, codebook averages, averaged weights, noise: all that a checkpoint must hold
RECIPE: dict[str, Any] = {
    "stage": "image_tokenizer",
    "model": VQGAN_MODEL | {"quantizer": VQGAN_MODEL["quantizer"] | {"update": "ema"}},
    "adversarial": {"start": 5, "channels": 8, "layers": 1},
    "data": {"kind": "shapes", "size": 64},
    "optim": {"lr": 1e-3, "ema": 0.9, "warmup": 10},
    "run": {
        "batch_size": 4,
        "validation_images": 2,
        "device": "cpu",
        "precision": "fp32",
        "log_every": 1,
        "save_every": 3,
        "validate_every": 25,
        "sample_every": 25,
    },
}


class Run:
    """Trains in a folder, and is killed there."""

    def __init__(self, recipe: Path, folder: Path, command: list[str], options: list[str]):
        self.folder, self.log = folder, folder / "metrics.jsonl"
        self.command = [*command, str(recipe), f"run.dir={folder}", *options]
        self.environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.command, "resume=auto"],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that it can be killed with all its processes
        )

    def finish(self) -> None:
        with self.start() as process:
            output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output

    def lines(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]

    def logged(self) -> int:
        """Bytes of the log."""
        return self.log.stat().st_size if self.log.exists() else 0

    def writing(self) -> bool:
        """Whether a checkpoint or the model's folder is being written now."""
        return any(self.folder.glob("checkpoints/.step-*")) or any(self.folder.glob(".model-*"))


def until(process: subprocess.Popen[str], true: Callable[[], bool]) -> None:
    """Wait until something is so or the process has ended."""
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline
        try:
            process.wait(0.002)  # a checkpoint is written in some hundredths of a second
        except subprocess.TimeoutExpired:
            continue
        return


def killed(run: Run, chance: random.Random, kill: Callable[[subprocess.Popen[str]], None]) -> str:
    """Start a run and kill it at a random moment; where that was."""
    before = run.logged()
    with run.start() as process:
        where = chance.choice(["starting", "training", "training", "writing", "writing"])
        if where == "starting":
            pause = chance.uniform(0.5, 5)
        else:  # some steps later: the log of a resumed run is first cut where its checkpoint stands
            size = before + chance.randrange(0, 6000)
            until(process, lambda: run.logged() > size)
            if where == "writing":
                until(process, run.writing)
            pause = chance.uniform(0, 0.01)
        moment = time.monotonic() + pause
        until(process, lambda: time.monotonic() > moment)
        written = run.writing()
        kill(process)
        output, _ = process.communicate(timeout=120)
    assert "Traceback" not in output or kill is not kill_all, output
    return "half a folder" if written else where


def kill_all(process: subprocess.Popen[str]) -> None:
    """Also what torchrun has started, which is in sessions of its own."""
    started = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.killpg(process.pid, signal.SIGKILL)
    for number in started:
        with suppress(ProcessLookupError):
            os.kill(int(number), signal.SIGKILL)


def contents(folder: Path) -> dict[str, Any]:
    """All that a run leaves of its training: checkpoints, model, samples, log."""
    files = [*folder.glob("checkpoints/*/*.safetensors"), *folder.glob("model/*"), *folder.glob("samples/*")]
    found: dict[str, Any] = {str(file.relative_to(folder)): file.read_bytes() for file in files}
    for file in folder.glob("checkpoints/*/state.pt"):
        found[str(file.relative_to(folder))] = torch.load(file, weights_only=True)
    rates = ("images_per_s", "tokens_per_s", "peak_memory_gb", "data_wait")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found["log"] = [{k: v for k, v in line.items() if not k.endswith(rates)} for line in lines]
    return found


def assert_same(one: Any, other: Any, name: str = "") -> None:
    """Bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), name
        for key, value in one.items():
            assert_same(value, other[key], f"{name}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), name
        for number, (a, b) in enumerate(zip(one, other)):
            assert_same(a, b, f"{name}/{number}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), name
    else:
        assert one == other, name


def series(tmp_path: Path, command: list[str], options: list[str], kills: int, kill: Any = kill_all) -> None:
    """A run that is killed `kills` times comes to what an uninterrupted one comes to."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    whole = Run(recipe, tmp_path / "whole", command, options)
    whole.finish()
    run, chance = Run(recipe, tmp_path / "killed", command, options), random.Random(7)
    counts: dict[str, int] = {}
    for _ in range(kills):
        where = killed(run, chance, kill)
        counts[where] = counts.get(where, 0) + 1
        saved = folders(run.folder)
        if saved:  # whole whatever the moment was; nothing is put aside as damaged
            assert load_latest(run.folder).step == int(saved[-1].name[7:])
            assert not list(run.folder.glob("checkpoints/*.damaged*"))
    print(f"killed {kills} times: {counts}; at step {load_latest(run.folder).step}")
    assert load_latest(run.folder).step < load_latest(whole.folder).step, "it was done early"
    run.finish()
    assert_same(contents(run.folder), contents(whole.folder))
    assert not run.writing()


@pytest.mark.slow
def test_run_killed_30_times_equals_uninterrupted(tmp_path: Path) -> None:
    series(tmp_path, ONE, ["run.steps=600"], kills=30)


@pytest.mark.slow
def test_killed_run_with_two_loader_processes_equals_uninterrupted(tmp_path: Path) -> None:
    series(tmp_path, ONE, ["run.steps=300", "run.workers=2"], kills=8)


@pytest.mark.slow
def test_killed_run_of_two_processes_equals_uninterrupted(tmp_path: Path) -> None:
    series(tmp_path, TWO, ["run.steps=200"], kills=6)


@pytest.mark.slow
def test_run_with_one_of_two_processes_killed_equals_uninterrupted(tmp_path: Path) -> None:
    """The other cannot go on, and does not hang."""

    def kill_one(process: subprocess.Popen[str]) -> None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if children:
            os.kill(int(children[-1]), signal.SIGKILL)
        else:
            kill_all(process)

    series(tmp_path, TWO, ["run.steps=200"], kills=4, kill=kill_one)
