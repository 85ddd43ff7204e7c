"""Training priors: the folder that comes out, what is left to chance, the figures, recipes that do not fit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dalle
import train
from dalle.checkpoints.model_folder import ModelFolder
from dalle.config import from_dict
from dalle.data import open_data
from dalle.data.batch import Batch
from dalle.data.loader import batches, evaluation_batches
from dalle.evaluation.priors import compare_embeddings
from dalle.models.autoregressive_prior import AutoregressivePrior
from dalle.models.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from dalle.models.transformer_config import TransformerConfig
from dalle.training.checkpoint.best import METRICS
from dalle.training.recipe import PriorRecipe
from dalle.training.tasks.prior import PriorTask
from support.custom_layouts import with_tars
from support.short_runs import TWO_STEPS

ROOT = Path(__file__).parents[3]
TINY = TransformerConfig(width=16, depth=1, heads=2)
RECIPE = {
    "stage": "prior",
    "model": {
        "kind": "diffusion",
        "transformer": {"width": 16, "depth": 1, "heads": 2},
        "embed_dim": 8,
        "text_width": 16,
        "text_length": 12,
    },
    "data": {"kind": "shapes"},
    "statistics_images": 64,
    "sampling": {"samples": 2, "sampler": {"steps": 2}},
    **TWO_STEPS,
}
AUTOREGRESSIVE = RECIPE | {
    "model": {**RECIPE["model"], "kind": "autoregressive", "buckets": 8, "dot_buckets": 4, "variance": 0.9},
    "sampling": {},
}


def task_of(recipe: dict, clip: str, folder: Path) -> PriorTask:
    data = recipe | {"clip": clip, "run": recipe["run"] | {"dir": str(folder)}}
    torch.manual_seed(0)
    return PriorTask(from_dict(PriorRecipe, data, "recipe"), torch.device("cpu"))


def first_batch(count: int = 4) -> Batch:
    task_data = from_dict(PriorRecipe, RECIPE | {"clip": "x", "run": RECIPE["run"] | {"dir": "x"}}, "recipe").data
    return next(batches(open_data(task_data, "train", 16), batch_size=count, seed=0))


@pytest.mark.parametrize("recipe", [RECIPE, AUTOREGRESSIVE], ids=["diffusion", "autoregressive"])
def test_training_writes_a_folder_that_loads(
    recipe: dict, clip: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tmp_path / "prior.yaml"
    config.write_text(json.dumps(recipe | {"clip": clip}))
    assert train.main([str(config), f"run.dir={tmp_path / 'run'}"]) == 0
    folder = ModelFolder(tmp_path / "run/model")
    prior = dalle.load_prior(folder)
    assert isinstance(prior, DiffusionPrior if recipe is RECIPE else AutoregressivePrior)
    assert folder.component("clip").sha256 == ModelFolder(Path(clip)).sha256
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    validation = next(line for line in lines if "validation/cos" in line)
    assert {f"validation/{name}" for name in METRICS["prior"]} <= set(validation)
    # The statistics are those of the training set, not moved by weight decay or averaging
    images, texts = task_of(recipe, clip, tmp_path)._embeddings()
    assert len(images) == len(texts) == 64
    torch.testing.assert_close(prior.image_mean, images.mean(0))
    torch.testing.assert_close(prior.text_deviation, texts.std(0))
    if isinstance(prior, AutoregressivePrior):
        standard = prior.standardize(images)
        kept = (standard @ prior.basis).square().sum() / standard.square().sum()
        assert kept > 0.9 and 0 < prior.components < 8
        assert "components keep less" not in caplog.text
        few = recipe | {"model": recipe["model"] | {"components": prior.components - 1}}
        task_of(few, clip, tmp_path)
        assert f"of the variance, which takes {prior.components}: set model.components=null" in caplog.text


@pytest.mark.parametrize("recipe", [RECIPE, AUTOREGRESSIVE], ids=["diffusion", "autoregressive"])
def test_randomness_comes_from_each_pairs_seed(recipe: dict, clip: str, tmp_path: Path) -> None:
    """A batch in halves, as two processes have it, makes the loss of the whole."""
    task = task_of(recipe, clip, tmp_path)
    task.model.eval()
    batch = first_batch()
    whole, _ = task.loss(task.phases[0], task.inputs(batch), 0)
    halves = [task.loss(task.phases[0], task.inputs(half), 7)[0] for half in batch.split(2)]
    torch.testing.assert_close(sum(halves) / 2, whole)


def test_loss_is_the_squared_error_of_the_standardized_embedding(clip: str, tmp_path: Path) -> None:
    task = task_of(RECIPE, clip, tmp_path)
    inputs = task.inputs(first_batch())
    known = (inputs.embeds - task.model.image_mean) / task.model.image_deviation

    class Perfect(DiffusionPrior):
        def forward(self, noised: Tensor, steps: Tensor, text: object, dropped: Tensor | None = None) -> Tensor:
            for row, step in enumerate(steps.tolist()):
                a = task.schedule.alpha_bar(step)
                expected = math.sqrt(a) * known[row] + math.sqrt(1 - a) * inputs.noise[row]
                torch.testing.assert_close(noised[row], expected)
            return known + 0.5

    assert isinstance(task.model, DiffusionPrior)
    perfect = Perfect(task.model.config)
    perfect.load_state_dict(task.model.state_dict())
    task.model = perfect
    loss, _ = task.loss(task.phases[0], inputs, 0)
    assert loss.item() == pytest.approx(0.25)


def test_caption_dropout_follows_the_recipe(clip: str, tmp_path: Path) -> None:
    for share in (0.0, 0.3, 1.0):
        task = task_of(RECIPE | {"caption_dropout": share, "sampling": {}}, clip, tmp_path)
        dropped = task.inputs(first_batch(200)).dropped.float().mean().item()
        assert dropped == pytest.approx(share, abs=0.1)


def test_metrics_equal_a_slow_loop() -> None:
    prior = DiffusionPrior(DiffusionPriorConfig(transformer=TINY, embed_dim=5, text_width=4, text_length=3))
    random = torch.Generator().manual_seed(0)
    true = torch.randn(40, 5, generator=random) + 2
    drawn = true[:, None] + torch.randn(40, 3, 5, generator=random)
    prior.fit(true, true)

    def cos(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b)) / math.hypot(*a) / math.hypot(*b)

    mean = true.mean(0)
    figures = compare_embeddings(true, drawn, prior)
    for name, guess in (("", drawn[:, 0]), ("mean_", drawn.mean(1))):
        pairs = list(zip(guess, true))
        plain = sum(cos(a.tolist(), b.tolist()) for a, b in pairs) / 40
        centered = sum(cos((a - mean).tolist(), (b - mean).tolist()) for a, b in pairs) / 40
        assert figures[name + "cos"] == pytest.approx(plain, abs=1e-5)
        assert figures[name + "centered_cos"] == pytest.approx(centered, abs=1e-5)
    assert figures["mean_cos"] > figures["cos"]
    assert compare_embeddings(true, true[:, None], prior)["frechet"] == pytest.approx(0, abs=1e-4)
    assert figures["frechet"] > 0.5


def test_prior_learns_from_captions(clip: str, tmp_path: Path) -> None:
    """After some steps it knows more of held-out shapes than their mean, whose centered cosine is 0."""
    task = task_of(RECIPE | {"sampling": {"samples": 1, "sampler": {"steps": 4}}}, clip, tmp_path)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-2)
    stream = batches(open_data(task.recipe.data, "train", 16), batch_size=32, seed=0)
    for step in range(60):
        loss, _ = task.loss(task.phases[0], task.inputs(next(stream)), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held_out = open_data(task.recipe.data, "validation", 16)
    figures = task.validate(task.model.eval(), evaluation_batches(held_out, 32, limit=64))
    assert figures["mean_centered_cos"] > 0.3


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model.embed_dim=9", "needs 8: set model.embed_dim=8"),
        ("model.text_width=9", "needs 16: set model.text_width=16"),
        ("model.text_length=9", "needs 12: set model.text_length=12"),
        ("statistics_images=1", "statistics_images is 1"),
        ("model.kind=linear", "model.kind"),
        ("sampling.guidance=2 caption_dropout=0", "guidance needs captions that were dropped"),
        ("sampling.guidance=2 caption_dropout=1", "no caption would be learned"),
        ("run.keep_best=psnr", "psnr"),
    ],
)
def test_options_that_do_not_fit_give_a_one_line_error(
    option: str, message: str, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "prior.yaml"
    config.write_text(json.dumps(RECIPE | {"clip": clip}))
    assert train.main([str(config), f"run.dir={tmp_path / 'run'}", *option.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_another_stage_is_refused_by_name(clip: str) -> None:
    with pytest.raises(ValueError, match=r"holds a CLIP, expected a prior of unCLIP: load it with dalle\.load_clip"):
        dalle.load_prior(clip)


def test_statistics_of_a_stream_are_those_of_as_many_images_as_of_others(clip: str, tmp_path: Path) -> None:
    data = {"kind": "pairs", "path": str(with_tars(tmp_path)), "stream": True, "stream_validation": 4}
    task = task_of(RECIPE | {"data": data | {"validation_share": 0.0}, "statistics_images": 20}, clip, tmp_path / "run")
    images, texts = task._embeddings()
    assert len(images) == len(texts) == 20


def test_a_constant_dimension_of_the_embeddings_needs_no_component(
    clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeds = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    embeds[:, 3] = 0.5
    monkeypatch.setattr(PriorTask, "_embeddings", lambda _: (embeds, embeds))
    model = AUTOREGRESSIVE["model"] | {"variance": 0.999}
    prior = task_of(AUTOREGRESSIVE | {"model": model}, clip, tmp_path).model
    assert isinstance(prior, AutoregressivePrior) and prior.components == 7
