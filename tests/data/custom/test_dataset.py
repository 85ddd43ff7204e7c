"""The user's own images in every layout, by number and streamed, whole and broken."""

from __future__ import annotations

import csv
import io
import itertools
import json
import logging
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

import train
from dalle.config import from_dict, read_yaml
from dalle.data import open_data, open_training
from dalle.data.base import BadRecord
from dalle.data.custom import stream as stream_module
from dalle.data.custom.config import CustomConfig
from dalle.data.custom.dataset import CustomDataset
from dalle.data.custom.open_source import expand_braces
from dalle.data.custom.parquet import hub_source
from dalle.data.custom.records import FileSpan, Record, Shard, in_validation_split
from dalle.data.custom.splits import source_of_split
from dalle.data.custom.stream import CustomStream, StreamValidation
from dalle.data.custom.webdataset import TarSource
from dalle.data.loader import batches, evaluation_batches
from dalle.image_tokenizers import ImageTokenizerConfig

COUNT = 24
SHARD = COUNT // 3
SIDE = 4


@pytest.fixture(autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of our own, and no network."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return cache


def image(number: int) -> bytes:
    """A gray square that tells its number."""
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (number,) * 3).save(file, "png")
    return file.getvalue()


def captions(number: int) -> list[str]:
    """One or two, in Hindi now and then."""
    return [f"number {number}", f"संख्या {number}"][: 1 + number % 2]


# One function for each layout: writes COUNT images with their captions, and returns data.path.


def with_texts(root: Path) -> Path:
    for number in range(COUNT):
        file = root / f"{number % 3}/{number}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(image(number))
        file.with_suffix(".txt").write_text("\n".join(captions(number)) + "\n\n", encoding="utf-8")
    return root


def with_jsonl(root: Path) -> Path:
    rows = []
    for number in range(COUNT):
        (root / f"{number}.png").write_bytes(image(number))
        own = captions(number)
        rows.append({"file_name": f"{number}.png", "text": own if len(own) > 1 else own[0]})
    text = "\n".join(json.dumps(row, ensure_ascii=number % 2 == 0) for number, row in enumerate(rows))
    (root / "metadata.jsonl").write_text(text, encoding="utf-8")
    return root


def with_csv(root: Path) -> Path:
    (root / "images").mkdir()
    with (root / "metadata.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "caption"])
        for number in range(COUNT):
            (root / f"images/{number}.png").write_bytes(image(number))
            writer.writerows([f"images/{number}.png", caption] for caption in captions(number))
    return root


def with_parquet(root: Path) -> Path:
    """As pyarrow writes it: a struct without any mark of being an image."""
    for shard in range(3):
        own = range(shard * SHARD, (shard + 1) * SHARD)
        table = {
            "id": [f"record {number}" for number in own],
            "image": [{"bytes": image(number), "path": None} for number in own],
            "captions": [captions(number) for number in own],
        }
        parquet.write_table(pyarrow.table(table), root / f"part-{shard}.parquet", row_group_size=3)
    return root


def with_hub_layout(root: Path) -> Path:
    """As datasets writes it for the hub: a column of type Image, and the split in the file's name."""
    features = datasets.Features({"image": datasets.Image(), "text": datasets.List(datasets.Value("string"))})
    (root / "data").mkdir()
    for split, numbers in (("train", range(COUNT)), ("test", range(100, 110))):
        rows = {"image": [{"bytes": image(n), "path": None} for n in numbers], "text": [captions(n) for n in numbers]}
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(root / f"data/{split}-00000-of-00001.parquet")
    return root


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def with_tars(root: Path) -> Path:
    for shard in range(3):
        with tarfile.open(root / f"shard-{shard:03}.tar", "w") as tar:
            for number in range(shard * SHARD, (shard + 1) * SHARD):
                add(tar, f"a/{number:04}.png", image(number))
                add(tar, f"a/{number:04}.txt", "\n".join(captions(number)).encode())
    return root


def with_json_tars(root: Path) -> Path:
    with tarfile.open(root / "all.tar", "w") as tar:
        for number in range(COUNT):
            content = {"caption": captions(number), "title": f"title {number}"}
            add(tar, f"{number:04}.json", json.dumps(content).encode())
            add(tar, f"{number:04}.{'jpg' if number % 3 else 'png'}", image(number))
    return root


LAYOUTS = [with_texts, with_jsonl, with_csv, with_parquet, with_hub_layout, with_tars, with_json_tars]
EVERY = pytest.mark.parametrize("layout", LAYOUTS)
STREAM = pytest.mark.parametrize("stream", [False, True])
Layout = Callable[[Path], Path]


def number_of(image: np.ndarray) -> int:
    assert image.dtype == np.uint8 and len(np.unique(image)) == 1
    return int(image[0, 0, 0])


def ignored(config: CustomConfig, size: int = SIDE) -> dict[int, set[str]]:
    """Numbers that one epoch of training shows, each once, with the captions that ten epochs give them."""
    data = open_training(config, size)
    records = range(len(data)) if isinstance(data, CustomDataset) else data.records(0, 0)
    numbers = [number_of(data.pair(record, 0).image) for record in records]
    assert len(set(numbers)) == len(numbers)
    seen: dict[int, set[str]] = {number: set() for number in numbers}
    for batch in itertools.islice(batches(data, batch_size=len(numbers), seed=1), 8):
        assert sorted(batch.images[:, 0, 0, 0].tolist()) == sorted(numbers) and batch.bad == []
        for image, caption in zip(batch.images.numpy(), batch.captions):
            seen[number_of(image.transpose(1, 2, 0))].add(caption)
    return seen


# Layouts


@EVERY
@STREAM
def test_every_image_and_caption_of_every_layout_is_read(layout: Layout, stream: bool, tmp_path: Path) -> None:
    config = CustomConfig(path=str(layout(tmp_path)), stream=stream, validation_share=0)
    assert ignored(config) == {number: set(captions(number)) for number in range(COUNT)}


@EVERY
def test_streamed_and_indexed_splits_are_equal(layout: Layout, tmp_path: Path) -> None:
    path = str(layout(tmp_path))
    shown = {}
    for stream in (False, True):
        config = CustomConfig(path=path, stream=stream, validation_share=0.2, shuffle_buffer=8)
        held = open_data(config, "validation", SIDE)
        validation = [number_of(held.pair(i, 0).image) for i in range(len(held))]
        shown[stream] = sorted(ignored(config)), sorted(validation)
    assert shown[False] == shown[True]
    trained, validated = shown[True]
    assert sorted(trained + validated) == list(range(COUNT)) and 1 <= len(validated) <= 12


@EVERY
@STREAM
def test_captions_come_from_the_training_split(layout: Layout, stream: bool, tmp_path: Path) -> None:
    config = CustomConfig(path=str(layout(tmp_path)), stream=stream, validation_share=0.2)
    expected = Counter(caption for number in ignored(config) for caption in captions(number))
    assert Counter(open_training(config, SIDE).captions()) == expected


KINDS = pytest.mark.parametrize("layout", [with_texts, with_parquet, with_tars])


@KINDS
@STREAM
def test_resumed_batches_equal_uninterrupted(layout: Layout, stream: bool, tmp_path: Path) -> None:
    data = open_training(CustomConfig(path=str(layout(tmp_path)), stream=stream, shuffle_buffer=16), SIDE)
    whole = list(itertools.islice(batches(data, batch_size=8, seed=4), 12))
    for start in (0, 2, 3, 11):
        again = next(batches(data, batch_size=8, seed=4, start=start))
        assert again.captions == whole[start].captions and again.images.equal(whole[start].images)


@KINDS
@STREAM
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_order_does_not_depend_on_processes_or_workers(layout: Layout, stream: bool, tmp_path: Path) -> None:
    data = open_training(CustomConfig(path=str(layout(tmp_path)), stream=stream, shuffle_buffer=16), SIDE)
    whole = batches(data, batch_size=6, seed=4)
    ranks = [batches(data, batch_size=6, seed=4, rank=rank, world=2, workers=2 * rank) for rank in range(2)]
    for _ in range(4):
        assert next(whole).captions == [caption for rank in ranks for caption in next(rank).captions]


@pytest.mark.parametrize("layout", [with_parquet, with_tars])
def test_streams_are_reshuffled_each_epoch(layout: Layout, tmp_path: Path) -> None:
    data = open_training(
        CustomConfig(path=str(layout(tmp_path)), stream=True, shuffle_buffer=10, validation_share=0), SIDE
    )
    assert isinstance(data, CustomStream)
    orders = [[r.key for r in data.records(seed, epoch)] for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert orders[0] == orders[3] and len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len({order[0].split("/")[0] for order in orders}) > 1  # shards too


@pytest.mark.parametrize("pattern", ["part-{0..2}.parquet", "part-*.parquet", "{part-0,part-1,part-2}.parquet"])
def test_glob_patterns_select_files(pattern: str, tmp_path: Path) -> None:
    config = CustomConfig(path=f"{with_parquet(tmp_path)}/{pattern}", validation_share=0)
    assert len(open_training(config, SIDE)) == COUNT  # type: ignore[arg-type]
    assert (
        len(CustomDataset(CustomConfig(path=f"{tmp_path}/part-1.parquet", validation_share=0), "train", SIDE)) == SHARD
    )


def test_hidden_files_do_not_count(tmp_path: Path) -> None:
    for name in ("a", ".b", ".cache/c", "d/._d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").write_bytes(image(1))
        (tmp_path / f"{name}.txt").write_text("one")
    assert CustomDataset(CustomConfig(path=str(tmp_path)), "train", SIDE).rows.keys == ["a.png"]


def test_brace_patterns_are_expanded() -> None:
    assert expand_braces("a-{008..010}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar"]
    assert expand_braces("{x,y}/{1..2}") == ["x/1", "x/2", "y/1", "y/2"]
    assert expand_braces("plain") == ["plain"]


@STREAM
def test_hub_data_sets_are_loaded_by_name(stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder in the hub's layout stands in for owner/name."""
    local, load, asked = with_hub_layout(tmp_path), datasets.load_dataset, []

    def stand_in(name: str, **options: Any) -> Any:
        asked.append((name, options))
        return load(str(local), **options)

    monkeypatch.setattr(datasets, "load_dataset", stand_in)
    config = CustomConfig(path="owner/name", stream=stream, validation_split="test")
    assert set(ignored(config)) == set(range(COUNT))
    held = open_data(config, "validation", SIDE)
    assert sorted(number_of(held.pair(i, 0).image) for i in range(len(held))) == list(range(100, 110))
    assert asked[0] == ("owner/name", {"split": "train", "streaming": stream})
    with pytest.raises(ValueError, match=r"owner/name .* cannot be loaded: .*no-split"):
        open_training(CustomConfig(path="owner/name", stream=stream, split="no-split"), SIDE)


@STREAM
def test_tar_files_of_the_hub_are_streamed(stream: bool, tmp_path: Path) -> None:
    """As datasets reads them: the name within the shard becomes the key, and lines are captions."""
    source = hub_source(str(with_tars(tmp_path)), "train", None, None, None)
    rows = source.rows()
    records = [rows.record(row) for row in range(len(rows))]
    if stream:
        records = [record for shard in source.shards() for record in shard.records()]
    assert [record.key for record in records] == [f"a/{number:04}" for number in range(COUNT)]
    assert [list(record.captions) for record in records] == [captions(number) for number in range(COUNT)]
    assert [record.image for record in records] == [image(number) for number in range(COUNT)]


def test_unreachable_hub_gives_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^owner/name \(not a local folder, so taken as a hub id\) cannot be loaded: [^\n]*$"
    ):
        CustomDataset(CustomConfig(path="owner/name"), "train", SIDE)


def test_file_spans_read_local_paths_and_urls(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"0123456789")
    assert FileSpan(str(tmp_path / "a.bin"), 2, 3).read() == b"234"
    assert FileSpan((tmp_path / "a.bin").as_uri()).read() == b"0123456789"


@pytest.mark.parametrize("layout", [with_parquet, with_tars, with_jsonl, with_hub_layout])
@STREAM
def test_reading_writes_no_files(
    layout: Layout, stream: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = layout(tmp_path)
    before = {f: f.stat().st_mtime_ns for f in path.rglob("*")}
    capfd.readouterr()
    ignored(CustomConfig(path=str(path), stream=stream))
    assert {f: f.stat().st_mtime_ns for f in path.rglob("*")} == before
    assert capfd.readouterr() == ("", "")  # no progress bars either


# What is chosen


def test_random_choices_depend_on_the_seed_alone(tmp_path: Path) -> None:
    data = CustomDataset(CustomConfig(path=str(with_texts(tmp_path)), crop="random", crop_share=0.3), "train", SIDE)
    index = next(i for i in range(len(data)) if len(data.rows.captions(int(data.members[i]))) == 2)
    assert {data.pair(index, 5).caption for _ in range(3)} == {data.pair(index, 5).caption}
    assert len({data.pair(index, seed).caption for seed in range(20)}) == 2


def test_validation_pairs_are_not_random(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_gradient())
    (tmp_path / "a.txt").write_text("first\nsecond\n")
    path = str(tmp_path)
    for stream in (False, True):
        config = CustomConfig(path=path, validation_path=path, stream=stream, crop="random", crop_share=0.3)
        held = open_data(config, "validation", SIDE)
        centered = CustomDataset(CustomConfig(path=path, validation_path=path), "train", SIDE).pair(0, 0)
        for seed in range(5):
            assert held.pair(0, seed).caption == "first"
            assert np.array_equal(held.pair(0, seed).image, centered.image)
        train_images = {open_data(config, "train", SIDE).pair(0, seed).image.tobytes() for seed in range(5)}
        assert len(train_images) == (1 if stream else 5)


def _gradient() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.mgrid[:60, :90][1].astype(np.uint8)).save(file, "png")
    return file.getvalue()


def test_table_columns_are_chosen_by_name(tmp_path: Path) -> None:
    table = {"a": ["one"], "text": ["two"], "photo": [image(3)], "image": [image(4)], "id": ["x"]}
    parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    path = str(tmp_path / "t.parquet")
    pair = CustomDataset(CustomConfig(path=path), "train", SIDE).pair(0, 0)
    assert (pair.caption, number_of(pair.image)) == ("two", 4)
    data = CustomDataset(CustomConfig(path=path, caption="a", image="photo", key="id"), "train", SIDE)
    assert (data.pair(0, 0).caption, number_of(data.pair(0, 0).image), data.rows.keys) == ("one", 3, ["x"])


def test_tar_members_are_chosen_by_name(tmp_path: Path) -> None:
    config = CustomConfig(path=str(with_json_tars(tmp_path)), caption="json.title", validation_share=0)
    assert ignored(config) == {number: {f"title {number}"} for number in range(COUNT)}


def test_validation_path_is_a_split_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    for stream in (False, True):
        config = CustomConfig(
            path=str(with_jsonl(tmp_path / "one") if not stream else tmp_path / "one"),
            validation_path=str(with_tars(tmp_path / "two") if not stream else tmp_path / "two"),
            stream=stream,
        )
        assert len(ignored(config)) == COUNT
        assert len(open_data(config, "validation", SIDE)) == COUNT


def test_validation_share_is_approximate_and_grows_monotonically() -> None:
    keys = [f"images/{number}.jpg" for number in range(4000)]
    apart = {key for key in keys if in_validation_split(key, 0.1)}
    assert 320 < len(apart) < 480
    assert apart <= {key for key in keys if in_validation_split(key, 0.2)}  # a larger share only adds
    assert not any(in_validation_split(key, 0.0) for key in keys)


@STREAM
def test_fewer_images_than_a_batch_train_and_validate(
    stream: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Fewer than a batch, and none that the hash holds out."""
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(image(number))
        (tmp_path / f"{number}.txt").write_text(f"number {number}")
    config = CustomConfig(path=str(tmp_path), stream=stream)
    assert len(next(batches(open_training(config, SIDE), batch_size=32, seed=0)).captions) == 32
    held = open_data(config, "validation", SIDE)
    assert len(held) == 3
    assert "no record is held out" in caplog.text
    assert [len(batch.captions) for batch in evaluation_batches(held, 32)] == [3]


def test_data_set_held_out_entirely_still_trains(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image(1))
    (tmp_path / "a.txt").write_text("one")
    config = CustomConfig(path=str(tmp_path), validation_share=0.9999999)
    assert len(CustomDataset(config, "train", SIDE)) == len(CustomDataset(config, "validation", SIDE)) == 1


def test_stream_validation_is_bounded(tmp_path: Path) -> None:
    config = CustomConfig(path=str(with_tars(tmp_path)), stream=True, stream_validation=4, validation_share=0.5)
    assert len(StreamValidation(config, "validation", SIDE)) == 4
    numbers = {number_of(StreamValidation(config, "train", SIDE).pair(i, 0).image) for i in range(4)}
    assert numbers <= set(ignored(config))


def test_stream_validation_comes_from_all_shards(tmp_path: Path) -> None:
    config = CustomConfig(path=str(with_tars(tmp_path)), stream=True, stream_validation=6, validation_share=0.5)
    held = [
        r.key for shard in source_of_split(config, "train").shards() for r in shard.records() if config.holds_out(r.key)
    ]
    kept = [record.key for record in StreamValidation(config, "validation", SIDE)._records()]
    first = [[key for key in held if key.startswith(f"shard-{n:03}")] for n in range(3)]
    assert kept == [key for turn in itertools.zip_longest(*first) for key in turn if key is not None][:6]
    assert {key.partition("/")[0] for key in kept} == {f"shard-{n:03}.tar" for n in range(3)}


def test_few_shards_of_a_stream_are_open_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "_OPEN_SHARDS", 2)
    shards = [Shard(name, lambda n=name: (Record(f"{n}{i}") for i in range(3))) for name in "abcd"]
    found = [record.key for record in stream_module._round_robin(shards, lambda record: record.key != "d1")]
    assert found == ["a0", "d0", "a1", "d2", "a2", "b0", "c0", "b1", "c1", "b2", "c2"]


# What is broken


def spoil(root: Path) -> dict[str, str]:
    """Records that cannot be used, and why."""
    (root / "text.jpg").write_text("not an image")
    (root / "text.txt").write_text("a caption")
    (root / "cut.png").write_bytes(image(200)[:-30])
    (root / "cut.txt").write_text("a caption")
    (root / "empty.png").write_bytes(image(201))
    (root / "empty.txt").write_text(" \n")
    (root / "alone.png").write_bytes(image(202))
    (root / "latin.png").write_bytes(image(203))
    (root / "latin.txt").write_bytes("é".encode("latin-1"))
    return {
        "text.jpg": "the file is text, not an image: 'not an image'",
        "cut.png": "the image cannot be decoded",
        "empty.png": "its caption is empty",
        "alone.png": "there is no caption: expected it in alone.txt",
        "latin.png": "latin.txt cannot be read",
    }


@STREAM
def test_broken_records_are_replaced_and_named(stream: bool, tmp_path: Path) -> None:
    path = with_texts(tmp_path)
    reasons = spoil(path)
    data = open_training(CustomConfig(path=str(path), stream=stream, validation_share=0), SIDE)
    named = {}
    for batch in itertools.islice(batches(data, batch_size=13, seed=0), 10):
        assert len(batch.captions) == 13
        assert all(number < COUNT for number in batch.images[:, 0, 0, 0].tolist())
        named |= dict(name.split(": ", 1) for name in batch.bad)
    assert set(named) == set(reasons)
    assert all(named[key].startswith(reason) and "\n" not in named[key] for key, reason in reasons.items())


def test_broken_table_rows_are_skipped_and_named(tmp_path: Path) -> None:
    table = {"image": [image(1), None, b"", image(2)], "text": ["one", "two", "three", None]}
    parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    for stream in (False, True):
        config = CustomConfig(path=str(tmp_path), stream=stream, validation_share=0)
        batch = next(batches(open_training(config, SIDE), batch_size=64, seed=0))
        assert set(batch.captions) == {"one"}
        assert set(batch.bad) == {
            "t.parquet/1: there is no image",
            "t.parquet/2: the file is empty",
            "t.parquet/3: its caption is empty",
        }


def test_table_of_urls_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"image": ["https://x/y.jpg"], "text": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(BadRecord, match=r"t.parquet/0: expected an image's bytes, got str 'https://x/y.jpg'"):
        CustomDataset(CustomConfig(path=str(tmp_path)), "train", SIDE).pair(0, 0)


def test_broken_tar_members_are_skipped_and_named(tmp_path: Path) -> None:
    whole = with_tars(tmp_path) / "shard-001.tar"
    whole.write_bytes(whole.read_bytes()[:4000])
    (tmp_path / "shard-002.tar").write_bytes(b"no tar at all" * 100)
    with tarfile.open(tmp_path / "shard-003.tar", "w") as tar:
        add(tar, "alone.txt", b"a caption")
        add(tar, "bare.png", image(1))
        add(tar, "odd.json", b"{")
        add(tar, "odd.png", image(1))
    for stream in (False, True):
        config = CustomConfig(path=str(tmp_path), stream=stream, validation_share=0)
        named: set[str] = set()
        numbers: set[int] = set()
        for batch in itertools.islice(batches(open_training(config, SIDE), batch_size=20, seed=0), 10):
            named |= set(batch.bad)
            numbers |= set(batch.images[:, 0, 0, 0].tolist())
        assert set(range(SHARD)) <= numbers and max(numbers) < 2 * SHARD
        reasons = dict(name.split(": ", 1) for name in named)
        assert reasons.keys() == {
            "shard-001.tar",
            "shard-002.tar",
            "shard-003.tar/alone",
            "shard-003.tar/bare",
            "shard-003.tar/odd",
        }
        assert reasons["shard-001.tar"].startswith("the tar file is ")
        assert reasons["shard-003.tar/alone"] == "there is no image among txt"


@pytest.mark.parametrize("damage", ["header", "cut in a header", "cut between files", "cut in a file"])
def test_no_record_of_a_damaged_tar_is_lost_silently(damage: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        for i in range(20):
            add(tar, f"{i:04d}.png", image(i))
            add(tar, f"{i:04d}.txt", f"number {i}".encode())
    data = bytearray((tmp_path / "whole.tar").read_bytes())
    header = data.index(b"0010.png")
    if damage == "header":
        data[header + 100 : header + 200] = b"X" * 100
    end = {"header": None, "cut in a header": header + 100, "cut between files": header, "cut in a file": header + 530}
    (tmp_path / "cut.tar").write_bytes(data[: end[damage]])
    whole, cut = (TarSource([tmp_path / name], None, None).rows() for name in ("whole.tar", "cut.tar"))
    assert [whole.record(i).fault for i in range(len(whole))] == [None] * 20
    assert cut.keys == [*(f"cut.tar/{i:04d}" for i in range(10)), "cut.tar"]
    assert "the tar file is " in str(cut.record(10).fault)
    assert [cut.record(i).fault for i in range(10)] == [None] * 10


def test_a_link_at_the_end_of_a_tar_is_no_damage(tmp_path: Path) -> None:
    """Some programs give the size of its target to a link, though nothing of it follows."""
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        add(tar, "0.png", image(1))
        add(tar, "0.txt", b"one")
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname, link.size = tarfile.LNKTYPE, "0.png", 50_000
        tar.addfile(link)
    rows = TarSource([tmp_path / "t.tar"], None, None).rows()
    assert rows.keys == ["t.tar/0"] and rows.record(0).fault is None


@STREAM
def test_empty_tar_is_refused(stream: bool, tmp_path: Path) -> None:
    tarfile.open(tmp_path / "t.tar", "w").close()
    config = CustomConfig(path=str(tmp_path / "t.tar"), stream=stream)
    with pytest.raises(ValueError, match="^the [^\n]* holds no records to train on: check data.path$"):
        next(batches(open_training(config, SIDE), batch_size=2, seed=0))


@STREAM
def test_names_that_are_not_utf_8(stream: bool, tmp_path: Path) -> None:
    for name in (b"caf\xe9", b"ok"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name + b".png")).write_bytes(image(1))
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name + b".txt")).write_text("a cup")
    config = CustomConfig(path=str(tmp_path), stream=stream, validation_share=0)
    batch = next(batches(open_training(config, SIDE), batch_size=4, seed=0))
    assert batch.captions == ["a cup"] * 4
    assert set(batch.bad) == {"caf\\udce9.png: its name is not UTF-8: rename it"}


@STREAM
def test_names_in_tars_that_are_not_utf_8(stream: bool, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in (b"ok", b"caf\xe9"):
            add(tar, os.fsdecode(name + b".png"), image(1))
            add(tar, os.fsdecode(name + b".txt"), b"a cup")
        add(tar, os.fsdecode(b"alone.\xe9.txt"), b"a cup")
        last = tar.offset
    (tmp_path / "t.tar").write_bytes((tmp_path / "t.tar").read_bytes()[:last])  # so that what tells of damage names it
    config = CustomConfig(path=str(tmp_path), stream=stream, validation_share=0)
    batch = next(batches(open_training(config, SIDE), batch_size=8, seed=0))
    assert batch.captions == ["a cup"] * 8
    assert set(batch.bad) == {
        "t.tar/caf\\udce9: its name is not UTF-8: rename it",
        "t.tar/alone: there is no image among \\udce9.txt",
        "t.tar: the tar file is truncated or damaged after record 'alone'",
    }


@STREAM
def test_folder_names_that_are_not_utf_8_work(stream: bool, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    (folder / "a.png").write_bytes(image(1))
    for name, text in (("a.txt", "a cup"), ("metadata.csv", "file_name,text\na.png,a cup\n")):
        (folder / name).write_text(text)
        config = CustomConfig(path=str(folder), stream=stream, validation_share=0)
        with pytest.raises(ValueError, match="a.png: the name of its folder is not UTF-8"):
            next(batches(open_training(config, SIDE), batch_size=2, seed=0))


@STREAM
@pytest.mark.parametrize("kind", ["jsonl", "tar"])
def test_captions_cut_within_a_character_are_broken_records(kind: str, stream: bool, tmp_path: Path) -> None:
    """What is left where a program that counts in UTF-16 cuts a text within an emoji."""
    texts = {"a": "a cup \ud83d", "b": "a heart"}
    if kind == "tar":
        with tarfile.open(tmp_path / "t.tar", "w") as tar:
            for name, text in texts.items():
                add(tar, f"{name}.png", image(1))
                add(tar, f"{name}.json", json.dumps({"text": text}).encode())
    else:
        for name in texts:
            (tmp_path / f"{name}.png").write_bytes(image(1))
        rows = [json.dumps({"file_name": f"{name}.png", "text": text}) for name, text in texts.items()]
        (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    config = CustomConfig(path=str(tmp_path), stream=stream, validation_share=0)
    batch = next(batches(open_training(config, SIDE), batch_size=4, seed=0))
    assert batch.captions == ["a heart"] * 4
    name = "t.tar/a" if kind == "tar" else "a.png"
    assert set(batch.bad) == {f"{name}: a caption is not UTF-8: it contains an unpaired surrogate"}


@STREAM
@pytest.mark.parametrize("path", ["", "t.parquet", "data/train-00000-of-00001.parquet", "t.tar"])
def test_existing_path_is_no_glob_pattern(path: str, stream: bool, tmp_path: Path) -> None:
    """As a file, and as the folder it lies in; its neighbor, which the pattern matches, is left alone."""
    for folder, text in (("a[1]", "one"), ("a1", "two")):
        file = tmp_path / folder / (path or "a.png")
        file.parent.mkdir(parents=True)
        if path.endswith(".parquet"):
            parquet.write_table(pyarrow.table({"image": [image(1)], "text": [text]}), file)
        elif path:
            with tarfile.open(file, "w") as tar:
                add(tar, "0.png", image(1))
                add(tar, "0.txt", text.encode())
        else:
            file.write_bytes(image(1))
            file.with_suffix(".txt").write_text(text)
    for root in {tmp_path / "a[1]", tmp_path / "a[1]" / path}:
        config = CustomConfig(path=str(root), stream=stream, validation_share=0)
        assert set(next(batches(open_training(config, SIDE), batch_size=4, seed=0)).captions) == {"one"}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a.png,a red heart", "a red heart"),
        ('a.png,"a heart, red"', "a heart, red"),
        ('a.png,"a ""red"" heart"', 'a "red" heart'),
        ('a.png,a 5" heart', 'a 5" heart'),
        ('a.png,a "red" heart', 'a "red" heart'),
        ('a.png,"a\nheart"', "a heart"),
        ('a.png,""', None),
        ("a.png,", None),
        ('"a.png","a heart"', "a heart"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv_with_any_quoting_and_line_ends_is_read(
    text: str, expected: str | None, end: str, mark: str, tmp_path: Path
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(image(1))
    whole = mark + "\n".join(["file_name,text", text, "", "b.png,last", ""])
    (tmp_path / "metadata.csv").write_bytes(whole.replace("\n", end).encode())
    rows = CustomDataset(CustomConfig(path=str(tmp_path), validation_share=0), "train", SIDE).rows
    assert rows.captions(0) == (() if expected is None else (expected,))
    assert rows.captions(1) == ("last",)


def test_vanished_image_is_a_bad_record(tmp_path: Path) -> None:
    data = CustomDataset(CustomConfig(path=str(with_jsonl(tmp_path)), validation_share=0), "train", SIDE)
    (tmp_path / "0.png").unlink()
    with pytest.raises(BadRecord, match=r"0.png: its file cannot be read"):
        data.pair(data.rows.keys.index("0.png"), 0)


@STREAM
def test_data_set_of_broken_images_is_refused(stream: bool, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("hello")
    (tmp_path / "a.txt").write_text("a caption")
    with pytest.raises(ValueError, match=r"^no usable image [^\n]*: a.jpg: the file is text, not an image: 'hello'$"):
        next(batches(open_training(CustomConfig(path=str(tmp_path), stream=stream), SIDE), batch_size=2, seed=0))


# What a user can do wrong: one line each


def mistakes(tmp_path: Path) -> dict[str, str]:
    """data.path, and what is said of it."""
    for name in ("quote", "comma", "empty", "bare", "missing", "json", "list", "columns", "nofile", "blank", "mixed"):
        (tmp_path / name).mkdir()
    (tmp_path / "bare/a.png").write_bytes(image(1))
    (tmp_path / "missing/metadata.jsonl").write_text('{"file_name": "no.png", "text": "x"}\n')
    (tmp_path / "json/metadata.jsonl").write_text('{"file_name": "a.png"}\n{oops\n')
    (tmp_path / "list/metadata.jsonl").write_text("[1]\n")
    (tmp_path / "columns/metadata.csv").write_text("file_name,title\na.png,x\n")
    (tmp_path / "nofile/metadata.csv").write_text("name,text\na.png,x\n")
    (tmp_path / "comma/metadata.csv").write_text("file_name,text\na.png,a dog\nb.png,a dog, running\n")
    (tmp_path / "quote/metadata.csv").write_text('file_name,text\na.png,"x\n' + "a.png,y\n" * 20)
    (tmp_path / "blank/metadata.csv").write_text("file_name,text\n")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "notes.txt").write_text("hello")
    parquet.write_table(pyarrow.table({"a": ["x"], "b": [1]}), tmp_path / "odd.parquet")
    parquet.write_table(pyarrow.table({"image": [b""], "text": ["x"]})[:0], tmp_path / "none.parquet")
    with tarfile.open(tmp_path / "bare.tar", "w") as tar:
        add(tar, "a.txt", b"x")
    return {
        "nowhere": "no such file or folder",
        "nowhere/at/all": "no such file or folder",
        "none-*.tar": "no file matches data.path",
        "empty": "holds no images: expected .jpg",
        "bare": "holds images but no captions: expected metadata.jsonl, metadata.csv or NAME.txt beside NAME.png",
        "missing": "line 1: there is no image",
        "json": "line 2 is not JSON",
        "list": "line 1: expected {",
        "columns": "captions (caption, captions, text, texts, txt): there are title; set data.caption",
        "nofile": "has no column 'file_name': there are name, text",
        "comma": "line 3 has more fields than the header: put a caption that contains a comma in quotes",
        "quote": "line 2: unexpected end of data; is a quote left open?",
        "blank": "is empty: expected a row for each image",
        "cut.parquet": "is not a complete Parquet file",
        "notes.txt": "expected a folder, or files that end in .parquet or .tar",
        "odd.parquet": "img, image): there are a, b; set data.image",
        "none.parquet": "there are no rows in it",
        "bare.tar": "holds no images among its first 100 records",
    }


@STREAM
def test_wrong_layouts_give_a_one_line_error(stream: bool, tmp_path: Path) -> None:
    for name, expected in mistakes(tmp_path).items():
        for split in ("train", "validation"):
            with pytest.raises(ValueError) as caught:
                config = CustomConfig(path=str(tmp_path / name), stream=stream)
                data = open_training(config, SIDE) if split == "train" else open_data(config, split, SIDE)
                next(evaluation_batches(data, 2)) if split == "validation" else None
            assert expected in str(caught.value), name
            assert "\n" not in str(caught.value) and name.split("/")[0] in str(caught.value)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"caption": "no"}, "has no column 'no': there are id, image, captions; set data.caption to one of them"),
        ({"image": "no"}, "has no column 'no': there are id, image, captions; set data.image to one of them"),
        ({"key": "no"}, "has no column 'no': there are id, image, captions; set data.key to one"),
        ({"split": "no"}, "has no split 'no': there are train; set data.split to one"),
    ],
)
@STREAM
def test_missing_columns_and_splits_are_named(options: dict, expected: str, stream: bool, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        open_training(CustomConfig(path=str(with_parquet(tmp_path)), stream=stream, **options), SIDE)
    assert expected in str(caught.value)


@pytest.mark.parametrize("options", [{"caption": "no"}, {"image": "no"}, {"caption": "json.no"}])
def test_missing_tar_members_are_named(options: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are json, json.caption, json.title, png|there are png, json"):
        open_training(CustomConfig(path=str(with_json_tars(tmp_path)), **options), SIDE)


def test_unknown_split_is_refused(tmp_path: Path) -> None:
    for stream in (False, True):
        with pytest.raises(ValueError, match="unknown data split 'test': choose from train, validation"):
            open_data(CustomConfig(path=str(with_tars(tmp_path)), stream=stream), "test", SIDE)


@pytest.mark.parametrize(
    "options",
    [{"validation_share": 1.0}, {"crop_share": 0.0}, {"shuffle_buffer": 0}, {"stream_validation": 0}, {"path": " "}],
)
def test_options_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        CustomConfig(**{"path": "x"} | options)


def test_images_missing_from_metadata_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (with_jsonl(tmp_path) / "extra.png").write_bytes(image(1))
    with caplog.at_level(logging.WARNING):
        assert len(CustomDataset(CustomConfig(path=str(tmp_path), validation_share=0), "train", SIDE)) == COUNT
    assert "not used: 1 image not listed in a metadata file" in caplog.text


# The whole way


ROOT = Path(__file__).parents[3]


def test_recipes_fit_the_tokenizers_that_ship() -> None:
    dalle = read_yaml(ROOT / "configs/folder/dalle.yaml")
    emoji = read_yaml(ROOT / "configs/emoji/dalle.yaml")
    bpe, vqgan = (read_yaml(ROOT / dalle[part] / "config.yaml") for part in ("text_tokenizer", "image_tokenizer"))
    assert dalle["model"]["text_vocab"] == bpe["model"]["vocab_size"]
    assert dalle["model"]["image_vocab"] == vqgan["model"]["quantizer"]["codebook_size"]
    for key in ("text_length", "grid"):
        assert dalle["model"][key] == emoji["model"][key]
    ours = read_yaml(ROOT / "configs/folder/vqgan.yaml")
    assert from_dict(ImageTokenizerConfig, ours["model"], "") == from_dict(ImageTokenizerConfig, vqgan["model"], "")


@pytest.mark.slow
@pytest.mark.skipif(
    not (ROOT / "tokenizers/emoji-vqgan/model.safetensors").exists(), reason="the tokenizer's weights are not here"
)
def test_training_runs_on_fewer_images_than_a_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The README's command with five images, one of them broken."""
    mine = tmp_path / "my_images"
    mine.mkdir()
    for number in range(4):
        Image.new("RGB", (100, 80), (60 * number, 20, 90)).save(mine / f"{number}.jpg")
        (mine / f"{number}.txt").write_text(f"color {number}")
    (mine / "bad.jpg").write_text("hello")
    (mine / "bad.txt").write_text("hello")
    os.chdir(ROOT)
    small = ["model.transformer.width=64", "model.transformer.depth=1", "model.transformer.heads=2", "run.tracker=none"]
    where = [f"data.path={mine}/", f"run.dir={tmp_path / 'run'}", "run.device=cpu", "run.precision=fp32"]
    assert train.main(["configs/folder/dalle.yaml", *where, *small, "run.steps=2"]) == 0
    told = capsys.readouterr()
    assert "broken records skipped: 1 (bad.jpg: the file is text" in told.out
    assert "Traceback" not in told.err
