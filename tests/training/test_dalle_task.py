"""What the transformer's stage makes of captions: some are dropped whole, and some of the others' merges are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dalle.checkpoints.load import load_clip
from dalle.config import from_dict
from dalle.data.loader import Batch
from dalle.generation.rerank import score
from dalle.training.recipe import DALLERecipe
from dalle.training.tasks.dalle import DALLETask
from tiny_model import CODES, GRID, IMAGE_SIZE, TEXT_LENGTH, make_tiny_model


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> DALLETask:
    folder = make_tiny_model(tmp_path_factory.mktemp("parts")).parent
    recipe = {
        "stage": "dalle",
        "model": {
            "transformer": {"width": 16, "depth": 1, "heads": 2},
            "text_vocab": 300,
            "text_length": TEXT_LENGTH,
            "image_vocab": CODES,
            "grid": list(GRID),
        },
        "data": {"kind": "shapes"},
        "optim": {},
        "run": {"dir": str(folder / "run"), "updates": 1, "batch_size": 1},
        "text_tokenizer": str(folder / "text_tokenizer"),
        "image_tokenizer": str(folder / "image_tokenizer"),
        "bpe_dropout": 0.2,
        "caption_dropout": 0.3,
    }
    return DALLETask(from_dict(DALLERecipe, recipe, "test"), torch.device("cpu"))


def test_captions_and_merges_are_dropped_independently(task: DALLETask) -> None:
    count = 1000
    images = torch.zeros(count, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    text = task.inputs(Batch(images, ["a"] * count, list(range(count)), [])).text  # [1000, T]
    whole = task.text_tokenizer.encode(["a"], TEXT_LENGTH)
    assert int((whole != 0).sum()) == 2  # the piece of a space and an a, and EOS: one merge
    dropped = (text == 0).all(1)
    assert dropped.double().mean() == pytest.approx(0.3, abs=0.05)
    kept = text[~dropped]
    assert (kept != whole).any(1).double().mean() == pytest.approx(0.2, abs=0.05)


def test_a_pair_is_the_same_in_any_batch(task: DALLETask) -> None:
    images = torch.zeros(8, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    captions = ["a red heart", "लाल दिल"] * 4
    together = task.inputs(Batch(images, captions, list(range(8)), [])).text
    alone = [task.inputs(Batch(images[i : i + 1], captions[i : i + 1], [i], [])).text for i in range(8)]
    assert torch.equal(together, torch.cat(alone))


def test_sample_pictures_are_scored_against_their_own_prompts(task: DALLETask, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, clip = ("a red circle", "निलो वर्ग"), str(Path(task.recipe.text_tokenizer).parent / "clip")
    monkeypatch.setattr(task, "recipe", replace(task.recipe, prompts=prompts))
    nothing = Batch(torch.zeros(0), [], [], [])
    unscored = task.pictures(task.model.eval(), nothing)
    assert unscored is not None and unscored.figures == {}
    monkeypatch.setattr(task, "recipe", replace(task.recipe, clip=clip))
    samples = task.pictures(task.model, nothing)
    assert samples is not None and samples.picture.tobytes() == unscored.picture.tobytes()
    critic, scores, step = load_clip(clip), [], IMAGE_SIZE + 2
    for row, prompt in enumerate(prompts):
        for column in range(8):
            left, top = 2 + column * step, 2 + row * step
            cell = np.asarray(samples.picture.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE)))
            image = torch.tensor(cell).permute(2, 0, 1)[None] / 255
            scores.append(score(critic, image, [prompt]).item())
    assert samples.figures["clip_score"] == pytest.approx(np.mean(scores), abs=1e-3)
    assert abs(np.mean(scores[:8]) - np.mean(scores[8:])) > 5e-3  # so that prompts in another order would be noticed
