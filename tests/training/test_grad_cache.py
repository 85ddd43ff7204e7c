"""A contrastive batch in pieces: the gradients of the whole at once, with dropout and augmentation, in less memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.data.batch import Batch
from dalle.text_tokenizers import SentencePieceTokenizer, TextTokenizerConfig
from dalle.training.recipe import CLIPRecipe, parse_recipe
from dalle.training.run.log import start_accelerator
from dalle.training.tasks.clip import CLIPTask
from dalle.training.train_step import accumulate, seed_noise
from support.memory_peaks import peak_of

COLORS, THINGS = ("red", "blue", "green", "black"), ("heart", "star", "circle", "square", "house")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    captions = [f"a {color} {thing}" for color in COLORS for thing in THINGS]
    SentencePieceTokenizer.train(TextTokenizerConfig(vocab_size=300), captions).save(folder)
    return folder


def recipe(words: Path, batch: int, pieces: int, dropout: float = 0.0, **options: Any) -> CLIPRecipe:
    tower = {"width": 16, "depth": 2, "heads": 2, "dropout": dropout}
    data: dict[str, Any] = {
        "stage": "clip",
        "model": {"image_size": 16, "patch_size": 8, "vision": tower, "text": tower, "text_vocab": 300},
        "data": {"kind": "shapes"},
        "optim": {},
        "run": {"dir": "run", "steps": 1, "batch_size": batch, "accumulation": pieces},
        "text_tokenizer": str(words),
        "augment": 1.0,
        "bpe_dropout": 0.1,
    }
    data["run"] |= {"precision": "fp32", "device": "cpu", "tracker": "none"}
    data["model"] |= {"text_length": 12, "embed_dim": 8}
    found = parse_recipe(data | options, "test")
    assert isinstance(found, CLIPRecipe)
    return found


def batch_of(count: int, side: int = 16) -> Batch:
    random = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, side, side), generator=random, dtype=torch.uint8)
    captions = [f"a {COLORS[i % 4]} {THINGS[i // 4 % 5]}" + " and a star" * (i // 20 % 3) for i in range(count)]
    return Batch(images, captions, list(range(count)), [])


def gradients(told: CLIPRecipe, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Loss, gradients, and what random number comes next, of one step as the loop makes it."""
    torch.manual_seed(0)
    task = CLIPTask(told, CPU)
    with torch.no_grad():
        for parameter in task.model.parameters():  # fresh towers give nearly the same vector for everything
            parameter.add_(0.1 * torch.randn_like(parameter))
    task.model.train()
    seed_noise(0, 3, 0)
    micro = [task.inputs(part) for part in batch.split(told.run.accumulation)]
    loss, metrics = accumulate(task, task.phases[0], micro, start_accelerator(told.run), 3)
    assert [set(one) for one in metrics] == [{"clip_loss", "scale"}] and not loss.requires_grad
    found = {name: p.grad.clone() for name, p in task.model.named_parameters() if p.grad is not None}
    assert len(found) == len(list(task.model.parameters()))
    return loss, found, torch.rand(1)


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].sub(value).abs().max() < 1e-6, name


@pytest.mark.parametrize("pieces", [2, 16])
def test_chunked_gradients_equal_the_batchs(words: Path, pieces: int) -> None:
    """16 x 16 and 2 x 128 are 1 x 256, each image changed at random and merges dropped."""
    batch = batch_of(256)
    loss, wanted, _ = gradients(recipe(words, 256, 1), batch)
    again, found, _ = gradients(recipe(words, 256, pieces), batch)
    assert max(float(value.abs().max()) for value in wanted.values()) > 1e-2
    assert float(again) == pytest.approx(float(loss), abs=1e-6)
    same(found, wanted)


class Masks:
    """Dropout whose masks are written down, call by call; or which takes those that were, in place of its own."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    @contextmanager
    def told(self, dropout: Callable[..., Tensor]) -> Iterator[None]:
        real = F.dropout
        try:
            F.dropout = dropout
            yield
        finally:
            F.dropout = real

    def draw(self, x: Tensor, share: float) -> Tensor:
        mask = torch.rand(x.shape) >= share
        self.kept.append(mask)
        return x * mask / (1 - share)


def test_second_pass_repeats_the_first_passes_dropout(words: Path) -> None:
    """The masks of 16 pieces, put together call by call, in one pass over 256 pairs: the same gradients."""
    batch, pieces = batch_of(256), 16
    drawn = Masks()
    with drawn.told(drawn.draw):
        loss, found, _ = gradients(recipe(words, 256, pieces, dropout=0.2), batch)
    passes = len(drawn.kept) // (2 * pieces)
    first, second = drawn.kept[: passes * pieces], drawn.kept[passes * pieces :]
    assert passes == 8 and all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    whole = iter([torch.cat(first[call::passes]) for call in range(passes)])
    with drawn.told(lambda x, share: x * next(whole) / (1 - share)):
        wanted_loss, wanted, _ = gradients(recipe(words, 256, 1, dropout=0.2), batch)
    assert float(loss) == pytest.approx(float(wanted_loss), abs=1e-6)
    same(found, wanted)


def test_second_pass_repeats_attention_dropout(words: Path) -> None:
    """Against one graph over all pieces, which draw in turn; and later random numbers are those of one pass."""
    told = recipe(words, 48, 3, dropout=0.1)
    towers = {name: replace(getattr(told.model, name), attention_dropout=0.3) for name in ("vision", "text")}
    told = replace(told, model=replace(told.model, **towers))
    loss, found, following = gradients(told, batch_of(48))

    torch.manual_seed(0)
    task = CLIPTask(told, CPU)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    task.model.train()
    seed_noise(0, 3, 0)
    made = [task.embed(task.inputs(part)) for part in batch_of(48).split(3)]
    wanted, _ = task.batch_loss(tuple(torch.cat(kind) for kind in zip(*made)))
    assert torch.equal(torch.rand(1), following)
    wanted.backward()
    assert float(loss) == pytest.approx(float(wanted.detach()), abs=1e-6)
    same(found, {name: p.grad for name, p in task.model.named_parameters() if p.grad is not None})


def test_frozen_tower_gets_no_gradients(words: Path) -> None:
    told = recipe(words, 12, 3)
    torch.manual_seed(0)
    task = CLIPTask(told, CPU)
    task.model.vision.requires_grad_(False)
    micro = [task.inputs(part) for part in batch_of(12).split(3)]
    accumulate(task, task.phases[0], micro, start_accelerator(told.run), 0)
    assert all(p.grad is None for p in task.model.vision.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in task.model.text.parameters())


def test_peak_memory_is_that_of_a_chunk(words: Path, tmp_path: Path) -> None:
    """256 pairs at once or 16 times 16; all pairs' cosines, [256, 256], and their gradients stay."""
    batch, peaks = batch_of(256), {}
    for pieces in (1, 16):
        told = recipe(words, 256, pieces)
        task = CLIPTask(told, CPU)
        task.model.train()
        micro = [task.inputs(part) for part in batch.split(pieces)]
        accelerator = start_accelerator(told.run)
        work = lambda t=task, m=micro, a=accelerator: accumulate(t, t.phases[0], m, a, 0)  # noqa: E731
        peaks[pieces] = peak_of(work, tmp_path)
    print(f"peak beyond weights and inputs: {peaks[1] / 1e6:.1f} MB at once, {peaks[16] / 1e6:.1f} MB in 16 pieces")
    assert peaks[16] < peaks[1] / 5


def test_batches_that_cannot_be_chunked_give_a_one_line_error(words: Path) -> None:
    with pytest.raises(ValueError, match=r"batch_size is 1: pairs are contrasted with others"):
        recipe(words, 1, 1)
    run = {"dir": "run", "steps": 1, "batch_size": 8, "accumulation": 2, "compile": True}
    with pytest.raises(ValueError, match=r"compiled code drops other units"):
        recipe(words, 8, 2, dropout=0.1, run=run)
    recipe(words, 8, 2, run=run)
