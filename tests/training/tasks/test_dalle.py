"""What the transformer's stage makes of captions: some are dropped whole, and some of the others' merges are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dalle.checkpoints.load import load_clip
from dalle.config import ConfigError, from_dict
from dalle.data.batch import Batch
from dalle.generation.rerank import score
from dalle.training.recipe import DALLERecipe
from dalle.training.tasks.dalle import DALLETask, noise_rates, with_noise
from support.tiny_model import CODES, DALLE_MODEL, IMAGE_SIZE, TEXT_LENGTH, dalle_recipe


@pytest.fixture(scope="module")
def task(tiny_parts: Path, tmp_path_factory: pytest.TempPathFactory) -> DALLETask:
    run = tmp_path_factory.mktemp("task") / "run"
    recipe = dalle_recipe(tiny_parts, run, bpe_dropout=0.2, caption_dropout=0.3)
    return DALLETask(from_dict(DALLERecipe, recipe, "test"), torch.device("cpu"))


def test_caption_dropout_and_bpe_dropout_are_independent(task: DALLETask) -> None:
    count = 1000
    images = torch.zeros(count, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    text = task.inputs(Batch(images, ["a"] * count, list(range(count)), [])).text  # [1000, T]
    whole = task.text_tokenizer.encode(["a"], TEXT_LENGTH)
    assert int((whole != 0).sum()) == 2  # the piece of a space and an a, and EOS: one merge
    dropped = (text == 0).all(1)
    assert dropped.double().mean() == pytest.approx(0.3, abs=0.05)
    kept = text[~dropped]
    assert (kept != whole).any(1).double().mean() == pytest.approx(0.2, abs=0.05)


def test_text_of_a_pair_does_not_depend_on_the_batch(task: DALLETask) -> None:
    images = torch.zeros(8, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    captions = ["a red heart", "लाल दिल"] * 4
    together = task.inputs(Batch(images, captions, list(range(8)), [])).text
    alone = [task.inputs(Batch(images[i : i + 1], captions[i : i + 1], [i], [])).text for i in range(8)]
    assert torch.equal(together, torch.cat(alone))


def test_code_noise_replaces_the_given_share_of_input_codes(task: DALLETask, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 600
    images = torch.randint(0, 256, (count, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    batch = Batch(images, ["a"] * count, list(range(count)), [])
    plain = task.inputs(batch)
    assert torch.equal(plain.read, plain.codes)
    monkeypatch.setattr(task, "recipe", replace(task.recipe, code_noise=0.3))
    noisy, again = task.inputs(batch), task.inputs(Batch(images[5:9], ["a"] * 4, [5, 6, 7, 8], []))
    assert torch.equal(noisy.codes, plain.codes)
    assert torch.equal(noisy.read[5:9], again.read)  # whatever the batch around
    other = noisy.read != noisy.codes
    expected = 0.3 * (1 - 1 / CODES)  # one of all codes is the right one
    assert other.double().mean() == pytest.approx(expected, abs=4 * (0.25 / other.numel()) ** 0.5)
    drawn = torch.bincount(
        with_noise(plain.codes, [0.999] * count, CODES, list(range(count))).flatten(), minlength=CODES
    )
    assert drawn.min() > 0.8 * drawn.double().mean() and len(drawn) == CODES
    assert other.double().mean(0).std() < 0.05 and not torch.equal(other[0], other[1])


def test_prefix_noise_hides_most_codes_of_some_images(task: DALLETask, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 900
    images = torch.randint(0, 256, (count, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    monkeypatch.setattr(task, "recipe", replace(task.recipe, prefix_noise=0.5, code_noise=0.1))
    noisy = task.inputs(Batch(images, ["a"] * count, list(range(count)), []))
    again = task.inputs(Batch(images[5:9], ["a"] * 4, [5, 6, 7, 8], []))
    assert torch.equal(noisy.read[5:9], again.read)  # whatever the batch around
    rates = np.array(noise_rates(task.recipe, list(range(count))))
    assert set(rates[rates < 0.4]) == {0.1} and rates.max() == 1
    deviation = (0.25 / count) ** 0.5
    assert (rates > 0.1).mean() == pytest.approx(1 / 2, abs=4 * deviation)
    assert (rates == 1).mean() == pytest.approx(1 / 6, abs=4 * deviation)
    assert rates[(rates > 0.1) & (rates < 1)].mean() == pytest.approx(0.7, abs=0.03)
    other = (noisy.read != noisy.codes).double().mean(1).numpy()  # one of all codes is the right one
    expected = rates * (1 - 1 / CODES)
    assert abs(other - expected).mean() < 0.25 and (other - expected).mean() == pytest.approx(0, abs=0.02)


def test_loss_has_smoothing_and_code_noise_and_logged_loss_has_no_smoothing(
    task: DALLETask, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(task.recipe, label_smoothing=0.2, code_noise=0.5, text_weight=0.0, image_weight=1.0)
    monkeypatch.setattr(task, "recipe", recipe)
    images = torch.randint(0, 256, (4, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    inputs = task.inputs(Batch(images, ["a red heart"] * 4, [1, 2, 3, 4], []))
    total, parts = task.loss(task.phases[0], inputs, 0)
    with torch.no_grad():
        logits = task.model(inputs.text, inputs.read[:, :-1]).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, inputs.codes.flatten(), label_smoothing=0.2)
    torch.testing.assert_close(total.detach(), expected)
    torch.testing.assert_close(parts["image"], torch.nn.functional.cross_entropy(logits, inputs.codes.flatten()))
    assert set(parts) == {"text", "image", "image_accuracy"}


def test_sample_images_are_scored_against_their_own_prompts(task: DALLETask, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, clip = ("a red circle", "निलो वर्ग"), str(Path(task.recipe.text_tokenizer).parent / "clip")
    monkeypatch.setattr(task, "recipe", replace(task.recipe, prompts=prompts))
    nothing = Batch(torch.zeros(0), [], [], [])
    unscored = task.sample_images(task.model.eval(), nothing)
    assert unscored is not None and unscored.metrics == {}
    monkeypatch.setattr(task, "recipe", replace(task.recipe, clip=clip))
    samples = task.sample_images(task.model, nothing)
    assert samples is not None and samples.image.tobytes() == unscored.image.tobytes()
    critic, scores, step = load_clip(clip), [], IMAGE_SIZE + 2
    for row, prompt in enumerate(prompts):
        for column in range(8):
            left, top = 2 + column * step, 2 + row * step
            cell = np.asarray(samples.image.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE)))
            image = torch.tensor(cell).permute(2, 0, 1)[None] / 255
            scores.append(score(critic, image, [prompt]).item())
    assert samples.metrics["clip_score"] == pytest.approx(np.mean(scores), abs=1e-3)
    assert abs(np.mean(scores[:8]) - np.mean(scores[8:])) > 5e-3  # so that prompts in another order would be noticed


def test_text_nats_are_measured_only_where_text_is_predicted(task: DALLETask, tiny_parts: Path, tmp_path: Path) -> None:
    batch = Batch(torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8), ["a red heart", "a"], [0, 1], [])
    recipe = dalle_recipe(tiny_parts, tmp_path / "run", model=DALLE_MODEL | {"text_head": False})
    silent = DALLETask(from_dict(DALLERecipe, recipe, "test"), torch.device("cpu"))
    measured = [of.validate(of.model.eval(), [batch]) for of in (task, silent)]
    assert measured[0].keys() - measured[1].keys() == {"text_nats"} and measured[0]["text_nats"] > 0
    recipe["run"]["keep_best"] = "text_nats"
    with pytest.raises(ConfigError, match=r"text_nats, and the model predicts no text: take image_nats$"):
        from_dict(DALLERecipe, recipe, "test")
