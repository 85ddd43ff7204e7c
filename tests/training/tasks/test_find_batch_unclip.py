"""find-batch trains and validates priors and diffusions as train.py does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.state import AcceleratorState

from dalle.__main__ import main
from dalle.training.find_batch import _run_trial
from dalle.training.recipe import load_recipe
from support.stage_recipes import RECIPES

SHAPE = {"embed_dim": 8, "text_width": 16, "text_length": 12}  # of the CLIP
STAGES = ("prior", "prior_ar", "decoder", "upsampler")


@pytest.fixture(autouse=True)
def own_state() -> Iterator[None]:
    """Accelerate holds the first settings of a process for good."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def recipe(stage: str, clip: str, folder: Path) -> Path:
    content = dict(RECIPES[stage])
    if stage != "upsampler":
        content |= {"clip": clip, "model": content["model"] | SHAPE}
    content["data"] = {"kind": "shapes", "size": 80}
    content["run"] = content["run"] | {"dir": str(folder / "run"), "validation_images": 4}
    file = folder / f"{stage}.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


class Answers:
    """In place of a pipe to the parent process."""

    def __init__(self) -> None:
        self.sent: list[object] = []

    def send(self, answer: object) -> None:
        self.sent.append(answer)


@pytest.mark.parametrize("stage", STAGES)
def test_a_trial_trains_and_validates(stage: str, clip: str, tmp_path: Path) -> None:
    answers: Any = Answers()
    own: Any = load_recipe(recipe(stage, clip, tmp_path))
    assert _run_trial(own, 10**12, answers)[0] == "fits"
    assert answers.sent == [None]  # from there on memory is measured
    broken: Any = load_recipe(recipe(stage, clip, tmp_path), ["data={kind: pairs, path: nowhere}"])
    kind, told = _run_trial(broken, 10**12, answers)
    assert kind == "wrong" and "nowhere" in told


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_command_prints_the_option(stage: str, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["find-batch", str(recipe(stage, clip, tmp_path)), "--memory", "4GB"]) == 0
    told = capsys.readouterr()
    assert told.out == "run.accumulation=1\n" and "8 images at a time: fits" in told.err
