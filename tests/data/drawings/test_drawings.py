"""The embedded drawings: splits, determinism, geometry and colors of what is composed, words of the captions."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest

from dalle.data.drawings import Composition, DrawingsConfig, DrawingsDataset
from dalle.data.drawings.captions import (
    _SCENES,
    COLORS,
    FAMILIES,
    INKS,
    RELATIONS,
    ROWS,
    STYLES,
    Concept,
    canonical_caption,
    mirror_concept,
)
from dalle.data.drawings.composition import blends_in, clamp_inside, paint, place_alone, scene_boxes
from dalle.data.drawings.render import Vector
from dalle.data.drawings.sets import DRAWINGS as ROOT
from dalle.data.drawings.sets import read_set

SIDE = 64
FEW = ("twemoji", "fluent-mono", "solid", "cartoon")
DEVANAGARI = re.compile(r"[\u0900-\u097f]")
FLUENT = ("fluent-3d", "fluent-flat", "fluent-mono")


@pytest.fixture(scope="module", autouse=True)
def sets_read_once() -> Iterator[None]:
    """More of them than a training needs at a time, and reading the icons takes half a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dalle.data.drawings.dataset.read_set", cache(read_set))
        yield


@cache
def opened(split: str = "train", **options: object) -> DrawingsDataset:
    return DrawingsDataset(DrawingsConfig(**{"styles": FEW, **options}), split, SIDE)


@cache
def busy() -> DrawingsDataset:
    """All scenes on colored backgrounds, in English only."""
    return DrawingsDataset(DrawingsConfig(styles=FEW, scenes=1, backgrounds=1, languages=("en",)), "train", SIDE)


@cache
def rows(file: Path) -> list[dict]:
    names = set(parquet.read_schema(file).names) - {"image", "body"}
    return parquet.read_table(file, columns=sorted(names)).to_pylist()


def emoji_rows() -> list[dict]:
    return [row for style in STYLES for row in rows(ROOT / "emoji" / "images" / f"{style}.parquet")]


def icon_rows() -> list[dict]:
    return [row for file in sorted((ROOT / "icons" / "icons").glob("*.parquet")) for row in rows(file)]


def compositions(drawings: DrawingsDataset, count: int = 400) -> list[Composition]:
    rng = random.Random(1)
    return [drawings.compose(rng.randrange(len(drawings)), rng.randrange(2**31)) for _ in range(count)]


# Splits


def test_split_sizes_are_as_recorded_and_splits_are_disjoint() -> None:
    emoji = Counter(row["split"] for row in emoji_rows())
    assert emoji == Counter(train=8216, validation=255, test_pair=357, test_block=121, test_concept=343, excluded=375)
    icons = Counter(row["split"] for row in icon_rows())
    assert icons == Counter(train=25325, validation=220, test_pair=1030, test_concept=942, excluded=1202)
    splits: dict[tuple, set] = defaultdict(set)
    for row in emoji_rows():
        splits["emoji", row["style"], row["codepoints"]].add(row["split"])
    for row in icon_rows():
        splits["icons", row["family"], row["concept"]].add(row["split"])
    assert not [pair for pair, own in splits.items() if "train" in own and own & {"validation", "test_pair"}]


def test_unseen_concepts_are_unseen_in_both_sets() -> None:
    trained = {row["name"].lower() for row in (*emoji_rows(), *icon_rows()) if row["split"] == "train"}
    unseen = {row["name"].lower() for row in (*emoji_rows(), *icon_rows()) if row["split"] == "test_concept"}
    assert len(unseen) > 200 and not trained & unseen


def test_fluent_styles_that_share_outlines_are_held_out_together() -> None:
    of_concept: dict[str, set] = defaultdict(set)
    for row in emoji_rows():
        if row["style"] in FLUENT:
            of_concept[row["codepoints"]].add(row["split"])
    assert not [own for own in of_concept.values() if "train" in own and own - {"train", "excluded"}]


def test_icon_sets_do_not_train_on_their_validation_concepts() -> None:
    hands = {(row["set"], row["concept"]) for row in icon_rows() if row["split"] == "validation"}
    assert hands and not [r for r in icon_rows() if r["split"] == "train" and (r["set"], r["concept"]) in hands]


def test_train_never_shows_or_names_what_is_held_out() -> None:
    """Also other objects of scenes, and the captions that a BPE is learned from."""
    train = opened()
    assert {drawing.split for drawing in train.drawings} == {"train"}
    held_out = opened("test_concept")
    named = set("\n".join(train.captions()).split("\n"))
    unseen = {concept.phrase for concept in held_out.concepts}
    shown = [p for p in unseen if named & {p, f"an icon of {p}", f"a picture of {p}"}]
    assert unseen and not shown


def test_held_out_is_the_union_of_the_test_splits_and_known_is_train() -> None:
    parts = [len(opened(split)) for split in ("test_pair", "test_block", "test_concept")]
    assert len(opened("held_out")) == sum(parts)
    assert [d.concept.phrase for d in opened("known").drawings] == [d.concept.phrase for d in opened().drawings]
    assert opened("known").pair(3, 1).caption == opened("known").canonical_caption(3)


def test_held_out_drawings_are_unaugmented_with_the_canonical_caption() -> None:
    pairs = opened("validation")
    for index in range(0, len(pairs), 5):
        pair = pairs.pair(index, seed=index)
        assert pair.caption == pairs.canonical_caption(index) == pairs.pair(index, seed=99).caption
        assert np.array_equal(pair.image, paint(pairs.drawings[index].art.render(SIDE), (255, 255, 255)))


def test_concepts_are_sampled_by_the_square_root_of_their_count() -> None:
    train = opened(scenes=0.0)
    drawn = Counter((train.drawings[n].set, train.concepts[n]) for n in range(len(train.drawings)))
    shown: Counter = Counter()
    for index in range(len(train)):
        source = train._slots[index][0]
        shown[train.drawings[source].set, train.concepts[source]] += 1
    assert all(shown[concept] == int(np.ceil(np.sqrt(count))) for concept, count in drawn.items())


def test_set_weights_set_the_sampling_ratio() -> None:
    plain, weighed = opened(), opened(weights=(1.0, 3.0))
    shares = Counter(weighed.drawings[weighed._slots[index][0]].set for index in range(len(weighed)))
    assert shares["icons"] / shares["emoji"] == pytest.approx(3, rel=0.01)
    everything = {number for slot in weighed._slots for number in slot}
    assert everything == {number for slot in plain._slots for number in slot} == set(range(len(plain.drawings)))


# Determinism


def test_a_pair_is_a_function_of_index_and_seed() -> None:
    train, again = opened(), DrawingsDataset(DrawingsConfig(styles=FEW), "train", SIDE)
    differ = 0
    for index in range(0, len(train), 97):
        a, b, c = train.pair(index, 7), again.pair(index, 7), train.pair(index, 8)
        assert np.array_equal(a.image, b.image) and a.caption == b.caption
        differ += a.caption != c.caption or not np.array_equal(a.image, c.image)
    assert differ > 10


def test_global_randomness_is_not_touched() -> None:
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002 what a library would use unasked
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    opened().pair(0, 1)
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002


def test_captions_equal_recorded_ones() -> None:
    """Written down, so that a change of what trainings see does not go unnoticed."""
    train = opened()
    assert [train.pair(index, 11).caption for index in (0, 500, 1500, 3000)] == KNOWN


KNOWN = [
    "दाँत दिखाता चेहरा, ट्वेमोजी शैली",
    "a woman mechanic in the twemoji style on a gray background",
    "साढ़े बारह, घड़ी, 12:30",
    "a microphone, solid style on a red background",
]


# Images


def test_paint_equals_the_alpha_formula() -> None:
    rng = np.random.default_rng(0)
    layer, color = rng.integers(0, 256, (16, 16, 4), dtype=np.uint8), (10, 200, 255)
    painted = paint(layer, color)
    for (y, x), alpha in np.ndenumerate(layer[..., 3]):
        for channel in range(3):
            exact = layer[y, x, channel] * (alpha / 255) + color[channel] * (1 - alpha / 255)
            assert abs(painted[y, x, channel] - exact) <= 0.5 + 1e-9


def test_stored_images_are_resized_by_alpha_weighted_means() -> None:
    drawing = next(d for d in opened().drawings if d.style == "twemoji")
    full, small = drawing.art.render(128).astype(float), drawing.art.render(64)
    blocks = full.reshape(64, 2, 64, 2, 4)
    alpha = blocks[..., 3:]
    color = (blocks[..., :3] * alpha).sum((1, 3)) / np.maximum(alpha.sum((1, 3)), 1)
    assert np.abs(small[..., 3] - alpha.mean((1, 3))[..., 0]).max() <= 1
    opaque = small[..., 3] == 255
    assert opaque.any() and np.abs(small[..., :3] - color)[opaque].max() <= 1.5


def test_svg_icons_render_at_any_size_and_color() -> None:
    square = Vector("0 0 8 8", '<path fill="currentColor" d="M2 2h4v4h-4z"/>')
    for side in (8, 32, 64):
        drawn = square.render(side, (10, 20, 30))
        inside = np.zeros((side, side), dtype=bool)
        inside[side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = True
        assert (drawn[inside] == (10, 20, 30, 255)).all() and not drawn[~inside][:, 3].any()


def test_monochrome_drawings_have_the_color_their_caption_names() -> None:
    train = opened(inks=1.0, scenes=0.0, languages=("en",), backgrounds=0.0, style_named=0.0, keywords=0.0)
    seen = 0
    for made in compositions(train, 200):
        drawing = train.drawings[made.sources[0]]
        (ink,) = made.inks
        assert (ink is not None) == (drawing.mono and drawing.concept.colorable)
        if ink is not None:
            opaque = made.layer[made.layer[..., 3] == 255][:, :3].astype(int)
            assert re.search(rf"\b{ink}\b", made.caption)
            assert np.abs(opaque - COLORS[ink].rgb).max() <= 8
            seen += 1
    assert seen > 50


def test_black_where_the_caption_names_no_color() -> None:
    train = opened(inks=0.0, scenes=0.0)
    for made in compositions(train, 100):
        if train.drawings[made.sources[0]].mono:
            assert not made.layer[made.layer[..., 3] > 250][:, :3].any()


@pytest.mark.parametrize("relation", [*RELATIONS, *ROWS])
@pytest.mark.parametrize("side", [64, 128, 100])
def test_scene_boxes_are_disjoint_and_follow_the_relation(relation: str, side: int) -> None:
    boxes = scene_boxes(relation, side, random.Random(side), shift=0.2)
    taken = np.zeros((side, side), dtype=int)
    for top, left, own in boxes:
        assert top >= 0 and left >= 0 and top + own <= side and left + own <= side
        taken[top : top + own, left : left + own] += 1
    assert taken.max() == 1
    steps = {
        "left": (0, 1), "right": (0, -1), "above": (1, 0), "below": (-1, 0), "left to right": (0, 1),
        "top to bottom": (1, 0),
    }  # fmt: skip
    for (top, left, _), (next_top, next_left, _) in pairwise(boxes):
        assert (np.sign(next_top - top), np.sign(next_left - left)) == steps[relation]


def test_scenes_show_the_objects_where_the_caption_says() -> None:
    pairs = DrawingsDataset(
        DrawingsConfig(sets=("emoji",), styles=("twemoji",), scenes=1, backgrounds=0, languages=("en",)), "train", SIDE
    )
    seen: Counter = Counter()
    for made in compositions(pairs, 60):
        assert made.relation is not None
        seen[made.relation] += 1
        slow = np.zeros((SIDE, SIDE, 4), dtype=np.uint8)
        for source, (top, left, own) in zip(made.sources, made.boxes):
            slow[top : top + own, left : left + own] = pairs.drawings[source].art.render(own)
        assert np.array_equal(made.layer, slow)
        phrases = dict(zip("abc", (pairs.concepts[source].phrase for source in made.sources)))
        assert _SCENES["en"][made.relation].format(**phrases) in made.caption
    assert set(seen) == {*RELATIONS, *ROWS}


def test_background_has_the_color_the_caption_names() -> None:
    for made in compositions(busy(), 150):
        assert made.background is not None and made.background in made.caption
        assert np.abs(np.array(made.color) - COLORS[made.background].rgb).max() <= 8
        empty = made.layer[..., 3] == 0
        assert (made.paint()[empty] == made.color).all()


def test_shifted_colors_stay_nearest_to_their_name() -> None:
    """Shaken by 8 each way, every color is still nearest to its own name's."""
    centers = np.array([color.rgb for color in COLORS.values()], dtype=float)
    rng = np.random.default_rng(0)
    for number, center in enumerate(centers):
        shaken = np.clip(center + rng.integers(-8, 9, (200, 3)), 0, 255)
        assert (np.linalg.norm(shaken[:, None] - centers, axis=-1).argmin(1) == number).all()


def test_background_is_white_unless_the_caption_names_a_color() -> None:
    for made in compositions(opened()):
        if made.background is None:
            assert made.color == (255, 255, 255)
            assert "background" not in made.caption and "पृष्ठभूमि" not in made.caption


def test_objects_rarely_blend_into_their_background() -> None:
    made = compositions(opened(), 300)
    assert np.mean([blends_in(one.layer, one.color) for one in made]) < 0.02


def test_objects_are_moved_but_not_cut() -> None:
    train = opened(scale=1.0, inks=0.0, scenes=0.0)
    moved = 0
    for made in compositions(train, 200):
        whole = train.drawings[made.sources[0]].art.render(SIDE)
        assert made.layer[..., 3].astype(int).sum() == whole[..., 3].astype(int).sum()
        (top, left), (top0, left0) = (np.argwhere(a[..., 3]).min(0) for a in (made.layer, whole))
        assert abs(top - top0) <= 4 and abs(left - left0) <= 4  # 0.06 of 64 pixels
        moved += (top, left) != (top0, left0)
    assert moved > 50


def test_placing_an_object_only_shifts_its_pixels() -> None:
    object_ = np.zeros((20, 20, 4), dtype=np.uint8)
    object_[5:15, 2:18] = 200
    for top, left in [(-9, 0), (0, -9), (30, 30), (3, 4)]:
        inside = clamp_inside(object_, 32, top, left)
        layer = place_alone(object_, 32, *inside)
        assert layer.astype(int).sum() == object_.astype(int).sum()
        assert np.argwhere(layer[..., 3]).min(0).tolist() == [5 + inside[0], 2 + inside[1]]


def test_scaled_objects_cover_the_expected_area() -> None:
    pairs = opened(sets=("emoji",), styles=("fluent-mono",), scale=0.5, scenes=0.0, inks=0.0)
    covered = [
        c.layer[..., 3].sum() / max(pairs.drawings[c.sources[0]].art.render(SIDE)[..., 3].sum(), 1)
        for c in compositions(pairs, 60)
    ]
    assert 0.2 < min(covered) < 0.5 and max(covered) < 1.05


@pytest.mark.parametrize("name, expected", [("pig", "pig"), ("fist facing left", "fist facing right"), ("clock", None)])
def test_mirrored_concepts_are_renamed(name: str, expected: str | None) -> None:
    concept = mirror_concept(Concept(f"a {name}", {"en": name}, {}))
    assert (concept and concept.names["en"]) == expected
    assert expected is None or concept.phrase == f"a {expected}"


def test_flips_mirror_pixels() -> None:
    plain, flipped = (
        opened(sets=("icons",), styles=("cartoon",), scale=1.0, shift=0.0, scenes=0.0, flips=f) for f in (0.0, 1.0)
    )
    mirrors = 0
    for index in range(60):
        a, b = plain.compose(index, 5), flipped.compose(index, 5)
        one_way = mirror_concept(plain.concepts[a.sources[0]]) is None
        assert a.sources == b.sources
        assert np.array_equal(b.layer, a.layer if one_way else place_alone(a.layer[:, ::-1], SIDE, 0, 0))
        mirrors += not one_way
    assert mirrors > 30


# Captions


def test_captions_have_the_configured_share_of_languages() -> None:
    made = compositions(opened(sets=("emoji",), styles=("twemoji",)), 500)
    local = [c for c in made if DEVANAGARI.search(c.caption)]
    assert 0.22 < len(local) / len(made) < 0.38  # 30 %, less names that a language lacks
    words = Counter(
        "hi" if "शैली" in c.caption and "शैलीमा" not in c.caption else "ne" for c in local if "शैली" in c.caption
    )
    assert words["hi"] and words["ne"]


def test_style_is_left_out_of_some_captions() -> None:
    train, named = opened(), 0
    made = compositions(train, 300)
    for one in made:
        words = [w for own in train.drawings[one.sources[0]].style_words.values() for w in own]
        named += any(word in one.caption for word in words)
    assert 0.65 < named / len(made) < 0.85


@pytest.mark.parametrize("share, every", [(0.0, False), (1.0, True)])
def test_options_of_0_and_1_are_exact(share: float, every: bool) -> None:
    pairs = opened(sets=("emoji",), styles=("twemoji",), scenes=share, backgrounds=share, languages=("en",))
    for made in compositions(pairs, 60):
        assert (made.relation is not None) is every and (made.background is not None) is every


def test_captions_are_well_formed() -> None:
    for made in compositions(opened(), 500):
        assert made.caption == made.caption.strip() and "  " not in made.caption
        assert "{" not in made.caption and "None" not in made.caption
        assert not re.search(r"\ba (orange|apple|icon)\b", made.caption)
        assert "colour" not in made.caption


def test_canonical_caption_is_phrase_and_style() -> None:
    heart = Concept("a red heart", {"en": "red heart"}, {})
    assert canonical_caption(heart, STYLES["fluent-3d"]) == "a red heart, 3d style"


@pytest.mark.parametrize(
    "phrase, ink, expected",
    [
        ("a wolf", "teal", "a teal wolf"),
        ("an apple", "blue", "a blue apple"),
        ("a cat", "orange", "an orange cat"),
        ("scissors", "red", "red scissors"),
        ("the moon", "red", "red moon"),
    ],
)
def test_english_phrases_place_the_color(phrase: str, ink: str, expected: str) -> None:
    assert Concept(phrase, {"en": phrase.split(" ")[-1]}, {}).words("en", ink)[0] == expected


def test_concepts_with_a_color_of_their_own_are_not_colorable() -> None:
    assert not Concept("a red heart", {"en": "red heart"}, {}).colorable
    assert Concept("a heart", {"en": "heart"}, {}).colorable


def test_every_style_and_color_has_words_in_every_language() -> None:
    for words in (*STYLES.values(), *FAMILIES.values()):
        assert all(words[language] and all(words[language]) for language in ("en", "hi", "ne"))
    assert all(COLORS[ink].hi_ink and COLORS[ink].ne_ink for ink in INKS) and len(INKS) >= 12
    assert {row["family"].replace("colour", "color") for row in icon_rows()} == set(FAMILIES)


def test_training_captions_of_the_bpe_have_every_word() -> None:
    """Whatever a training caption is made of is among the captions that the BPE is learned from."""
    train = opened()
    words = set(re.findall(r"\w+", "\n".join(train.captions())))
    missing = {w for made in compositions(train, 400) for w in re.findall(r"\w+", made.caption)} - words
    assert not missing


# What can go wrong


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown data split 'test': choose from train"):
        DrawingsDataset(DrawingsConfig(), "test", SIDE)


def test_missing_folder_and_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        DrawingsDataset(DrawingsConfig(root=tmp_path / "no"), "train", SIDE)
    with pytest.raises(ValueError, match="no such file"):
        DrawingsDataset(DrawingsConfig(root=tmp_path), "train", SIDE)
    with pytest.raises(ValueError, match="there are no icons"):
        DrawingsDataset(DrawingsConfig(root=tmp_path, sets=("icons",)), "train", SIDE)


@pytest.mark.parametrize(
    "options",
    [
        {"sets": ()},
        {"sets": ("emoji", "emoji")},
        {"styles": ("oil",)},
        {"styles": ()},
        {"sets": ("icons",), "styles": ("noto",)},
        {"weights": (1.0,)},
        {"weights": (1.0, float("nan"))},
        {"weights": (1.0, 0.0)},
        {"weights": (1e-6, 1000.0)},  # a thousand million slots
        {"weights": (1e-300, 1000.0)},
        {"languages": ()},
        {"languages": ("en", "en")},
        {"scenes": 1.5},
        {"inks": -0.1},
        {"flips": float("nan")},
        {"shift": 0.4},
        {"scale": 0.1},
        {"rotation": 90.0},
        {"max_bad": -1},
    ],
)
def test_options_out_of_range_are_refused(options: dict) -> None:
    *_, name = options
    with pytest.raises(ValueError, match=name.removesuffix("s")):
        DrawingsConfig(**options)


# What the folders say of themselves


@pytest.mark.parametrize("name", ["emoji", "icons"])
def test_every_license_text_is_shipped(name: str) -> None:
    owners = {"emoji": emoji_rows, "icons": icon_rows}[name]()
    texts = {file.stem: file.read_text(encoding="utf-8") for file in (ROOT / name / "licenses").iterdir()}
    needed = {row["licence"] for row in owners}
    for license_ in needed:
        assert any(text.startswith(license_) and len(content) > 700 for text, content in texts.items()), license_
    card = (ROOT / name / "README.md").read_text(encoding="utf-8")
    assert all(f"licenses/{text}.txt" in card for text in texts)
