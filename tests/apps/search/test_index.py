"""ImageIndex: exact answers, queries of texts and images, filters, duplicates, captions, few of many, export."""

from __future__ import annotations

import base64
import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

import dalle
from dalle.apps.search import ImageIndex, ann, neighbors, store, update
from dalle.apps.search.exact import nearest
from dalle.apps.search.export import export
from dalle.apps.search.html import write_page
from dalle.data.base import read_image
from dalle.models.clip import CLIP
from support.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def clip(tiny_parts: Path) -> CLIP:
    clip = dalle.load_clip(tiny_parts / "clip")
    torch.manual_seed(0)
    with torch.no_grad():  # fresh weights ignore their input nearly wholly: these do not
        for parameter in clip.vision.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return clip


def patches(seed: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    """Large patches of color, which even random weights tell apart."""
    cells = np.random.default_rng(seed).integers(0, 2, (2, 2, 3), dtype=np.uint8) * 255
    cells[0, 0] = np.random.default_rng(seed).integers(0, 256, 3, dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty images, the last a copy of the first; every third has captions."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(30):
        folder = root / ("holiday" if number % 2 else "work")
        folder.mkdir(exist_ok=True)
        patches(number, (12 + number, 10)).save(folder / f"{number:02d}.png")
        if number % 3 == 0:
            (folder / f"{number:02d}.txt").write_text(f"image {number}\nलाल दिल {number}\n", encoding="utf-8")
    (root / "copy.png").write_bytes((root / "work" / "00.png").read_bytes())
    return root


@pytest.fixture(scope="module")
def index(photos: Path, clip: CLIP, tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    made, report = ImageIndex.build(tmp_path_factory.mktemp("out") / "photos.index", photos, clip=clip)
    assert (report.images, report.embedded, report.broken) == (31, 31, [])
    return made


def test_hits_equal_a_slow_loop(index: ImageIndex, clip: CLIP, photos: Path) -> None:
    text = clip.encode_text(["a red heart"])[0].detach()
    scores = {}
    for file in photos.rglob("*.png"):
        pixels = torch.tensor(read_image(file.read_bytes(), "", 8)).permute(2, 0, 1)[None] / 255
        scores[str(file)] = float(clip.encode_image(pixels)[0].detach() @ text)
    hits = index.search("a red heart", top=31)
    assert {hit.path for hit in hits} == set(scores)
    for hit in hits:
        assert hit.score == pytest.approx(scores[hit.path], abs=2e-3)  # stored in 16 bits
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_query_vectors_are_normalized_sums_and_differences(index: ImageIndex, clip: CLIP) -> None:
    first, second = (clip.encode_text([text])[0].detach() for text in ("a red heart", "लाल दिल"))
    expected = first - second
    got = index.query("a red heart", minus="लाल दिल")
    torch.testing.assert_close(got, expected / expected.norm(), rtol=0, atol=1e-5)
    both = index.query(["a red heart", "लाल दिल"], patches(3))
    alone = index.query(image=patches(3))
    expected = first + second + alone
    torch.testing.assert_close(both, expected / expected.norm(), rtol=0, atol=1e-5)


def test_an_image_retrieves_itself_and_its_copy(index: ImageIndex, photos: Path) -> None:
    hits = index.search(image=photos / "copy.png", top=2)
    assert {Path(hit.path).name for hit in hits} == {"copy.png", "00.png"}
    assert hits[0].score == pytest.approx(1, abs=1e-3) and hits[0].sha256 == hits[1].sha256
    assert index.read(hits[0]) == (photos / "copy.png").read_bytes()


def test_where_filters_select_rows_and_wrong_ones_are_refused(index: ImageIndex) -> None:
    wide = index.search("a", top=31, where=["width>=20", "path~HOLIDAY"])
    assert {hit.width for hit in wide} == {12 + number for number in range(30) if number >= 8 and number % 2}
    assert all("holiday" in hit.path for hit in wide)
    assert len(index.search("a", top=31, where=["caption~दिल"])) == 10
    assert index.search("a", where=["width=9999"]) == []
    assert len(index.search("a", top=31, where=["width<" + 18 * "9"])) == 31
    for wrong in (
        "width",
        "color=red",
        "width~3",
        "width>=wide",
        f"width<{2**63}",
        "width<" + 5000 * "9",
        "path>3",
        "",
    ):
        with pytest.raises(ValueError, match="filter"):
            index.search("a", where=[wrong])


def test_near_duplicates_equal_a_slow_loop(index: ImageIndex) -> None:
    vectors = torch.from_numpy(index.table.vectors(range(31)))
    least = float((vectors @ vectors.T).triu(1).flatten().sort().values[-12]) - 1e-4  # a dozen pairs
    assert least < 1
    groups = index.near_duplicates(least)
    near_by = {row: set(np.flatnonzero((vectors @ vectors[row] >= least).numpy())) - {row} for row in range(31)}
    expected, left = [], {row for row in near_by if near_by[row]}
    while left:
        group, new = set(), {left.pop()}
        while new:
            group |= new
            new = set().union(*(near_by[row] for row in new)) - group
        expected.append(sorted(int(row) for row in group))
        left -= group
    assert sorted([hit.number for hit in group] for group in groups) == sorted(expected)
    assert any({"copy.png", "00.png"} <= {Path(hit.path).name for hit in g} for g in index.near_duplicates(0.999))
    with pytest.raises(ValueError, match="from above 0 to 1"):
        index.near_duplicates(1.5)


def test_captions_of_an_image_are_ranked_by_cosine(index: ImageIndex, clip: CLIP) -> None:
    found = index.captions(patches(77), top=20)
    assert len(found) == 20 and [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    image = index.query(image=patches(77))
    for caption, score in found[:3]:
        assert float(clip.encode_text([caption])[0].detach() @ image) == pytest.approx(score, abs=1e-5)


def test_blockwise_nearest_equals_topk_also_of_filtered_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(50, 8, generator=generator), dim=1).half()
    queries, kept = torch.randn(3, 8, generator=generator), np.arange(50) % 3 == 0
    whole = vectors.float()
    for rows in (50, 7):
        blocks = [block.numpy() for block in vectors.split(rows)]
        values, found = nearest(blocks, queries, 5)
        assert torch.equal(found, (queries @ whole.T).topk(5).indices) and values.shape == (3, 5)
        values, found = nearest(blocks, queries, 30, kept)
        assert found.shape == (3, 17)
        products = (queries @ whole.T).masked_fill(~torch.from_numpy(kept), -torch.inf)
        assert torch.equal(found, products.topk(17).indices)


def test_approximate_search_gives_the_exact_hits(
    index: ImageIndex, clip: CLIP, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is lowered, so that 31 images are many; cells and candidates then take in all of them."""
    pytest.importorskip("faiss")
    for module in (update, neighbors):
        monkeypatch.setattr(module, "EXACT", 10)
    many, _ = ImageIndex.build(tmp_path / "many", photos, clip=clip)
    assert many.manifest.ann is not None
    monkeypatch.setattr(neighbors, "EXACT", 10_000)
    for query in ("a red heart", "two green stars", "दिल"):
        expected = index.search(query, top=5)
        assert [hit.path for hit in many.search(query, top=5)] == [hit.path for hit in expected]
    monkeypatch.setattr(neighbors, "EXACT", 0)
    monkeypatch.setattr(neighbors, "_CANDIDATES", 0)
    some = many.search("a", top=4, where=["path~holiday"])
    assert [hit.path for hit in some] == [hit.path for hit in index.search("a", top=4, where=["path~holiday"])]
    for _ in range(2):  # brought up to date with the cells of before
        again, report = ImageIndex.build(tmp_path / "many", clip=clip)
        assert report.unchanged == 31 and len(list((tmp_path / "many").glob("near-*"))) == 1
    assert [hit.path for hit in again.search("a", top=4)] == [hit.path for hit in many.search("a", top=4)]


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-50])])
def test_update_trains_a_lost_approximate_index_anew(
    photos: Path, clip: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], object]
) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(update, "EXACT", 10)
    before, _ = ImageIndex.build(tmp_path / "index", photos, clip=clip)
    assert before.manifest.ann is not None
    damage(tmp_path / "index" / before.manifest.ann[0])
    again, report = ImageIndex.build(tmp_path / "index", clip=clip)
    assert report.unchanged == 31 and again.manifest.ann is not None
    assert [hit.path for hit in again.search("a", top=4)] == [hit.path for hit in before.search("a", top=4)]


def test_approximate_index_has_high_recall(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    random = np.random.default_rng(0)
    centers = random.standard_normal((200, 32))
    vectors = centers[random.integers(0, 200, 20_000)] + 0.5 * random.standard_normal((20_000, 32))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    blocks = np.array_split(vectors, 3)
    ann.build(blocks, tmp_path / "near.faiss")
    queries = torch.from_numpy(vectors[::500].astype(np.float32))
    _, exact = nearest(blocks, queries, 10)
    found = ann.FaissIndex(tmp_path / "near.faiss").candidates(queries.numpy(), 100)
    hits = [len(set(one) & set(other)) / 10 for one, other in zip(found.tolist(), exact.tolist())]
    assert np.mean(hits) > 0.97


def test_html_page_embeds_its_thumbnails(index: ImageIndex, tmp_path: Path) -> None:
    hits = index.search("दिल", top=3)
    write_page(tmp_path / "new" / "found.html", index, "<दिल>", hits)
    text = (tmp_path / "new" / "found.html").read_text(encoding="utf-8")
    assert text.count('src="data:image/jpeg;base64,') == 3 and "<h1>&lt;दिल&gt;</h1>" in text
    assert text.count(Path(hits[0].path).as_uri()) == 1


def test_export_holds_every_vector(index: ImageIndex, tmp_path: Path) -> None:
    assert export(index.table, tmp_path / "out.parquet", 8) == 31
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["id"] for row in rows] == list(range(31))
    assert np.allclose([row["vector"] for row in rows], index.table.vectors(range(31)))
    assert {row["path"] for row in rows} == {hit.path for hit in index.search("a", top=31)}


def test_vector_and_data_url_are_queries(index: ImageIndex, photos: Path) -> None:
    direction = index.query("a red heart")
    wanted = [(hit.path, pytest.approx(hit.score, abs=1e-5)) for hit in index.search("a red heart")]
    for vector in (direction, (7 * direction).tolist()):
        assert [(hit.path, hit.score) for hit in index.search(vector=vector)] == wanted
    sums = index.search(["a red heart", "लाल दिल"], top=3)
    assert [hit.path for hit in index.search("लाल दिल", vector=direction, top=3)] == [hit.path for hit in sums]
    file = photos / "copy.png"
    url = "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
    assert index.search(image=url, top=5) == index.search(image=file, top=5)


def test_wrong_queries_are_refused(index: ImageIndex) -> None:
    for arguments, message in (
        ({}, "no query"),
        ({"text": " "}, "a text of the query is empty"),
        ({"text": "a", "minus": "a"}, "nothing is left to look for"),
        ({"text": "a", "top": 0}, "top is 0"),
        ({"image": b"GIF89a"}, "image 1: "),
        ({"image": "nowhere.png"}, "nowhere.png: its file cannot be read"),
        ({"image": "data:image/png,abc"}, "image 1: it is no data: URL in base64"),
        ({"image": "data:image/png;base64,a!"}, "image 1: it is no data: URL in base64"),
        ({"vector": [1.0, 2.0]}, "the vector has 2 numbers, those of the index"),
        ({"vector": [0.0]}, "no list of finite numbers"),
        ({"vector": [math.nan]}, "no list of finite numbers"),
        ({"vector": [[1.0]]}, "no list of finite numbers"),
        ({"vector": ["a"]}, "no list of finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            index.search(**arguments)


def test_index_refuses_another_clip(index: ImageIndex, photos: Path, tmp_path: Path) -> None:
    other = dalle.load_clip(make_tiny_model(tmp_path, seed=1).parent / "clip")
    with pytest.raises(ValueError, match="was made with another CLIP"):
        ImageIndex(index.folder, other).search("a")
    with pytest.raises(ValueError, match="was made with another CLIP"):
        ImageIndex.build(index.folder, photos, clip=other)


def test_damaged_indexes_are_refused(index: ImageIndex, tmp_path: Path) -> None:
    table = index.manifest.table[0]
    damages = {
        "cut short": lambda folder: (folder / table).write_bytes((folder / table).read_bytes()[:-100]),
        "is damaged": lambda folder: (folder / table).write_bytes(bytes((folder / table).stat().st_size)),
        "is not there": lambda folder: (folder / table).unlink(),
        "index.json is damaged": lambda folder: (folder / store.NAME).write_text("{"),
        "not of format": lambda folder: (folder / store.NAME).write_text('{"format": 99}'),
        "no index: make one": lambda folder: (folder / store.NAME).unlink(),
    }
    for number, (message, damage) in enumerate(damages.items()):
        folder = tmp_path / str(number)
        shutil.copytree(index.folder, folder)
        damage(folder)
        with pytest.raises(ValueError, match=message):
            ImageIndex(folder)


def test_any_wrong_value_in_the_manifest_is_a_line_that_names_it(index: ImageIndex, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    shutil.copytree(index.folder, folder)
    file = folder / store.NAME
    whole = json.loads(file.read_text(encoding="utf-8"))
    assert store.read_manifest(folder) == index.manifest
    wrong: dict[str, tuple] = {
        "clip": (3, None, []),
        "clip_hash": (3, None, {}),
        "dimensions": ("many", None, 0, -1, 2.5, True, [8], 10**30),
        "images": ("many", None, -1, True, {}),
        "sources": (None, "many", 3, {}, [3], [None], [{}], [{"path": 3}], [{"path": "a", "split": None}]),
        "table": (None, "many", [], ["a"], ["a", "b"], [1, 2], ["a", 1, 2], {"a": 1}),
        "near": ("many", 3, ["a"], ["a", "b"], {}),
        "generation": ("many", None, -1, True),
    }
    for name, values in wrong.items():
        for value in values:
            file.write_text(json.dumps(whole | {name: value}), encoding="utf-8")
            with pytest.raises(ValueError, match=r"index.json is damaged \(.*\): remove") as caught:
                store.read_manifest(folder)
            assert "\n" not in str(caught.value), (name, value)
        file.write_text(json.dumps({key: value for key, value in whole.items() if key != name}), encoding="utf-8")
        with pytest.raises(ValueError, match=r"index.json is damaged \(.*missing\)"):
            store.read_manifest(folder)


def test_index_of_one_image_of_one_pixel(clip: CLIP, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    (tmp_path / "one.png").write_bytes(buffer.getvalue())
    index, _ = ImageIndex.build(tmp_path / "index", tmp_path / "one.png", clip=clip)
    assert len(index.search("a")) == 1 and index.near_duplicates() == []


def test_query_weights_scale_text_embeddings(index: ImageIndex, clip: CLIP) -> None:
    first, second = (clip.encode_text([text])[0].detach() for text in ("a red heart", "लाल दिल"))
    total = first - 0.5 * second
    got = index.query(weights={"a red heart": 1, "लाल दिल": -0.5})
    torch.testing.assert_close(got, total / total.norm(), atol=1e-5, rtol=0)
    with_text = index.query("a red heart", weights={"लाल दिल": -0.5})
    torch.testing.assert_close(with_text, got, atol=1e-5, rtol=0)
    for scale in (1e-6, 1e30, 1e300):  # only their ratio counts
        weights = {"a red heart": scale, "लाल दिल": -0.5 * scale}
        torch.testing.assert_close(index.query(weights=weights), got, atol=1e-5, rtol=0)
    for weights in ({"a": 0.0}, {"a": float("nan")}, {"a": math.inf}):
        with pytest.raises(ValueError, match="each must be a finite number other than 0"):
            index.query(weights=weights)


def test_min_score_drops_lower_hits(index: ImageIndex) -> None:
    every = index.search("a red heart", top=31)
    floor = every[11].score
    above = index.search("a red heart", top=31, min_score=floor)
    assert above == every[:12] and index.search("a red heart", top=5, min_score=floor) == every[:5]
    assert index.search("a red heart", min_score=1.0) == []
    with pytest.raises(ValueError, match="scores are from -1 to 1"):
        index.search("a red heart", min_score=25)


@pytest.mark.parametrize("least", [0.6, 0.9, 0.999])
def test_distinct_drops_near_duplicate_hits(index: ImageIndex, least: float) -> None:
    every = index.search("a red heart", top=31)
    vectors = torch.from_numpy(index.table.vectors(np.array([hit.number for hit in every])))
    expected: list[int] = []
    for place in range(31):
        if all(float(vectors[place] @ vectors[other]) < least for other in expected):
            expected.append(place)
    assert len(expected) < 31  # one is a copy of another
    assert index.search("a red heart", top=31, distinct=least) == [every[place] for place in expected]
    assert index.search("a red heart", top=2, distinct=least) == [every[place] for place in expected[:2]]
    with pytest.raises(ValueError, match="give a cosine"):
        index.search("a red heart", distinct=0)


def test_siglip_hits_have_probabilities(photos: Path, clip: CLIP, tmp_path: Path) -> None:
    siglip = CLIP(replace(clip.config, sigmoid=True)).eval()
    siglip.load_state_dict(clip.state_dict() | {"logit_bias": torch.tensor(-1.0)})
    siglip.tokenizer = clip.tokenizer
    index, _ = ImageIndex.build(tmp_path / "index", photos, clip=siglip)
    hits = index.search("a red heart", top=31)
    for hit in hits:
        logit = siglip.logit_scale.exp().item() * hit.score - 1
        assert hit.probability == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-5)
    assert [hit.likeness for hit in hits] == [hit.probability for hit in hits]
    write_page(tmp_path / "page.html", index, "a red heart", hits[:1])
    assert f"<b>{hits[0].probability:.3f}</b>" in (tmp_path / "page.html").read_text(encoding="utf-8")
    floor = hits[4].likeness
    assert index.search("a red heart", top=31, min_score=floor) == hits[:5]
    assert index.search(["a red heart", "a star"])[0].probability is None
