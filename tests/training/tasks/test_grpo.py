"""Policy optimization: rewards and advantages by slow loops, the gradient by enumeration, and that it learns."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import train
from dalle.__main__ import main
from dalle.checkpoints.load import load_clip
from dalle.config import ConfigError, dump, from_dict, to_dict
from dalle.data.batch import Batch
from dalle.generation.rerank import score
from dalle.images.transforms import resize_batch
from dalle.models.dalle import DALLE
from dalle.text_tokenizers.t5 import T5Encoder
from dalle.training.distributed.fsdp import Sharding
from dalle.training.recipe import DALLERecipe
from dalle.training.tasks.grpo import GRPOTask, PolicyInputs, advantages, candidate_seeds
from support.tiny_model import DALLE_MODEL, GRID, IMAGE_SIZE, dalle_recipe, make_tiny_model

CPU = torch.device("cpu")
SILENT = DALLE_MODEL | {"text_head": False}
UNDROPPED = {"caption_dropout": 0, "sampling": {"guidance": 1}}
CAPTIONS = ["a red heart", "लाल दिल", "two blue stars"]


def recipe_of(parts: Path, folder: Path, **changes: Any) -> DALLERecipe:
    own = {"clip": str(parts / "clip"), "grpo": {"candidates": 4}}
    return from_dict(DALLERecipe, dalle_recipe(parts, folder / "run", **own | changes), "test")


@pytest.fixture(scope="module")
def task(tiny_parts: Path, tmp_path_factory: pytest.TempPathFactory) -> GRPOTask:
    torch.manual_seed(0)
    return GRPOTask(recipe_of(tiny_parts, tmp_path_factory.mktemp("task")), torch.device("cpu"))


@pytest.fixture(scope="module")
def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (3, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, generator=generator)
    return Batch(images, CAPTIONS, [7, 8, 9], [])


def test_a_pair_is_drawn_the_same_whatever_the_batch(task: GRPOTask, batch: Batch) -> None:
    together = task.inputs(batch)
    alone = [task.inputs(Batch(batch.images[i : i + 1], CAPTIONS[i : i + 1], [7 + i], [])) for i in range(3)]
    assert torch.equal(together.drawn, torch.cat([one.drawn for one in alone]))
    torch.testing.assert_close(together.advantages, torch.cat([one.advantages for one in alone]))
    assert together.drawn.shape == (3, 4, GRID[0] * GRID[1]) and len(together.drawn[0].unique(dim=0)) == 4
    assert len({seed for own in (7, 8, 9) for seed in candidate_seeds(own, 4)}) == 12
    assert task.model.training


def test_rewards_equal_a_slow_loop(task: GRPOTask, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "grpo", replace(task.grpo, text=0.7, image=0.3, pixels=2.0))
    inputs = task.inputs(batch)
    clip = load_clip(task.recipe.clip or "")
    tokenizer = task.image_tokenizer
    totals = []
    with torch.no_grad():
        for caption, true_codes, several in zip(CAPTIONS, inputs.codes, inputs.drawn, strict=True):
            true = tokenizer.decode(true_codes.view(1, *GRID))
            own = []
            for codes in several:
                image = tokenizer.decode(codes.view(1, *GRID))
                # These images have the 16 pixels a side at which two are compared
                pixels = (image - true).square().mean().sqrt()
                embeds = [clip.encode_image(resize_batch(one, clip.config.image_size)) for one in (image, true)]
                like = (embeds[0] * embeds[1]).sum()
                own.append(0.7 * score(clip, image, [caption])[0] + 0.3 * like - 2.0 * pixels)
            totals.append(torch.stack(own))
    expected = torch.stack(totals)
    torch.testing.assert_close(inputs.rewards["reward"], expected.mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(inputs.advantages, advantages(expected), atol=1e-4, rtol=1e-4)
    parts = [inputs.rewards[f"reward_{name}"] for name in ("text", "image", "pixels")]
    torch.testing.assert_close(inputs.rewards["reward"], torch.stack(parts).sum())


def test_advantages_equal_the_definition() -> None:
    rewards = torch.tensor([[0.1, 0.5, 0.3], [0.2, 0.2, 0.2]])
    deviation = statistics.stdev([0.1, 0.5, 0.3])
    expected = [[(own - 0.3) / (deviation + 0.03) for own in (0.1, 0.5, 0.3)], [0.0] * 3]
    torch.testing.assert_close(advantages(rewards), torch.tensor(expected))
    noise = advantages(torch.tensor([[0.5, 0.5001]]))
    assert noise.abs().max() < 0.01  # all alike: nothing to learn from


def test_the_gradient_is_that_of_the_expected_reward(task: GRPOTask) -> None:
    """Of a model of two tokens all images can be enumerated: the mean over draws is the gradient of the expectation."""
    torch.manual_seed(3)
    config = replace(task.recipe.model, image_vocab=3, grid=(1, 2))
    model = DALLE(config).double()
    text = torch.tensor([[5, 6, 0, 0]])
    images = torch.tensor(list(itertools.product(range(3), repeat=2)))  # all 9
    rewards = torch.rand(9, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    probability = (-model.image_losses(text.expand(9, -1), images).double().sum(1)).exp()
    assert float(probability.detach().sum()) == pytest.approx(1, abs=1e-6)
    (wanted,) = torch.autograd.grad((probability * rewards).sum(), model.image_head.weight)
    model.zero_grad()
    # Each image as often as it is likely, its advantage measured from the mean that is expected
    weights = probability.detach()
    baseline = (weights * rewards).sum()
    stub = object.__new__(GRPOTask)
    stub.model, stub.grpo = model, replace(task.grpo, candidates=9)
    scaled = (weights * (rewards - baseline) * 9)[None]
    none = torch.zeros(0)
    stub.policy_loss(PolicyInputs(none, none, none, text, images[None], scaled, {})).backward()
    found = model.image_head.weight.grad
    assert found is not None
    # The mean over two tokens, where the reward counts for their sum
    torch.testing.assert_close(-2 * found, wanted, atol=1e-7, rtol=1e-4)


def test_it_learns_to_draw_what_is_rewarded(
    tiny_parts: Path, tmp_path: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def even(self: GRPOTask, captions: list[str], codes: Tensor, drawn: Tensor) -> dict[str, Tensor]:
        return {"even": (drawn % 2 == 0).float().mean(-1)}

    monkeypatch.setattr(GRPOTask, "_rewards", even)
    torch.manual_seed(0)
    grpo = {"candidates": 8, "text": 0, "image": 0, "supervised": 0}
    own = GRPOTask(recipe_of(tiny_parts, tmp_path, grpo=grpo, clip=None), torch.device("cpu"))
    optimizer = torch.optim.Adam(own.model.parameters(), lr=1e-2)
    rewards = []
    for step in range(30):
        inputs = own.inputs(Batch(batch.images, CAPTIONS, [3 * step, 3 * step + 1, 3 * step + 2], []))
        loss, parts = own.loss(own.phases[0], inputs, step)
        assert set(parts) == {"reward", "reward_even", "reward_deviation"}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rewards.append(float(parts["reward"]))
    assert rewards[0] == pytest.approx(0.5, abs=0.1) and statistics.mean(rewards[-3:]) > 0.9


def test_the_loss_has_a_supervised_part(task: GRPOTask, batch: Batch) -> None:
    inputs = task.inputs(batch)
    total, parts = task.loss(task.phases[0], inputs, 1)
    text, image = (
        task.model.losses(inputs.text, inputs.codes, input_ids=inputs.read)[name] for name in ("text", "image")
    )
    expected = task.policy_loss(inputs) + 0.1 * (text / 8 + image * 7 / 8)
    torch.testing.assert_close(total, expected)
    assert {"text", "image", "reward", "reward_text", "reward_image", "reward_pixels"} <= set(parts)


def test_sharding_and_planning_are_refused(
    tiny_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(tiny_parts, tmp_path)
    with pytest.raises(ValueError, match="set run.sharding=none"):
        GRPOTask(recipe, torch.device("cpu"), Sharding(torch.device("cpu"), torch.bfloat16))
    (tmp_path / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
    assert main(["plan", str(tmp_path / "recipe.yaml")]) == 2
    assert "set grpo=null for the training before it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"clip": None}, "clip is null"),
        ({"grpo": {"text": 0, "image": 0, "pixels": 0}}, "nothing would be rewarded"),
        ({"grpo": {"candidates": 1}}, "candidates is 1"),
        ({"text_weight": 0, "image_weight": 0}, "or grpo.supervised=0"),
        ({"model": SILENT, "image_weight": 0}, "set image_weight above 0, or grpo.supervised=0"),
    ],
)
def test_recipes_that_cannot_work(tiny_parts: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe_of(tiny_parts, tmp_path, **changes)


def test_a_sharded_recipe_is_refused_before_it_runs(tiny_parts: Path, tmp_path: Path) -> None:
    recipe = to_dict(recipe_of(tiny_parts, tmp_path))
    recipe["run"]["sharding"] = "fsdp"
    with pytest.raises(ConfigError, match="set run.sharding=none"):
        from_dict(DALLERecipe, recipe, "test")


def test_rewards_alone_are_something_to_learn_from(tiny_parts: Path, tmp_path: Path) -> None:
    for silent in {"text_weight": 0}, {"model": SILENT}, {"model": DALLE_MODEL | {"text_length": 1}}:
        recipe_of(tiny_parts, tmp_path, grpo={"supervised": 0}, image_weight=0, **silent)
        with pytest.raises(ConfigError, match="nothing would be learned"):
            recipe_of(tiny_parts, tmp_path, grpo=None, image_weight=0, **silent)
    recipe_of(tiny_parts, tmp_path, grpo=None, image_weight=0)  # captions alone are as well


class Features(T5Encoder):
    """In place of a T5: the features of a caption depend on its length."""

    def __init__(self) -> None:
        self.width, self.encoded = 6, 0

    def encode(self, texts: Sequence[str], length: int = 0) -> Tensor:
        self.encoded += len(texts)
        return torch.stack([torch.full((length, 6), float(len(text))) for text in texts])


def test_a_text_encoder_reads_each_caption_once(
    tiny_parts: Path, tmp_path: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Features()
    monkeypatch.setattr(T5Encoder, "load", lambda *_: encoder)
    model = {name: value for name, value in SILENT.items() if name != "text_vocab"} | {"text_features": 6}
    own = GRPOTask(recipe_of(tiny_parts, tmp_path, model=model, **UNDROPPED), CPU)
    inputs = own.inputs(batch)
    assert encoder.encoded == len(CAPTIONS) and own.recipe.bpe_dropout > 0
    assert torch.equal(inputs.text, inputs.prompts)


def test_captions_are_read_again_with_bpe_dropout(tiny_parts: Path, tmp_path: Path, batch: Batch) -> None:
    for dropout in 0.0, 1.0:
        own = GRPOTask(recipe_of(tiny_parts, tmp_path, bpe_dropout=dropout, **UNDROPPED), CPU)
        inputs = own.inputs(batch)
        assert torch.equal(inputs.text, inputs.prompts) == (dropout == 0)


def test_a_run_resumes_with_the_clip_that_rewards(
    tiny_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that only ranks may be another."""
    other = make_tiny_model(tmp_path / "other", seed=1).parent / "clip"
    own = ["run.device=cpu", "run.tracker=none", "resume=true"]
    for grpo, code in ({"candidates": 2}, 2), (None, 0):
        recipe = to_dict(recipe_of(tiny_parts, tmp_path / str(code), grpo=grpo))
        file = tmp_path / f"{code}.json"
        file.write_text(json.dumps(recipe), encoding="utf-8")
        assert train.main([str(file), *own[:2]]) == 0
        capsys.readouterr()
        assert train.main([str(file), *own, "run.steps=2", f"clip={other}"]) == code
        assert ("is not the one that the run" in capsys.readouterr().err) == (code == 2)
