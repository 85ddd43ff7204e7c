"""find-batch: the search against trying all sizes, real trials under a limit of memory, wrong inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.state import AcceleratorState

from dalle.__main__ import main
from dalle.training import find_batch as module
from dalle.training.find_batch import Trial, _largest, _run_trial
from dalle.training.recipe import LoopRecipe, load_recipe
from dalle.training.tasks.image_tokenizer import ImageTokenizerTask
from support.published import folders
from support.tiny_model import VQGAN_MODEL

VQGAN = {
    "stage": "image_tokenizer",
    "model": VQGAN_MODEL | {"image_size": 64, "channels": 32},
    "data": {"kind": "shapes", "size": 600},
    "optim": {},
    "run": {"dir": "run", "steps": 1, "batch_size": 512, "validation_images": 2, "device": "cpu"},
}


@pytest.mark.parametrize("sizes", [[1], [1, 2, 3, 6], [1, 2, 4, 8, 16, 32, 64], list(range(1, 40))])
def test_batch_search_equals_exhaustive_search(sizes: list[int]) -> None:
    for most in sizes:
        for guess in sizes:
            asked: list[int] = []

            def fits(images: int, asked: list[int] = asked, most: int = most) -> bool:
                asked.append(images)
                return images <= most

            assert _largest(sizes, guess, fits) == most
            assert len(set(asked)) == len(asked) and asked[0] == guess
            assert len(asked) <= 3 + len(sizes).bit_length()
            assert len(asked) <= 2 or guess != most  # a good guess is asked for, and what is beyond it


class Answers:
    """In place of a pipe to the parent process."""

    def send(self, answer: object) -> None:
        assert answer is None


def tried(recipe: Path, *options: str) -> tuple[str, str]:
    """The outcome of a trial of two small images, in this process."""
    small: Any = load_recipe(
        recipe, ["model.image_size=16", "run.batch_size=2", "data.size=80", "run.precision=fp32", *options]
    )
    answers: Any = Answers()
    return _run_trial(small, 10**12, answers)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    AcceleratorState._reset_state()  # Accelerate holds the first settings of a process for good
    (tmp_path / "vqgan.yaml").write_text(yaml.safe_dump(VQGAN))
    return tmp_path / "vqgan.yaml"


@pytest.mark.slow
def test_batch_that_does_not_fit_is_accumulated(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["find-batch", str(recipe), "--memory", "700MB"]) == 0
    out, err = capfd.readouterr()
    assert err.startswith("trying 512 images at a time ...\n512 images at a time: does not fit (it takes more)\n")
    assert "Traceback" not in err
    accumulation = int(out.removeprefix("run.accumulation="))
    assert 1 < accumulation < 512 and 512 % accumulation == 0
    assert f"{512 // accumulation} image{'s' * (accumulation < 512)} at a time: fits (" in err
    assert f"{1024 // accumulation} images at a time: does not fit" in err


@pytest.mark.slow
def test_recipe_errors_are_not_reported_as_out_of_memory(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["find-batch", str(recipe), "data={kind: drawings, root: nowhere}"]) == 2
    err = capfd.readouterr().err
    assert "nowhere" in err and "fit" not in err and err.count("\n") == 2  # what is tried, and why it cannot be
    assert main(["find-batch", str(recipe), "--memory", "1MB", "run.batch_size=2"]) == 2
    assert "dalle find-batch: not even one image fits 0.001 GB" in capfd.readouterr().err


def test_a_discriminator_that_starts_after_the_last_step_is_tried(recipe: Path) -> None:
    kind, told = tried(recipe, "adversarial={start: 5, channels: 8, layers: 1}")
    assert kind == "fits", told


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (AssertionError("lost"), "wrong", "a trial failed, and not for lack of memory: AssertionError: lost"),
        (RuntimeError("shapes\ndiffer"), "wrong", "not for lack of memory: RuntimeError: shapes differ"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "memory", "out of memory"),
    ],
)
def test_a_failure_is_not_taken_for_a_lack_of_memory(
    error: Exception, kind: str, told: str, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(ImageTokenizerTask, "loss", failing)
    found = tried(recipe)
    assert found[0] == kind and told in found[1]


def test_published_weights_are_converted_for_the_trials(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {
        "stage": "dalle",
        "init_from": str(folders.mindalle(tmp_path / "theirs")),
        "data": {"kind": "shapes", "size": 80},
        "optim": {},
        "run": {"dir": str(tmp_path / "run"), "steps": 1, "batch_size": 2, "validation_images": 2, "device": "cpu"},
    }
    (tmp_path / "finetune.yaml").write_text(yaml.safe_dump(content))

    def trial(tuned: LoopRecipe, images: int, *_: object) -> Trial:
        answers: Any = Answers()
        kind, told = _run_trial(tuned, 10**12, answers)
        assert kind == "fits", told
        return Trial(images, True, told)

    monkeypatch.setattr(module, "_trial", trial)
    assert main(["find-batch", str(tmp_path / "finetune.yaml"), "--memory", "4GB"]) == 0
    assert capsys.readouterr().out == "run.accumulation=1\n" and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory", "much"], "--memory is 'much'"),
        (["--processes", "3"], "not divisible by 3 processes"),
        (["--processes", "0"], "0 processes"),
        (["run.batchsize=3"], "run.batchsize: unknown key"),
    ],
)
def test_wrong_inputs_give_a_one_line_error(
    options: list[str], message: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["find-batch", str(recipe), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
