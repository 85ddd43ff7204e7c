"""A CLIP that learns from images as an image tokenizer decodes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dalle
from dalle.config import from_dict
from dalle.data.batch import Batch
from dalle.training.recipe import CLIPRecipe
from dalle.training.tasks.clip import CLIPTask
from support.stage_recipes import RECIPES

SEEDS = list(range(12))


def recipe(parts: Path, **options: Any) -> CLIPRecipe:
    content = RECIPES["clip"] | {"augment": 0.0, "text_tokenizer": str(parts / "text_tokenizer")} | options
    content["run"] = content["run"] | {"dir": str(parts / "run")}
    content["model"] = content["model"] | {"text_vocab": dalle.load_text_tokenizer(parts / "text_tokenizer").vocab_size}
    return from_dict(CLIPRecipe, content, "test")


def batch(size: int) -> Batch:
    images = torch.randint(0, 256, (len(SEEDS), 3, size, size), generator=torch.Generator().manual_seed(0))
    return Batch(images.to(torch.uint8), ["a heart"] * len(SEEDS), SEEDS, [])


def test_some_images_are_replaced_by_their_reconstructions(tiny_copy: Path) -> None:
    source = str(tiny_copy / "image_tokenizer")
    tokenizer = dalle.load_image_tokenizer(source)
    task = CLIPTask(recipe(tiny_copy, image_tokenizer=source, reconstructed=0.5), torch.device("cpu"))
    given = batch(task.image_size)
    plain = given.unit_images(torch.device("cpu"))
    decoded = tokenizer.decode(tokenizer.encode(plain))
    images = task.inputs(given).images
    replaced = [not torch.equal(image, before) for image, before in zip(images, plain, strict=True)]
    assert 2 <= sum(replaced) <= 10
    for row, done in enumerate(replaced):
        torch.testing.assert_close(images[row], decoded[row] if done else plain[row])
    # By the seed of each image: a process or micro-batch that has some of them replaces the same
    half = task.inputs(given.part(slice(6, 12))).images
    torch.testing.assert_close(half, images[6:])


def test_tokenizer_and_fraction_go_together(tiny_copy: Path) -> None:
    for options in ({"image_tokenizer": str(tiny_copy / "image_tokenizer")}, {"reconstructed": 0.5}):
        with pytest.raises(ValueError, match="give the tokenizer that reconstructs and a fraction above 0, or neither"):
            recipe(tiny_copy, **options)


def test_published_weights_are_to_be_converted(tiny_copy: Path) -> None:
    file = tiny_copy / "vqgan.ckpt"
    file.write_bytes(b"weights")
    published = recipe(tiny_copy, image_tokenizer=str(file), reconstructed=0.5)
    with pytest.raises(ValueError, match=r"no model folder: convert published weights, .* dalle convert .*vqgan\.ckpt"):
        CLIPTask(published, torch.device("cpu"))


def test_size_must_fit_the_cells_of_the_tokenizer(tiny_copy: Path) -> None:
    model = RECIPES["clip"]["model"] | {"image_size": 21, "patch_size": 7}
    odd = recipe(tiny_copy, model=model, image_tokenizer=str(tiny_copy / "image_tokenizer"), reconstructed=0.5)
    with pytest.raises(ValueError, match=r"model\.image_size is 21: .* multiples of"):
        CLIPTask(odd, torch.device("cpu"))
