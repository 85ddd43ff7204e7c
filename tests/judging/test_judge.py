"""What the judge ranks equals a slow loop over captions; who may not judge is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import dalle
from dalle.apps.judging.drawings import Drawings, beside, chosen, images_of, open_plain
from dalle.apps.judging.judge import CAPTIONS, Asked, Judge, Verdict, load_judge, verdict_metrics
from dalle.data.drawings import DrawingsData
from tiny_model import make_tiny_model

DATA = DrawingsData(sets=("emoji",), styles=("twemoji", "fluent-mono"))


@pytest.fixture(scope="module")
def everything() -> Drawings:
    return open_plain(DATA, "all", 16)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory, everything: Drawings) -> Judge:
    folder = make_tiny_model(tmp_path_factory.mktemp("judge"), seed=3).parent
    return Judge(dalle.load_clip(folder / "clip"), everything)


def test_ranks_equal_a_slow_loop_over_all_captions(judge: Judge, everything: Drawings) -> None:
    indices = chosen(everything, 5, seed=0)
    asked = [
        Asked(everything.concepts[i].phrase, everything.styles[i], everything.canonical_caption(i)) for i in indices
    ]
    images = images_of(everything, indices)
    shown = {everything.canonical_caption(i): i for i in range(len(everything))}
    captions = list(shown)
    with torch.no_grad():
        texts = judge.clip.encode_text(captions)
    for image, one, found in zip(images, asked, judge.verdicts(images, asked), strict=True):
        vector = judge.embed(image[None])[0]
        cosines = {caption: float(vector @ text) for caption, text in zip(captions, texts, strict=True)}
        concepts: dict[str, float] = {}
        styles: dict[str, float] = {}
        for caption, cosine in cosines.items():
            chance = math.exp(cosine * judge.clip.scale.item())
            concept, style = everything.concepts[shown[caption]].phrase, everything.styles[shown[caption]]
            concepts[concept] = concepts.get(concept, 0) + chance
            styles[style] = styles.get(style, 0) + chance
        expected = 1 + sum(value > concepts[one.concept] for value in concepts.values())
        assert abs(found.concept_rank - expected) <= 2  # sums in float32 tie here and there
        assert found.style_rank == 1 + sum(value > styles[one.style] for value in styles.values())
        assert 1 <= found.caption_rank <= CAPTIONS


def test_a_judge_that_knows_the_image_ranks_its_caption_first(judge: Judge, everything: Drawings) -> None:
    """The cosine of every caption is the judge's own; an image whose vector is a caption's is that caption."""
    alike = judge._texts @ judge._texts.T - 2 * torch.eye(len(judge._texts))
    place = int(alike.amax(1).argmin())  # its caption is unlike all others: this CLIP reads 12 tokens only
    caption = judge.captions[place]
    index = next(i for i in range(len(everything)) if everything.canonical_caption(i) == caption)
    asked = Asked(everything.concepts[index].phrase, everything.styles[index], caption)
    judge_embed = judge.embed
    try:
        judge.embed = lambda images: judge._texts[place][None]  # type: ignore[method-assign]
        (found,) = judge.verdicts(torch.zeros(1, 3, 16, 16), [asked])
    finally:
        judge.embed = judge_embed  # type: ignore[method-assign]
    assert found.caption_rank == 1


def test_shares_are_counted_from_ranks() -> None:
    verdicts = [Verdict(1, 1, 1), Verdict(5, 2, 10), Verdict(6, 1, 11), Verdict(900, 7, 400)]
    assert verdict_metrics(verdicts) == {
        "concept_top1": 0.25,
        "concept_top5": 0.5,
        "style": 0.5,
        "caption_top1": 0.25,
        "caption_top10": 0.5,
        "caption_median_rank": 10,
    }


def test_the_clip_that_ranks_is_no_judge(tmp_path: Path, everything: Drawings) -> None:
    make_tiny_model(tmp_path / "one")
    make_tiny_model(tmp_path / "two", seed=1)
    ranks = dalle.load_clip(tmp_path / "one" / "clip")
    with pytest.raises(ValueError, match="is the CLIP that ranks the model's drawings"):
        load_judge(tmp_path / "one" / "clip", ranks, everything)
    for other in (ranks, None):
        found = load_judge(tmp_path / "two" / "clip", other, everything)
        assert found.captions[0] == everything.canonical_caption(0)


def test_what_stands_beside_an_image_is_the_same_concept_in_another_style(everything: Drawings) -> None:
    known, held_out = open_plain(DATA, "train", 16), open_plain(DATA, "test_pair", 16)
    indices = chosen(held_out, 20, seed=0)
    assert indices == chosen(held_out, 20, seed=0) != chosen(held_out, 20, seed=1)
    found = beside(held_out, indices, known, seed=0)
    assert any(other is not None for other in found.other_style) and len(found.random) == len(indices)
    for index, other in zip(indices, found.other_style, strict=True):
        if other is not None:
            assert known.concepts[other].phrase == held_out.concepts[index].phrase
            assert known.styles[other] != held_out.styles[index]


def test_plain_training_images_are_alone_on_white(everything: Drawings) -> None:
    known = open_plain(DATA, "train", 64)
    assert [image.split for image in everything.drawings].count("train") == len(known)  # type: ignore[attr-defined]
    for index in (0, 500, 1500):
        image = known.pair(index, 7).image
        assert (image[0, 0] == 255).all() and (image == known.pair(index, 8).image).all()
    assert known.caption_in(0, "hi") != known.canonical_caption(0) == known.caption_in(0, "en")


def test_data_without_concepts_is_refused() -> None:
    from dalle.data.shapes import ShapesData

    with pytest.raises(ValueError, match="names no concepts and styles"):
        open_plain(ShapesData(), "validation", 16)
