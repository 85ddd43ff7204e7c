"""Training decoders and upsamplers: losses against slow loops, chance, folders, recipes that do not fit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

import dalle
import train
from dalle.checkpoints.model_folder import ModelFolder
from dalle.config import from_dict
from dalle.data import DataConfig, open_data
from dalle.data.batch import Batch
from dalle.data.loader import batches
from dalle.generation.diffusion.prediction import denoised, denoised_rows
from dalle.images.transforms import gaussian_blur
from dalle.models.diffusion_decoder import DiffusionDecoder
from dalle.models.noise_schedule import CosineConfig, make_schedule
from dalle.models.transformer_config import TransformerConfig
from dalle.models.upsampler import Upsampler
from dalle.training.losses.diffusion import min_snr_weights, variational_bound
from dalle.training.recipe import DiffusionRecipe
from dalle.training.tasks import build_task
from dalle.training.tasks.diffusion import DecoderTask, DiffusionTask, UpsamplerTask, crops
from support.short_runs import TWO_STEPS

ROOT = Path(__file__).parents[3]
TINY = TransformerConfig(width=16, depth=1, heads=2)
UNET = {"channels": 8, "channel_multipliers": [1, 2], "attention_levels": [1], "head_channels": 8}
COMMON: dict[str, Any] = {
    "stage": "diffusion",
    "data": {"kind": "shapes"},
    "sampling": {"sampler": {"steps": 2}},
    **TWO_STEPS,
}
DECODER = COMMON | {
    "model": {
        "kind": "decoder",
        "image_size": 8,
        "unet": UNET,
        "embed_dim": 8,
        "text_width": 16,
        "text_length": 12,
        "context_width": 8,
    },
    "statistics_images": 64,
    "sampling": {"guidance": 2.0, "sampler": {"steps": 2}},
}
UPSAMPLER = COMMON | {
    "model": {"kind": "upsampler", "image_size": 16, "low_size": 8, "unet": UNET | {"attention_levels": []}},
    "crop": 0.5,
}


def task_of(recipe: dict[str, Any], clip: str) -> DiffusionTask:
    data = recipe | {"run": recipe["run"] | {"dir": "unused"}}
    if recipe["model"]["kind"] == "decoder":
        data |= {"clip": clip}
    torch.manual_seed(0)
    task = build_task(from_dict(DiffusionRecipe, data, "recipe"), torch.device("cpu"))
    assert isinstance(task, DiffusionTask)
    with torch.no_grad():  # what begins as zeros would hide what lies behind it
        for parameter in task.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    return task


def first_batch(count: int = 4) -> Batch:
    data = from_dict(DataConfig, {"kind": "shapes"}, "data")
    return next(batches(open_data(data, "train", 16), batch_size=count, seed=0))


@pytest.mark.parametrize("recipe", [DECODER, UPSAMPLER], ids=["decoder", "upsampler"])
def test_training_writes_a_folder_that_loads(recipe: dict[str, Any], clip: str, tmp_path: Path) -> None:
    own = {"clip": clip} if recipe is DECODER else {}
    config = tmp_path / "diffusion.yaml"
    config.write_text(json.dumps(recipe | own))
    assert train.main([str(config), f"run.dir={tmp_path / 'run'}"]) == 0
    folder = ModelFolder(tmp_path / "run/model")
    model = dalle.load_diffusion(folder)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    validation = next(line for line in lines if "validation/mse" in line)
    if recipe is DECODER:
        assert isinstance(model, DiffusionDecoder) and "validation/centered_cos" in validation
        assert folder.component("clip").sha256 == ModelFolder(Path(clip)).sha256
        task = task_of(recipe, clip)
        assert isinstance(task, DecoderTask)
        torch.testing.assert_close(model.image_mean, task.model.image_mean)  # not averaged, not decayed
        assert model.image_deviation.min() > 0 and not torch.equal(model.image_mean, torch.zeros(8))
    else:
        assert isinstance(model, Upsampler) and "validation/psnr" in validation
    with pytest.raises(ValueError, match=r"holds a decoder or an upsampler of unCLIP.*dalle\.load_diffusion"):
        dalle.load_prior(folder)


@pytest.mark.parametrize("recipe", [DECODER, UPSAMPLER], ids=["decoder", "upsampler"])
def test_randomness_comes_from_each_pairs_seed(recipe: dict[str, Any], clip: str) -> None:
    """A batch in halves, as two processes have it, makes the loss of the whole."""
    task = task_of(recipe, clip)
    task.model.eval()
    batch = first_batch()
    whole, _ = task.loss(task.phases[0], task.inputs(batch), 0)
    halves = [task.loss(task.phases[0], task.inputs(half), 7)[0] for half in batch.split(2)]
    torch.testing.assert_close(sum(halves) / 2, whole)


@pytest.mark.parametrize("predicts", ["epsilon", "v", "sample"])
def test_loss_is_the_squared_error_of_the_predicted_kind(predicts: str, clip: str) -> None:
    """A network that knows all, and is off by a half, has a loss of a quarter."""
    task = task_of(DECODER | {"model": DECODER["model"] | {"predicts": predicts}}, clip)
    inputs = task.inputs(first_batch())

    class Perfect(nn.Module):
        config = task.model.config

        def forward(self, noised: Tensor, steps: Tensor, *given: object) -> Tensor:
            rows = []
            for row, step in enumerate(steps.tolist()):
                a = task.schedule.alpha_bar(step)
                x0, noise = inputs.images[row], inputs.noise[row]
                torch.testing.assert_close(noised[row], math.sqrt(a) * x0 + math.sqrt(1 - a) * noise)
                v = math.sqrt(a) * noise - math.sqrt(1 - a) * x0
                rows.append({"epsilon": noise, "v": v, "sample": x0}[predicts])
            return torch.stack(rows) + 0.5

    task.model = Perfect()  # type: ignore[assignment]
    assert task.loss(task.phases[0], inputs, 0)[0].item() == pytest.approx(0.25, abs=1e-5)


def test_dropout_rates_follow_the_recipe(clip: str) -> None:
    batch = first_batch(200)
    for share in (0.0, 0.3, 1.0):
        options = {"embedding_dropout": share, "caption_dropout": share, "sampling": {}}
        task = task_of(DECODER | options, clip)
        assert isinstance(task, DecoderTask)
        _, text, dropped = task.inputs(batch).condition
        assert dropped.float().mean().item() == pytest.approx(share, abs=0.1)
        empty = task.clip.text_states([""])
        silent = (text.embeds - empty.embeds).abs().amax(1) < 1e-5
        assert silent.float().mean().item() == pytest.approx(share, abs=0.1)
        if share == 0.3:  # neither goes with the other
            assert (silent & dropped).float().mean().item() == pytest.approx(0.09, abs=0.06)


def test_embeddings_are_standardized_and_noised(clip: str) -> None:
    batch = first_batch(200)
    known = task_of(DECODER | {"embedding_noise": 0.0}, clip).inputs(batch).condition[0]
    assert known.mean(0).abs().max() < 0.5 and known.std(0).sub(1).abs().max() < 0.5
    noised = task_of(DECODER | {"embedding_noise": 0.2}, clip).inputs(batch).condition[0]
    assert (noised - known).std().item() == pytest.approx(0.2, rel=0.05)


def test_min_snr_weights_equal_the_paper() -> None:
    schedule = make_schedule(CosineConfig(steps=40))
    for step in (0, 7, 20, 39):
        a = schedule.alpha_bar(step)
        ratio = a / (1 - a)
        wanted = {"sample": min(ratio, 5), "epsilon": min(ratio, 5) / ratio, "v": min(ratio, 5) / (ratio + 1)}
        for kind, weight in wanted.items():
            found = min_snr_weights(schedule, torch.tensor([step]), kind, 5.0)  # type: ignore[arg-type]
            assert found.item() == pytest.approx(weight, rel=1e-5)


def test_variational_bound_equals_torch_distributions() -> None:
    """Posterior and prediction as Gaussians by the formulas of the DDPM paper, step by step."""
    schedule, random = make_schedule(CosineConfig(steps=30)), torch.Generator().manual_seed(3)
    steps = torch.tensor([0, 1, 2, 15, 29])
    x0 = (torch.randint(0, 256, (5, 2, 3), generator=random) / 127.5 - 1).double()
    noised = schedule.add_noise(x0, torch.randn(5, 2, 3, generator=random).double(), steps)
    predicted = (x0 + 0.1 * torch.randn(5, 2, 3, generator=random)).clamp(-1, 1)
    variance = torch.rand(5, 2, 3, generator=random) * 2 - 1
    found = variational_bound(schedule, x0, noised, steps, predicted, variance)
    for row, t in enumerate(steps.tolist()):
        a, b = schedule.alpha_bar(t), schedule.alpha_bar(t - 1)
        beta = 1 - a / b
        tilde = (1 - b) / (1 - a) * beta
        if t == 0:
            tilde = (
                (1 - schedule.alpha_bar(0))
                / (1 - schedule.alpha_bar(1))
                * (1 - schedule.alpha_bar(1) / schedule.alpha_bar(0))
            )

        of_x0, of_x = math.sqrt(b) * beta / (1 - a), math.sqrt(a / b) * (1 - b) / (1 - a)
        share = (variance[row].double() + 1) / 2
        deviation = torch.exp((share * math.log(beta) + (1 - share) * math.log(tilde)) / 2)
        model = Normal(of_x0 * predicted[row] + of_x * noised[row], deviation)
        if t:
            true = Normal(of_x0 * x0[row] + of_x * noised[row], torch.full_like(deviation, math.sqrt(tilde)))
            nats = kl_divergence(true, model)
        else:
            low, high = model.cdf(x0[row] - 1 / 255), model.cdf(x0[row] + 1 / 255)
            low, high = torch.where(x0[row] < -0.999, 0.0, low), torch.where(x0[row] > 0.999, 1.0, high)
            nats = -(high - low).clamp(min=1e-12).log()
        assert found[row].item() == pytest.approx(nats.mean().item() / math.log(2), rel=1e-4, abs=1e-6)


def test_variational_bound_trains_the_variance_only(clip: str) -> None:
    recipe = DECODER | {"model": DECODER["model"] | {"learned_variance": True}}
    gradients = []
    for weight in (0.0, 1.0):
        task = task_of(recipe | {"bound_weight": weight}, clip)
        loss, figures = task.loss(task.phases[0], task.inputs(first_batch()), 0)
        loss.backward()
        gradients.append(task.model.unet.conv_out.weight.grad)  # [6, C, 3, 3]: the variance's rows behind
        assert figures["bits"].item() > 0
    torch.testing.assert_close(gradients[0][:3], gradients[1][:3])
    assert gradients[0][3:].abs().max() == 0 < gradients[1][3:].abs().max()


def test_denoised_rows_equal_each_row_alone() -> None:
    schedule, random = make_schedule(CosineConfig()), torch.Generator().manual_seed(0)
    x, output = torch.randn(2, 3, 4, generator=random)
    steps = torch.tensor([5, 500, 900])
    for kind in ("epsilon", "v", "sample"):
        found = denoised_rows(kind, schedule, steps, x, output)  # type: ignore[arg-type]
        for row, step in enumerate(steps.tolist()):
            alone = denoised(kind, schedule.alpha_bar(step), x[row], output[row]).x0  # type: ignore[arg-type]
            torch.testing.assert_close(found[row], alone)


def test_crops_cover_the_image_evenly() -> None:
    """All 25 places of a 4x4 square in 8x8 pixels come up, none much more often than others."""
    places = torch.arange(64.0).view(1, 1, 8, 8).expand(4000, 1, 8, 8)
    top, left = torch.rand(2, 4000, generator=torch.Generator().manual_seed(0))
    corners = crops(places, top, left, 4)[:, 0, 0, 0].long().bincount(minlength=64).view(8, 8)
    assert corners[:5, :5].sum() == 4000
    assert corners[:5, :5].min() > 100 and corners[:5, :5].max() < 230


def test_upsampler_crops_both_images_alike(clip: str) -> None:
    task = task_of(UPSAMPLER | {"blur": 0.0}, clip)
    assert isinstance(task, UpsamplerTask)
    batch = first_batch(3)
    inputs = task.inputs(batch)
    images, (large,) = task._condition(batch)
    found = 0
    for row in range(3):
        for y in range(9):
            for x in range(9):
                if torch.equal(images[row, :, y : y + 8, x : x + 8], inputs.images[row]):
                    found += torch.equal(large[row, :, y : y + 8, x : x + 8], inputs.condition[0][row])
    assert found >= 3 and inputs.images.shape == (3, 3, 8, 8)


def test_gaussian_blur_equals_the_kernel_sum() -> None:
    image = torch.rand(1, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    found, side = gaussian_blur(image, 0.6), math.exp(-1 / 0.72)
    weights = [side / (1 + 2 * side), 1 / (1 + 2 * side), side / (1 + 2 * side)]
    for y in range(5):
        for x in range(6):
            total = sum(
                weights[i] * weights[j] * image[0, 1, min(max(y + i - 1, 0), 4), min(max(x + j - 1, 0), 5)].item()
                for i in range(3)
                for j in range(3)
            )
            assert found[0, 1, y, x].item() == pytest.approx(total, abs=1e-6)


@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        (DECODER, {}, "clip is missing"),
        (DECODER, {"clip": "x", "embedding_dropout": 0.0}, "guidance needs embeddings that were dropped"),
        (DECODER, {"clip": "x", "embedding_dropout": 1.0}, "no embedding would be learned"),
        (DECODER, {"clip": "x", "caption_dropout": 2.0}, "caption_dropout is 2.0"),
        (DECODER, {"clip": "x", "snr_gamma": 0.0}, "snr_gamma is 0"),
        (
            DECODER,
            {"clip": "x", "sampling": {"sampler": {"sampler": "ddpm", "variance": "learned"}}},
            "learned_variance",
        ),
        (DECODER, {"clip": "x", "run": DECODER["run"] | {"keep_best": "psnr"}}, "a decoder has not: take mse"),
        (UPSAMPLER, {"clip": "x"}, "an upsampler reads no embeddings"),
        (UPSAMPLER, {"crop": 0.3}, "crop is 0.3"),
        (UPSAMPLER, {"blur": -1.0}, "blur is -1.0"),
        (UPSAMPLER, {"sampling": {"guidance": 2.0}}, "an upsampler has none"),
    ],
)
def test_recipes_that_do_not_fit_give_a_one_line_error(
    base: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    data = base | change
    data["run"] = data["run"] | {"dir": "x"}
    with pytest.raises(ValueError, match=message) as raised:
        from_dict(DiffusionRecipe, data, "recipe")
    assert "\n" not in str(raised.value)


def test_clip_that_does_not_fit_is_refused(clip: str) -> None:
    with pytest.raises(ValueError, match=r"needs 8: set model\.embed_dim=8"):
        task_of(DECODER | {"model": DECODER["model"] | {"embed_dim": 9}}, clip)
