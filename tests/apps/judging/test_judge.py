"""The judge's classifier learns; ranks equal a slow loop; other models and other data are refused."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch

from dalle.apps.judging.classifier import Classifier, load_classifier, save_classifier
from dalle.apps.judging.drawings import Drawings, choose_baselines, choose_images, load_images, open_plain
from dalle.apps.judging.judge import CAPTIONS, Judge, Ranks, Target, rank_metrics
from dalle.apps.judging.train import JudgeOptions, augment, train_judge
from dalle.data import Pair
from dalle.data.drawings import DrawingsConfig
from dalle.images.transforms import resize_batch
from support.tiny_model import make_tiny_model

DATA = DrawingsConfig(sets=("emoji",), styles=("twemoji", "fluent-mono"))


@pytest.fixture(scope="module")
def everything() -> Drawings:
    return open_plain(DATA, "all", 16)


@pytest.fixture(scope="module")
def judge(everything: Drawings) -> Judge:
    """Random weights, but for heads that are not all alike."""
    torch.manual_seed(0)
    concepts = sorted({concept.phrase for concept in everything.concepts})
    classifier = Classifier(concepts, sorted(set(everything.styles)))
    for head in (classifier.concept_head, classifier.style_head):
        torch.nn.init.normal_(head.bias)
    return Judge(classifier.eval(), everything)


def test_ranks_equal_a_slow_loop(judge: Judge, everything: Drawings) -> None:
    indices = choose_images(everything, 6, seed=0)
    targets = [
        Target(everything.concepts[i].phrase, everything.styles[i], everything.canonical_caption(i)) for i in indices
    ]
    images = load_images(everything, indices)
    network = judge.classifier
    shown: dict[str, tuple[str, str]] = {}
    for index in range(len(everything)):
        caption = everything.canonical_caption(index)
        shown.setdefault(caption, (everything.concepts[index].phrase, everything.styles[index]))
    distractors = random.Random(0).sample(sorted(shown), CAPTIONS - 1)
    for image, target, ranks in zip(images, targets, judge.ranks(images, targets), strict=True):
        with torch.no_grad():
            logits, style_logits = network(resize_batch(image[None], 64))
        concepts = dict(zip(network.concepts, logits[0].double().softmax(0).tolist(), strict=True))
        styles = dict(zip(network.styles, style_logits[0].double().softmax(0).tolist(), strict=True))
        assert ranks.concept_rank == sum(value >= concepts[target.concept] for value in concepts.values())
        assert ranks.style_rank == sum(value >= styles[target.style] for value in styles.values())
        own = concepts[target.concept] * styles[target.style]
        better = [
            concepts[shown[other][0]] * styles[shown[other][1]] >= own
            for other in distractors
            if other != target.caption
        ]
        assert abs(ranks.caption_rank - (1 + sum(better))) <= 1  # float32 ties here and there


def test_judge_overfits_24_drawings_and_survives_saving(
    everything: Drawings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of 24 augmented drawings are classified correctly; a saved judge loads; the same seed trains the same."""
    monkeypatch.setattr("dalle.apps.judging.classifier._WIDTHS", (16, 32, 64, 128))  # a quarter of the work

    class Few:
        concepts, styles = list(everything.concepts[:24]), list(everything.styles[:12]) + ["other"] * 12
        canonical_caption = staticmethod(everything.canonical_caption)

        def __len__(self) -> int:
            return 24

        def pair(self, index: int, seed: int) -> Pair:
            return open_64.pair(index, seed)

    open_64, few = open_plain(DATA, "all", 64), cast(Drawings, Few())
    options = JudgeOptions(epochs=50, batch_size=8)
    losses: list[float] = []
    trained = train_judge(few, options, progress=lambda step, loss: losses.append(loss))
    assert len(losses) == 150 and losses[-1] < 0.5 * losses[0]
    images = load_images(few, range(24))
    concepts, styles = trained.log_probs(images)
    right = [trained.concepts[number] for number in concepts.argmax(1).tolist()]
    assert right == [concept.phrase for concept in few.concepts]
    assert [trained.styles[number] for number in styles.argmax(1).tolist()] == list(few.styles)
    save_classifier(trained, tmp_path / "judge")
    loaded = load_classifier(tmp_path / "judge")
    torch.testing.assert_close(loaded.log_probs(images)[0], concepts, atol=1e-5, rtol=1e-5)
    short = JudgeOptions(epochs=1, batch_size=8)
    first, again = (train_judge(few, short).log_probs(images[:4])[0] for _ in range(2))
    assert torch.equal(first, again)
    exact: list[float] = []
    rounded: list[float] = []
    train_judge(few, short, progress=lambda step, loss: exact.append(loss))
    train_judge(few, replace(short, precision="bf16"), progress=lambda step, loss: rounded.append(loss))
    assert rounded[0] != exact[0] and rounded[0] == pytest.approx(exact[0], rel=0.05)


def test_augmentations_keep_the_object_in_place() -> None:
    image = torch.ones(64, 3, 64, 64)
    image[:, :, 20:44, 20:44] = 0
    made = augment(image, torch.Generator().manual_seed(0))
    assert made.shape == image.shape and made.min() >= 0 and made.max() <= 1
    assert (made[:, :, 28:36, 28:36].mean((1, 2, 3)) < 0.1).all() and (made[:, :, :6, :6].mean((1, 2, 3)) > 0.9).all()
    assert len({round(float(one.sum())) for one in made}) > 50  # each otherwise


def test_metrics_are_counted_from_ranks() -> None:
    ranks = [Ranks(1, 1, 1), Ranks(5, 2, 10), Ranks(6, 1, 11), Ranks(900, 7, 400)]
    assert rank_metrics(ranks) == {
        "concept_top1": 0.25,
        "concept_top5": 0.5,
        "style": 0.5,
        "caption_top1": 0.25,
        "caption_top10": 0.5,
        "caption_median_rank": 10,
    }


def test_judges_that_do_not_fit_are_refused(tmp_path: Path, everything: Drawings, judge: Judge) -> None:
    model = make_tiny_model(tmp_path / "one")
    with pytest.raises(ValueError, match="stage is clip, expected a judge"):
        load_classifier(model.parent / "clip")
    stranger = Classifier(judge.classifier.concepts[1:], judge.classifier.styles)
    with pytest.raises(ValueError, match="the judge does not know"):
        Judge(stranger, everything)
    with pytest.raises(ValueError, match="epochs is 0"):
        JudgeOptions(epochs=0)


def test_reference_images_show_the_same_concept_in_another_style(everything: Drawings) -> None:
    known, held_out = open_plain(DATA, "train", 16), open_plain(DATA, "test_pair", 16)
    indices = choose_images(held_out, 20, seed=0)
    assert indices == choose_images(held_out, 20, seed=0) != choose_images(held_out, 20, seed=1)
    baselines = choose_baselines(held_out, indices, known, seed=0)
    assert any(other is not None for other in baselines.other_style) and len(baselines.random) == len(indices)
    for index, other in zip(indices, baselines.other_style, strict=True):
        if other is not None:
            assert known.concepts[other].phrase == held_out.concepts[index].phrase
            assert known.styles[other] != held_out.styles[index]


def test_plain_training_images_have_a_white_background_and_no_randomness(everything: Drawings) -> None:
    known = open_plain(DATA, "train", 64)
    assert [image.split for image in everything.drawings].count("train") == len(known)  # type: ignore[attr-defined]
    for index in (0, 500, 1500):
        image = known.pair(index, 7).image
        assert (image[0, 0] == 255).all() and (image == known.pair(index, 8).image).all()
    assert known.caption_in(0, "hi") != known.canonical_caption(0) == known.caption_in(0, "en")


def test_data_without_concepts_is_refused() -> None:
    from dalle.data.shapes import ShapesConfig

    with pytest.raises(ValueError, match="names no concepts and styles"):
        open_plain(ShapesConfig(), "validation", 16)


def test_a_loss_that_is_not_finite_ends_the_training_at_once(
    everything: Drawings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would train to the end, and its weights be refused."""
    monkeypatch.setattr("dalle.apps.judging.train._load_all", lambda drawings: torch.zeros(len(drawings), 3, 64, 64))
    monkeypatch.setattr("dalle.apps.judging.train.augment", lambda images, generator: images + float("nan"))
    steps: list[int] = []
    with pytest.raises(ValueError, match="the loss is nan in step 0: give a lower lr than 0.5"):
        train_judge(everything, JudgeOptions(batch_size=2, lr=0.5), progress=lambda step, loss: steps.append(step))
    assert not steps
