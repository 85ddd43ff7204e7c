"""find-batch: the search against trying all sizes, real trials under a limit of memory, wrong inputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dalle.__main__ import main
from dalle.training.find_batch import _largest
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


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "vqgan.yaml").write_text(yaml.safe_dump(VQGAN))
    return tmp_path / "vqgan.yaml"


@pytest.mark.slow
def test_batch_that_does_not_fit_is_accumulated(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["find-batch", str(recipe), "--memory", "700MB"]) == 0
    out, err = capfd.readouterr()
    assert err.startswith("512 images at a time: does not fit (it takes more)\n") and "Traceback" not in err
    accumulation = int(out.removeprefix("run.accumulation="))
    assert 1 < accumulation < 512 and 512 % accumulation == 0
    assert f"{512 // accumulation} image{'s' * (accumulation < 512)} at a time: fits (" in err
    assert f"{1024 // accumulation} images at a time: does not fit" in err


@pytest.mark.slow
def test_recipe_errors_are_not_reported_as_out_of_memory(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["find-batch", str(recipe), "data={kind: drawings, root: nowhere}"]) == 2
    err = capfd.readouterr().err
    assert "nowhere" in err and "fit" not in err and err.count("\n") == 1
    assert main(["find-batch", str(recipe), "--memory", "1MB", "run.batch_size=2"]) == 2
    assert "dalle find-batch: not even one image fits 0.001 GB" in capfd.readouterr().err


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
