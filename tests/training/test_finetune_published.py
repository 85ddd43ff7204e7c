"""Language models that draw go on from their own weights: the first loss is that of the model as published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import yaml

import dalle
from dalle.__main__ import main
from dalle.checkpoints.published.language_models import LANGUAGE_MODELS
from dalle.checkpoints.published.models import read_model
from dalle.data.batch import Batch
from dalle.training.init_from import resolve_recipe
from dalle.training.recipe import DALLERecipe
from dalle.training.tasks.dalle import DALLETask
from support.published import chameleon, emu3, emu3_models, emu35, janus, liquid, lumina2, simplear

pytest.importorskip("transformers", reason='pip install "dalle[t5]"')
pytest.importorskip("regex")
GRID: dict[str, Any] = {"grid": 4}
PAIRS = 6


class Source(NamedTuple):
    """A family's files, and how it trains guidance."""

    model: Path
    images: Path | None = None
    """None: the image tokenizer is in the model's files."""
    dropped: list[int] | None = None
    """What a caption is replaced by in its project's training; None: the model's null prompt, made of the caption."""


def write_anole(folder: Path) -> Source:
    made = chameleon.write_meta(chameleon.model_of(True), folder / "model")
    words = chameleon.tokenizer()
    return Source(made, dropped=[words.token_to_id(name) for name in ("<s>", "<racm3:break>")])


def write_lumina(folder: Path) -> Source:
    """Told from an Anole by its name; what its project drops is all that is in front of the image."""
    made = chameleon.write_transformers(chameleon.model_of(False), folder / "Lumina-mGPT-7B-512")
    chameleon.write_images(made / "vqgan.ckpt")
    words = chameleon.tokenizer()
    names = ("<racm3:break>", "<reserved08802>", "<reserved08802>")  # 2 x 2 cells of 2 x 2 codes
    return Source(made, dropped=[words.token_to_id(name) for name in names])


def write_lumina2(folder: Path) -> Source:
    return Source(lumina2.write(folder / "model"), dropped=lumina2.start(4, 4))


def write_liquid(folder: Path) -> Source:
    names = ("<bos>", "<unconditional>", "<boi>")
    made = liquid.write(liquid.model_of(), folder / "model")
    return Source(made, dropped=[liquid.tokenizer().token_to_id(name) for name in names])


def write_emu3(folder: Path) -> Source:
    made = emu3_models.write_project(folder / "model")
    return Source(made, made / "vision", [emu3.special("<|extra_203|>"), *emu3.image_start(4, 4)])


def write_emu35(folder: Path) -> Source:
    return Source(emu35.write(folder / "model"), dropped=emu35.null())


def write_simplear(folder: Path) -> Source:
    made = simplear.write(simplear.model_of(), folder / "model")
    dropped = [simplear.tokenizer().token_to_id(name) for name in ("<|t2i|>", "<|soi|>")]
    return Source(made, made / "DV8x16x16", dropped)


WRITERS: dict[str, Callable[[Path], Source]] = {
    "janus": lambda folder: Source(janus.write_deepseek(janus.model_of(), folder / "model")),
    "chameleon": write_anole,
    "lumina": write_lumina,
    "lumina2": write_lumina2,
    "liquid": write_liquid,
    "emu3": write_emu3,
    "emu35": write_emu35,
    "simplear": write_simplear,
}


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
