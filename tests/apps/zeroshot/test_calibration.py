"""Calibrated probability of none: the fit against known parameters and a grid, trials, every wrong input."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from dalle.__main__ import main
from dalle.apps.zeroshot import ZeroShotClassifier, accuracy
from dalle.apps.zeroshot.calibration import Calibration, Trials, calibrate, draw_trials, fit, measure, read_calibration
from dalle.data.labeled import open_labeled_images
from dalle.models.clip import CLIP
from support.tiny_configs import clip_config

COLORS = ("red", "blue", "green", "black")


def random_trials(count: int, calibration: Calibration) -> Trials:
    """Trials whose answers are drawn from a calibration's own probabilities."""
    generator = torch.Generator().manual_seed(0)
    labels = 4 * torch.randn(count, 5, generator=generator)
    labels[torch.rand(count, 5, generator=generator) < 0.2] = -math.inf
    null = 2 + torch.randn(count, 3, generator=generator)
    return Trials(labels, null, calibration.probabilities(labels, null).multinomial(1, generator=generator)[:, 0])


def slow_nats(trials: Trials, temperature: float, bias: float) -> float:
    total = 0.0
    for labels, null, target in zip(trials.labels, trials.null, trials.targets, strict=True):
        weights = [math.exp(x / temperature) for x in labels.tolist()]
        weights.append(math.exp(bias) * sum(math.exp(x / temperature) for x in null.tolist()))
        total -= math.log(weights[int(target)] / sum(weights))
    return total / len(trials.targets)


def test_fit_finds_the_parameters_that_answers_were_drawn_with() -> None:
    found = fit(random_trials(20_000, Calibration(2.5, -1.5)))
    assert found.temperature == pytest.approx(2.5, rel=0.06) and found.none_bias == pytest.approx(-1.5, abs=0.15)


def test_fit_is_the_minimum_of_the_cross_entropy() -> None:
    trials = random_trials(300, Calibration(0.6, 1.0))
    found = fit(trials)
    least = slow_nats(trials, found.temperature, found.none_bias)
    assert measure(trials, found)["nats"] == pytest.approx(least, abs=1e-5)
    for factor, shift in itertools.product((0.95, 1.0, 1.05), (-0.1, 0.0, 0.1)):
        assert slow_nats(trials, factor * found.temperature, found.none_bias + shift) >= least - 1e-9


def test_trials_ask_about_an_images_own_label_half_of_the_time() -> None:
    count = 14
    labels = torch.arange(200.0 * count).view(200, count)  # each logit tells its image and label
    own = torch.randint(0, count, (200,), generator=torch.Generator().manual_seed(0))
    trials = draw_trials(labels, torch.zeros(200, 2), own)
    assert torch.equal(draw_trials(labels, torch.zeros(200, 2), own).labels, trials.labels)
    sizes, shown = [], [0] * count
    for number, (row, target) in enumerate(zip(trials.labels, trials.targets, strict=True)):
        image, asked = number // 16, [int(x) for x in row[row.isfinite()].tolist()]
        sizes.append(len(asked))
        assert len(set(asked)) == len(asked) and {x // count for x in asked} == {image}
        there = image * count + int(own[image])
        assert (there in asked) == (int(target) < 10)
        if there in asked:
            assert row[target] == there
        for x in asked:
            shown[x % count] += 1
    assert set(sizes) == set(range(2, 11))
    assert 0.45 < (trials.targets < 10).float().mean() < 0.55
    assert max(shown) < 1.25 * min(shown)


def test_calibration_error_equals_a_slow_loop() -> None:
    trials, calibration = random_trials(200, Calibration()), Calibration(0.5, 0.3)
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, target in zip(calibration.probabilities(trials.labels, trials.null), trials.targets, strict=True):
        best = int(row.argmax())
        bins.setdefault(min(9, int(float(row[best]) * 10)), []).append((float(row[best]), best == int(target)))
    error = sum(abs(sum(p - right for p, right in rows)) for rows in bins.values()) / 200
    found = measure(trials, calibration)
    assert found["calibration_error"] == pytest.approx(error, abs=1e-5) and error > 0.05
    assert found["right"] == pytest.approx(sum(right for rows in bins.values() for _, right in rows) / 200)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for color in COLORS:
        (tmp_path / "photos" / color).mkdir(parents=True)
        for shade in range(4):
            image = Image.new("RGB", (8, 8), color)
            image.putpixel((shade, shade), (128, 128, 128))
            image.save(tmp_path / "photos" / color / f"{shade}.png")
    return tmp_path / "photos"


def test_calibration_changes_none_and_leaves_other_probabilities(
    photos: Path, tiny_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, file = str(tiny_copy / "clip"), tiny_copy / "out/calibration.json"
    assert main(["eval", "classify", str(photos), "--clip", clip, "--calibrate", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    stored = json.loads(file.read_text())
    assert stored["images"] == 16 and told["temperature"] == stored["temperature"]
    assert {"right", "right_before", "calibration_error", "calibration_error_before"} <= set(told)

    classify = ["classify", str(photos / "red"), "--labels", "red,blue", "--clip", clip, "--json", "--threshold", "0"]

    def answers(*options: str) -> list[dict[str, object]]:
        assert main([*classify, *options]) == 0
        found: list[dict[str, object]] = json.loads(capsys.readouterr().out)["images"]
        return found

    plain, calibrated = answers(), answers("--calibration", str(file))
    assert plain != calibrated
    (tiny_copy / "clip/calibration.json").write_text(file.read_text())
    assert answers() == calibrated
    one, other = (ZeroShotClassifier.from_pretrained(["red", "blue"], clip, calibration=c) for c in (None, file))
    assert one(photos / "red/0.png", threshold=0) == other(photos / "red/0.png", threshold=0)
    found = other(photos / "red/0.png", threshold=0)[0]
    assert found.none is not None and sum(found.probabilities) + found.none == pytest.approx(1)
    bare = ZeroShotClassifier(other.clip, ["red", "blue"])
    assert bare(photos / "red/0.png") == other(photos / "red/0.png")


def test_temperature_and_bias_are_those_of_the_formula(tiny_clip: CLIP) -> None:
    classifier = ZeroShotClassifier(tiny_clip, ["red", "blue"], ["{}"], Calibration(3.0, 0.7))
    vector = torch.nn.functional.normalize(torch.ones(1, tiny_clip.config.embed_dim), dim=-1)
    own, null = (logits[0].tolist() for logits in classifier.logits(vector))
    weights = [math.exp(x / 3) for x in own]
    weights.append(math.exp(0.7) * sum(math.exp(x / 3) for x in null))
    wanted = torch.tensor(weights) / sum(weights)
    torch.testing.assert_close(classifier.probabilities(vector, with_none=True)[0], wanted)


def test_a_calibration_of_other_weights_is_no_obstacle_to_labels_or_to_another(
    photos: Path, tiny_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tiny_copy / "clip"
    Calibration(clip="0" * 64).write(clip / "calibration.json")  # as of the weights of before
    classify = ["classify", str(photos / "red/0.png"), "--labels", "red,blue", "--clip", str(clip)]
    assert main(classify) == 0
    assert main([*classify, "--threshold", "0.5"]) == 2
    assert "was fitted to another CLIP" in capsys.readouterr().err
    told = ["eval", "classify", str(photos), "--clip", str(clip), "--calibrate", str(clip / "calibration.json")]
    assert main(told) == 0
    assert main([*classify, "--threshold", "0.5"]) == 0


def test_what_cannot_be_fitted_is_refused_before_images_are_read(
    photos: Path, tiny_copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("images are read")

    monkeypatch.setattr(accuracy, "evaluate_classifier", never)
    for color in COLORS[2:]:
        shutil.rmtree(photos / color)
    clip, file = tiny_copy / "clip", tiny_copy / "c.json"
    told = ["eval", "classify", str(photos), "--clip", str(clip), "--calibrate", str(file)]
    assert main(told) == 2
    assert "2 labels: give 3 at least" in capsys.readouterr().err


def test_accuracy_is_printed_although_the_fit_fails(
    photos: Path, tiny_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for color in COLORS[:3]:
        shutil.rmtree(photos / color)
    clip, file = tiny_copy / "clip", tiny_copy / "c.json"
    told = ["eval", "classify", str(photos), "--clip", str(clip), "--calibrate", str(file)]
    told += ["--labels", "red,blue,green,black"]
    assert main(told) == 2
    said = capsys.readouterr()
    assert said.out.startswith(f"{photos}, 4 images, 4 labels\n  top_1 ")
    assert "4 usable images of known classes: give 10" in said.err
    assert main([*told, "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 4 and "temperature" not in found
    assert not file.exists()


def test_wrong_calibrations_give_a_one_line_error(
    photos: Path, tiny_clip: CLIP, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.json"
    with pytest.raises(ValueError, match="no such file; `dalle eval classify"):
        read_calibration(file, tiny_clip)
    for content in ("", "[]", '{"a": 1}', '{"temperature": 0}', '{"temperature": "x"}', '{"none_bias": NaN}'):
        file.write_text(content)
        with pytest.raises(ValueError, match="is no calibration"):
            read_calibration(file, tiny_clip)
    Calibration(clip="0" * 64).write(file)
    with pytest.raises(ValueError, match="was fitted to another CLIP"):
        read_calibration(file, tiny_clip)
    Calibration(2.0).write(file)
    assert read_calibration(file, tiny_clip) == Calibration(2.0)
    data = open_labeled_images(str(photos))
    with pytest.raises(ValueError, match="2 labels: give 3 at least"):
        calibrate(ZeroShotClassifier(tiny_clip, ["red", "blue"]), data)
    for color in COLORS[1:]:
        for image in (photos / color).iterdir():
            image.unlink()
    few = open_labeled_images(str(photos))
    with pytest.raises(ValueError, match="4 usable images of known classes: give 10"):
        calibrate(ZeroShotClassifier(tiny_clip, COLORS), few)
    siglip = ZeroShotClassifier(tiny_clip, COLORS)
    siglip.clip = CLIP(clip_config(depth=1, image_size=8, patch_size=4, sigmoid=True))
    with pytest.raises(ValueError, match="a SigLIP gives each label a probability of its own"):
        calibrate(siglip, data)
    assert main(["classify", str(photos), "--labels", "a,b", "--calibration", str(file)]) == 2
    assert "--calibration is for the probability of none" in capsys.readouterr().err
