"""The best weights of a run are kept and exported, training may end by them, and an interruption changes none of it."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import train
from dalle.evaluation import metrics
from dalle.training import state as run_state
from dalle.training.checkpoint import checkpoint
from dalle.training.checkpoint.best import METRICS, BestTracker
from dalle.training.checkpoint.folders import folder_of, folders, step_of
from dalle.training.tasks.image_tokenizer import ImageTokenizerTask
from support.tiny_model import VQGAN_MODEL

PSNR = {2: 10.0, 4: 12.0, 6: 11.0, 8: 12.0, 10: 13.0, 12: 9.0, 14: 12.5, 16: 12.9}
RECIPE: dict[str, Any] = {
    "stage": "image_tokenizer",
    "model": VQGAN_MODEL,
    "data": {"kind": "shapes", "size": 64},
    "optim": {"lr": 1e-3, "ema": 0.9},
    "run": {
        "steps": 16,
        "batch_size": 2,
        "validation_images": 2,
        "device": "cpu",
        "precision": "fp32",
        "keep": 1,
        "keep_best": "psnr",
        "log_every": 1,
        "save_every": 3,
        "validate_every": 2,
        "sample_every": 100,
        "tracker": "none",
        "report": False,
    },
}


class Clock:
    """The step that is being made, and those at whose end the process is told to stop."""

    now = 0
    stops: tuple[int, ...] = ()


def start_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Validations give what `PSNR` says of the step."""
    state, seed_noise, real = Clock(), run_state.seed_noise, ImageTokenizerTask.validate

    def begin(seed: int, step: int, rank: int) -> None:
        state.now = step + 1
        seed_noise(seed, step, rank)
        if state.now in state.stops:
            os.kill(os.getpid(), signal.SIGTERM)

    def validate(self: ImageTokenizerTask, model: Any, batches: Any) -> dict[str, float]:
        return real(self, model, batches) | {"psnr": PSNR[state.now]}

    monkeypatch.setattr(run_state, "seed_noise", begin)
    monkeypatch.setattr(ImageTokenizerTask, "validate", validate)
    return state


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return start_clock(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run, to be read only."""
    folder = tmp_path_factory.mktemp("best") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        start_clock(patch)
        assert run(folder) == 0
    return folder


def run(folder: Path, *options: str) -> int:
    config = folder.with_suffix(".yaml")
    config.write_text(json.dumps(RECIPE))
    return train.main([str(config), f"run.dir={folder}", *options])


def names(folder: Path) -> list[str]:
    return [path.name for path in folders(folder)]


def is_exported(folder: Path, step: int) -> bool:
    exported = load_file(folder / "model" / "model.safetensors")
    average = load_file(folder_of(folder, step) / "average.safetensors")
    return all(torch.equal(exported[name], value) for name, value in average.items())


def validated(folder: Path) -> list[tuple[int, dict[str, float]]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line.pop("step"), line) for line in lines if "validation/psnr" in line]


def test_best_checkpoint_is_kept_and_exported(whole: Path) -> None:
    assert names(whole) == ["step-00000010", "step-00000016"]
    assert is_exported(whole, 10) and not is_exported(whole, 16)


@pytest.mark.parametrize(
    "stops", [(7, 11, 13), *(pytest.param(stops, marks=pytest.mark.slow) for stops in ((4,), (5, 10)))]
)
def test_interrupted_run_equals_uninterrupted(
    stops: tuple[int, ...], clock: Clock, whole: Path, tmp_path: Path
) -> None:
    options = ("run.stop_after=3",)  # which is at the last step, where the run ends anyway
    clock.stops = stops
    for number, _ in enumerate(stops):
        assert run(tmp_path / "parts", *options, f"resume={str(number > 0).lower()}") == 128 + signal.SIGTERM
        clock.stops = clock.stops[1:]
    assert run(tmp_path / "parts", *options, "resume=true") == 0
    assert validated(tmp_path / "parts") == validated(whole)
    assert names(tmp_path / "parts") == names(whole) == ["step-00000010", "step-00000016"]
    assert is_exported(tmp_path / "parts", 10)
    for file in ("model/model.safetensors", "checkpoints/step-00000016/weights.safetensors"):
        assert (tmp_path / "parts" / file).read_bytes() == (whole / file).read_bytes()


def test_best_weights_after_a_kill_between_validation_and_checkpoint(
    clock: Clock, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = checkpoint.save

    def killed(folder: Path, now: checkpoint.Checkpoint, *rest: Any) -> Path:
        if now.step == 10:
            raise KeyboardInterrupt
        return save(folder, now, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed)
        assert run(tmp_path / "parts") == 130
    assert [step for step, _ in validated(tmp_path / "parts")] == [2, 4, 6, 8, 10]
    assert run(tmp_path / "parts", "resume=true") == 0
    assert "(the best, psnr 13 at step 10; the newest: " in capsys.readouterr().out
    assert validated(tmp_path / "parts") == validated(whole)
    assert names(tmp_path / "parts") == names(whole) and is_exported(tmp_path / "parts", 10)


def test_early_stopping_resumes_with_more_patience(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "a", "run.stop_after=2") == 0
    told = "run.stop_after: 2 validations since the best, psnr 12 at step 4; ended at step 8"
    assert told in capsys.readouterr().out
    assert names(tmp_path / "a") == ["step-00000004", "step-00000008"] and is_exported(tmp_path / "a", 4)
    assert run(tmp_path / "a", "run.stop_after=2", "resume=true") == 0
    assert told in capsys.readouterr().out and validated(tmp_path / "a")[-1][0] == 8
    assert run(tmp_path / "a", "run.stop_after=3", "resume=true") == 0
    assert validated(tmp_path / "a")[-1][0] == 16 and is_exported(tmp_path / "a", 10)


def test_missing_best_weights_are_reported(clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "a", "run.keep_best=null", "run.steps=12") == 0
    assert names(tmp_path / "a") == ["step-00000012"] and is_exported(tmp_path / "a", 12)
    assert run(tmp_path / "a", "resume=true") == 0
    assert "the best weights (psnr 13 at step 10) is missing" in capsys.readouterr().out
    assert names(tmp_path / "a") == ["step-00000016"] and is_exported(tmp_path / "a", 16)


def test_nan_validation_ends_the_run(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PSNR, 8, math.nan)
    assert run(tmp_path / "a", "run.save_every=4", "run.keep_best=null") == 3
    error = capsys.readouterr().err
    assert error.count("train.py: ") == 1 and "step 8: the validation metric psnr is NaN" in error
    assert names(tmp_path / "a") == ["step-00000004"] and is_exported(tmp_path / "a", 4)


def test_failing_validation_loses_no_step(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise ValueError("no usable image")

    monkeypatch.setattr(ImageTokenizerTask, "validate", fails)
    assert run(tmp_path / "a") == 2
    assert names(tmp_path / "a") == ["step-00000002"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("run.keep_best=image_nats", "psnr, ssim, codebook_used, codebook_perplexity, dead_codes"),
        ("run.stop_after=0", "stop_after is 0; it must be at least 1"),
    ],
)
def test_wrong_options_give_a_one_line_error(
    option: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "a", option) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_early_stopping_needs_a_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "a", "run.stop_after=2", "run.keep_best=null") == 2
    assert "run.stop_after is 2 but run.keep_best is null" in capsys.readouterr().err


def test_best_is_lower_or_higher_by_metric() -> None:
    for stage, name, values, best_at in (
        ("dalle", "image_nats", (3.0, 2.0, 2.5, 2.0), 1),
        ("dalle", "image_accuracy", (0.1, 0.3, 0.2, 0.4), 3),
        ("image_tokenizer", "dead_codes", (5.0, 3.0, 4.0), 1),
        ("clip", "text_to_image@10", (0.5, 0.2, 0.5), 0),
    ):
        best = BestTracker(stage, name)
        improved = [best.add(at + 1, {name: value}) for at, value in enumerate(values)]
        assert best.step == best_at + 1 and best.value == values[best_at]
        assert best.since == len(values) - 1 - best_at == improved[::-1].index(True)


def test_validation_metrics_are_those_that_keep_best_takes(tmp_path: Path, clock: Clock) -> None:
    assert run(tmp_path / "a", "run.steps=2") == 0
    ((_, logged),) = validated(tmp_path / "a")
    assert {name.removeprefix("validation/") for name in logged} == set(METRICS["image_tokenizer"])
    of_zero_shot = {"zero_shot_top_1", "zero_shot_mean_per_class"}
    assert set(METRICS["clip"]) == set(metrics.retrieval(torch.eye(3), torch.eye(3), (1, 10))) | of_zero_shot


def test_steps_of_more_than_8_digits_are_in_order(tmp_path: Path) -> None:
    steps = (99_999_999, 100_000_000, 1_000_000_000)
    for step in reversed(steps):
        folder_of(tmp_path, step).mkdir(parents=True)
    assert [step_of(folder) for folder in folders(tmp_path)] == list(steps)
