"""Language models that draw go on from their own weights: the first loss is that of the model as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml

import dalle
from dalle.__main__ import main
from dalle.checkpoints.published.language_models import LANGUAGE_MODELS
from dalle.checkpoints.published.models import read_model
from dalle.data.batch import Batch
from dalle.training.init_config import resolve_recipe
from dalle.training.recipe import DALLERecipe
from dalle.training.tasks.dalle import DALLETask
from support.published.families import WRITERS, Source

pytest.importorskip("transformers", reason='pip install "dalle[t5]"')
pytest.importorskip("regex")
GRID: dict[str, Any] = {"grid": 4}
PAIRS = 6


def test_all_families_of_language_models_are_here() -> None:
    assert WRITERS.keys() == set(LANGUAGE_MODELS)


# Each way in which captions are dropped; the other families are read otherwise but trained in the same way
FAST = ("janus", "chameleon", "emu3")


@pytest.fixture(
    scope="module", params=[name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in WRITERS]
)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Path]:
    """A family's files, and what `dalle convert` makes of them for images of 4 x 4 codes."""
    folder = tmp_path_factory.mktemp(request.param)
    made = WRITERS[request.param](folder)
    images = [] if made.images is None else ["--image-tokenizer", str(made.images)]
    assert main(["convert", str(made.model), str(folder / "ours"), "grid=4", *images]) == 0
    return made, folder / "ours"


def batch(size: int) -> Batch:
    images = torch.randint(
        0, 256, (PAIRS, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    captions = ["a red fox", "two cats, 12 dogs in the snow", "лиса", "", "a fox", "雪中的狐狸"]
    return Batch(images, captions, list(range(PAIRS)), [])


def recipe_of(folder: Path, scratch: Path, lora: dict[str, Any] | None) -> Path:
    content = {
        "stage": "dalle",
        "init_from": str(folder),
        "caption_dropout": 0.5,
        "lora": lora,
        "data": {"kind": "shapes"},
        "optim": {"lr": 1e-3, "ema": None},
        "run": {"dir": str(scratch / "run"), "steps": 1, "batch_size": PAIRS, "tracker": "none"},
    }
    (scratch / "finetune.yaml").write_text(yaml.safe_dump(content))
    return scratch / "finetune.yaml"


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4}], ids=["full", "LoRA"])
def test_the_first_loss_is_that_of_the_published_model(
    lora: dict[str, Any] | None, source: tuple[Source, Path], tmp_path: Path
) -> None:
    if lora is not None:
        pytest.importorskip("peft", reason='pip install "dalle[lora]"')
    published, folder = source
    recipe = resolve_recipe(recipe_of(folder, tmp_path, lora))
    assert isinstance(recipe, DALLERecipe)
    task = DALLETask(recipe, torch.device("cpu"))
    pairs = batch(task.image_size)

    # The model by its own files, with its own tokenizers
    found = read_model(published.model, None, GRID)
    model, words = dalle.load_model(published.model, **GRID), found.text_tokenizer
    assert words is not None
    text = words.encode(pairs.captions, model.config.text_length)
    images = dalle.load_image_tokenizer(published.images or folder / "image_tokenizer", rows=4)
    codes = images.encode(pairs.images.float() / 255).flatten(1)
    with torch.no_grad():
        losses = F.cross_entropy(model(text, codes).transpose(1, 2), codes, reduction="none")
    assert task.validate(task.model, [pairs])["image_nats"] == pytest.approx(losses.mean().item(), rel=1e-5)

    # In training some captions are dropped as the project drops them
    inputs = task.inputs(pairs)
    own = published.dropped
    blank = model.null_text(text) if own is None else words.pad([own] * PAIRS, text.shape[1])
    dropped = (inputs.text != text).any(1)
    assert 0 < dropped.sum() < PAIRS
    assert torch.equal(inputs.text, torch.where(dropped[:, None], blank, text))

    # A small step against the gradient of what is trained lowers the loss
    before, _ = task.loss(task.phases[0], inputs, 0)
    before.backward()
    trained = {name: parameter for name, parameter in task.model.named_parameters() if parameter.requires_grad}
    assert lora is None or all("lora_" in name for name in trained)
    square = sum(float(p.grad.square().sum()) for p in trained.values() if p.grad is not None)
    with torch.no_grad():
        for parameter in trained.values():
            if parameter.grad is not None:
                parameter -= 1e-2 * before.item() / square * parameter.grad
        after, _ = task.loss(task.phases[0], inputs, 0)
    assert after < before * 0.9995


def test_its_training_is_planned(
    source: tuple[Source, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = dalle.load_model(source[1])
    assert main(["plan", str(recipe_of(source[1], tmp_path, None)), "--memory", "24GiB"]) == 0
    told = capsys.readouterr().out
    assert f"{sum(value.numel() for value in model.parameters()):,} parameters" in told and "ddp" in told


def test_a_published_image_tokenizer_is_converted_for_the_run(tmp_path: Path) -> None:
    made = WRITERS["emu3"](tmp_path)
    assert made.images is not None
    assert main(["convert", str(made.model), str(tmp_path / "ours"), "grid=4"]) == 0  # has no image tokenizer
    recipe = recipe_of(tmp_path / "ours", tmp_path, None)
    run = [str(recipe), f"image_tokenizer={made.images}", "run.batch_size=2"]
    assert main(["train", *run]) == 0
    pipe = dalle.TextToImage.from_pretrained(tmp_path / "run" / "model", device="cpu")
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    published = dalle.load_image_tokenizer(made.images, rows=4)
    assert torch.equal(pipe.image_tokenizer.encode(images), published.encode(images)) and pipe.grid == (4, 4)
    assert pipe("a fox")[0].images[0].size == (8, 8)
