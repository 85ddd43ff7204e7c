"""What TensorBoard and Weights & Biases get of a run: the figures of metrics.jsonl, and the sample images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from support.tiny_model import VQGAN_MODEL

ROOT = Path(__file__).parents[3]
VQGAN = {
    "stage": "image_tokenizer",
    "model": VQGAN_MODEL,
    "data": {"kind": "shapes", "size": 32},
    "optim": {"lr": 1e-3, "warmup": 0, "final_lr": 1},
    "run": {
        "dir": "run",
        "steps": 4,
        "batch_size": 4,
        "validation_images": 2,
        "device": "cpu",
        "log_every": 1,
        "save_every": 2,
        "keep": 3,
        "sample_every": 2,
        "report": False,
    },
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vqgan.yaml").write_text(yaml.safe_dump(VQGAN))
    return tmp_path


def test_tensorboard_has_metrics_and_images_once_after_resuming(here: Path) -> None:
    assert train.main(["vqgan.yaml", "run.tracker=tensorboard"]) == 0
    newest = Path("run/checkpoints/step-00000004")
    (newest / "state.pt").write_bytes(b"")  # so that steps 3 and 4 are made and logged again
    assert train.main(["vqgan.yaml", "run.tracker=tensorboard", "resume=true"]) == 0
    shown = EventAccumulator(str(here / "run" / "tensorboard")).Reload()
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    for name in ("train/generator_loss", "train/peak_memory_gb", "validation/codebook_used"):
        logged = [(x["step"], pytest.approx(x[name])) for x in lines if name in x]
        assert [(event.step, event.value) for event in shown.Scalars(name)] == logged and logged
    images = shown.Images("samples")
    assert [image.step for image in images] == [2, 4]
    with Image.open("run/samples/00000004.png") as own:
        assert (images[1].width, images[1].height) == own.size


def wandb_run(here: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """train.py with Weights & Biases, in a process of its own: what it logs is written when that ends."""
    command = [sys.executable, str(ROOT / "train.py"), "vqgan.yaml", "run.tracker=wandb", *options]
    own = {"HOME": str(here), "NETRC": str(here / "none"), "OMP_NUM_THREADS": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return subprocess.run(command, cwd=here, env=kept | own | environment, capture_output=True, text=True)


@pytest.mark.slow
def test_offline_wandb_keeps_one_id_after_resuming(here: Path) -> None:
    pytest.importorskip("wandb")
    first = wandb_run(here, "run.steps=2", WANDB_MODE="offline")
    assert first.returncode == 0, first.stderr
    name = Path("run/wandb/id").read_text()
    again = wandb_run(here, "resume=true", WANDB_MODE="offline")
    assert again.returncode == 0 and Path("run/wandb/id").read_text() == name, again.stderr
    folders = sorted(Path("run/wandb").glob("offline-run-*"))
    assert len(folders) == 2 and all(folder.name.endswith(name) for folder in folders)
    for folder, step in zip(folders, (2, 4)):
        (sent,) = (folder / "files/media/images").glob("samples_*.png")
        with Image.open(sent) as theirs, Image.open(f"run/samples/{step:08d}.png") as own:
            assert theirs.convert("RGB").tobytes() == own.convert("RGB").tobytes()
        (log,) = folder.glob("*.wandb")
        assert b"generator_loss" in log.read_bytes()


@pytest.mark.slow
def test_wandb_without_an_account_gives_a_one_line_error(here: Path) -> None:
    pytest.importorskip("wandb")
    done = wandb_run(here, WANDB_MODE="online", WANDB_BASE_URL="http://localhost:9")
    lines = [line for line in done.stderr.splitlines() if line.startswith("train.py: ")]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert len(lines) == 1 and "WANDB_MODE=offline" in lines[0]
