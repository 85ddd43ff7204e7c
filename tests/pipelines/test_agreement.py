"""Agreement among candidates: a slow loop, the medoid, the order that it gives, the same in parts as at once."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import dalle
from dalle.pipelines.result import Result
from dalle.pipelines.thumbnails import agreement, thumbnails


def noisy(seed: int, amount: float) -> Image.Image:
    """A gray image with noise."""
    pixels = 128 + np.random.default_rng(seed).normal(0, 1, (64, 64, 3)) * amount
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def plain(value: int) -> Image.Image:
    return Image.new("RGB", (64, 64), (value, value, value))


def test_agreement_equals_a_slow_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [noisy(seed, 20.0 * seed) for seed in range(7)]
    small = [np.asarray(image, np.float64).reshape(16, 4, 16, 4, 3).mean(axis=(1, 3)) / 255 for image in images]
    expected = []
    for own in small:
        distances = [math.sqrt(((own - other) ** 2).mean()) for other in small if other is not own]
        expected.append(-sum(distances) / len(distances))
    # Thumbnails are rounded to 8 bits
    assert agreement(thumbnails(images)) == pytest.approx(expected, abs=1 / 255)
    whole = agreement(thumbnails(images))
    monkeypatch.setattr("dalle.pipelines.thumbnails._ROWS", 3)
    assert agreement(thumbnails(images)) == pytest.approx(whole, abs=1e-12)


def test_agreement_of_few_and_of_equal_images() -> None:
    assert agreement(thumbnails([plain(7)])) == [0.0]
    assert agreement(thumbnails([plain(7), plain(7)])) == pytest.approx([0, 0], abs=1e-7)
    assert agreement(thumbnails([plain(0), plain(255)])) == pytest.approx([-1, -1])


IMAGES = [plain(0), plain(100), plain(100), plain(110), plain(255)]
SCORES = [0.9, 0.8, 0.79, 0.7, 0.85]


def test_agreement_weighs_against_the_score() -> None:
    def seeds(weight: float) -> list[int]:
        return Result("a", IMAGES, SCORES, None, [1, 2, 3, 4, 5], weight).best(5).seeds

    assert seeds(0) == [1, 5, 2, 3, 4]
    # 0.9 - 0.5 * 0.55 of the black image, 0.85 - 0.5 * 0.70 of the white one, 0.8 - 0.5 * 0.26 of the first in between
    assert seeds(0.5) == [2, 3, 1, 4, 5]
    assert seeds(100)[:3] == [2, 3, 4]  # by agreement almost alone: the middle first
    assert Result("a", IMAGES, None, None, [1, 2, 3, 4, 5], 0.5).best(3).seeds == [1, 2, 3]  # nothing is rated


def test_what_is_chosen_keeps_its_agreement_with_all() -> None:
    whole = Result("a", IMAGES, SCORES, None, [1, 2, 3, 4, 5], 0.5)
    few = whole.best(3)
    assert few.agreement is not None and few.scores == [0.8, 0.79, 0.9]
    expected = agreement(thumbnails(IMAGES))
    assert few.agreement == [expected[1], expected[2], expected[0]]
    assert few.best(2) == whole.best(2)  # not by the agreement of the three
    parts = [
        Result("a", IMAGES[:2], SCORES[:2], None, [1, 2], 0.5).best(2),
        Result("a", IMAGES[2:], SCORES[2:], None, [3, 4, 5], 0.5),
    ]
    assert Result.merged(parts).best(3) == few


@pytest.mark.parametrize("keep", [-1, 0, 6])
def test_what_cannot_be_kept_is_refused(keep: int) -> None:
    with pytest.raises(ValueError, match=f"keep is {keep} of 5 images: keep from 1 to 5"):
        Result("a", IMAGES, SCORES, None, [1, 2, 3, 4, 5]).best(keep)


def test_near_duplicates_make_no_room_for_what_is_rated_far_lower() -> None:
    """Where most candidates agree, the others are rather mistakes than variety."""
    same = [noisy(seed, 3) for seed in range(6)]
    images, scores = [*same, plain(255), plain(0)], [0.8, 0.79, 0.79, 0.78, 0.78, 0.78, 0.76, 0.75]
    seeds = list(range(8))
    assert Result("a", images, scores, None, seeds).best(3, distinct=True).seeds == [0, 6, 7]
    assert set(Result("a", images, scores, None, seeds, 0.5).best(3, distinct=True).seeds) <= set(range(6))


def test_equal_images_keep_their_order() -> None:
    small = thumbnails([noisy(7, 40)] * 33)
    assert len(set(agreement(small))) == 1


def test_agreement_is_off_with_another_clip(tiny_model: Path, tmp_path: Path) -> None:
    """Its weight is in units of the scores, and those of another CLIP have another scale."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["sampling"] = {**(config.get("sampling") or {}), "agreement": 0.5}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert dalle.TextToImage.from_pretrained(folder, device="cpu").sampling.agreement == 0.5
    other = dalle.TextToImage.from_pretrained(folder, device="cpu", clip=folder / "clip")
    assert other.sampling.agreement == 0
    (given,) = other("a red heart", n=4, agreement=0.3)
    assert given.weight == 0.3


def test_the_pipeline_ranks_by_its_option(tiny_model: Path) -> None:
    pipe = dalle.TextToImage.from_pretrained(tiny_model, device="cpu")
    (drawn,) = pipe("a red heart", n=8, seed=3)
    (agreed,) = pipe("a red heart", n=8, seed=3, agreement=1e5)
    assert sorted(agreed.seeds) == sorted(drawn.seeds) and agreed.seeds != drawn.seeds
    by_seed = dict(zip(drawn.seeds, drawn.images, strict=True))
    assert all(
        by_seed[seed].tobytes() == image.tobytes() for seed, image in zip(agreed.seeds, agreed.images, strict=True)
    )
    values = agreement(thumbnails([by_seed[seed] for seed in range(3, 11)]))
    assert agreed.seeds == [3 + i for i in np.argsort([-value for value in values], kind="stable")]
    with pytest.raises(ValueError, match="agreement is -1"):
        pipe("a", n=2, agreement=-1.0)
