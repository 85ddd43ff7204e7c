"""The user's own images in every layout, by number and streamed: splits, order, choices, names of columns."""

from __future__ import annotations

import io
import itertools
import logging
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

import train
from dalle.checkpoints.load import load_image_tokenizer
from dalle.config import from_dict, read_yaml
from dalle.data import open_data, open_training
from dalle.data.custom.config import CustomConfig
from dalle.data.custom.dataset import CustomDataset
from dalle.data.custom.open_source import expand_braces
from dalle.data.custom.parquet import hub_source
from dalle.data.custom.records import FileSpan, in_validation_split
from dalle.data.loader import batches, evaluation_batches
from dalle.image_tokenizers import ImageTokenizerConfig
from dalle.training.init_config import resolve_recipe
from dalle.training.recipe import DALLERecipe
from support.custom_layouts import (
    COUNT,
    EVERY,
    SHARD,
    SIDE,
    STREAM,
    Layout,
    add,
    captions,
    epoch_of,
    image,
    number_of,
    with_hub_layout,
    with_json_tars,
    with_jsonl,
    with_parquet,
    with_tars,
    with_texts,
)


@EVERY
@STREAM
def test_every_image_and_caption_of_every_layout_is_read(layout: Layout, stream: bool, tmp_path: Path) -> None:
    config = CustomConfig(path=str(layout(tmp_path)), stream=stream, validation_share=0)
    assert epoch_of(config) == {number: set(captions(number)) for number in range(COUNT)}


@EVERY
def test_streamed_and_indexed_splits_are_equal(layout: Layout, tmp_path: Path) -> None:
    path = str(layout(tmp_path))
    shown = {}
    for stream in (False, True):
        config = CustomConfig(path=path, stream=stream, validation_share=0.2, shuffle_buffer=8)
        held = open_data(config, "validation", SIDE)
        validation = [number_of(held.pair(i, 0).image) for i in range(len(held))]
        shown[stream] = sorted(epoch_of(config)), sorted(validation)
    assert shown[False] == shown[True]
    trained, validated = shown[True]
    assert sorted(trained + validated) == list(range(COUNT)) and 1 <= len(validated) <= 12


@EVERY
@STREAM
def test_captions_come_from_the_training_split(layout: Layout, stream: bool, tmp_path: Path) -> None:
    config = CustomConfig(path=str(layout(tmp_path)), stream=stream, validation_share=0.2)
    expected = Counter(caption for number in epoch_of(config) for caption in captions(number))
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


@pytest.mark.parametrize(
    "layout, stream",
    [
        *((with_tars, False), (with_parquet, True)),
        # Workers are started for each, and other layouts are read by the same loader
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((with_texts, False), (with_parquet, False))),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((with_texts, True), (with_tars, True))),
    ],
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_order_does_not_depend_on_processes_or_workers(layout: Layout, stream: bool, tmp_path: Path) -> None:
    data = open_training(CustomConfig(path=str(layout(tmp_path)), stream=stream, shuffle_buffer=16), SIDE)
    whole = batches(data, batch_size=6, seed=4)
    ranks = [batches(data, batch_size=6, seed=4, rank=rank, world=2, workers=2 * rank) for rank in range(2)]
    for _ in range(4):
        assert next(whole).captions == [caption for rank in ranks for caption in next(rank).captions]


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
    assert set(epoch_of(config)) == set(range(COUNT))
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


def test_unwritable_cache_is_named_and_not_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are copied into the user's cache, which may be on a full or read-only disk."""
    path = with_parquet(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    cache = tmp_path / "file" / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    with pytest.raises(ValueError, match=r"the cache .*/file/cache cannot be written \(Not a directory\): set HF_HOME"):
        CustomDataset(CustomConfig(path=str(path)), "train", SIDE)


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
    epoch_of(CustomConfig(path=str(path), stream=stream))
    assert {f: f.stat().st_mtime_ns for f in path.rglob("*")} == before
    assert capfd.readouterr() == ("", "")  # no progress bars either


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
    assert epoch_of(config) == {number: {f"title {number}"} for number in range(COUNT)}


def test_validation_path_is_a_split_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    for stream in (False, True):
        config = CustomConfig(
            path=str(with_jsonl(tmp_path / "one") if not stream else tmp_path / "one"),
            validation_path=str(with_tars(tmp_path / "two") if not stream else tmp_path / "two"),
            stream=stream,
        )
        assert len(epoch_of(config)) == COUNT
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


def test_data_set_held_out_entirely_still_trains(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.png").write_bytes(image(1))
    (tmp_path / "a.txt").write_text("one")
    config = CustomConfig(path=str(tmp_path), validation_share=0.9999999)
    assert len(CustomDataset(config, "train", SIDE)) == len(CustomDataset(config, "validation", SIDE)) == 1
    assert "every record is held out (data.validation_share=1), so validation uses training images" in caplog.text


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


def test_images_missing_from_metadata_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (with_jsonl(tmp_path) / "extra.png").write_bytes(image(1))
    with caplog.at_level(logging.WARNING):
        assert len(CustomDataset(CustomConfig(path=str(tmp_path), validation_share=0), "train", SIDE)) == COUNT
    assert "not used: 1 image not listed in a metadata file" in caplog.text


ROOT = Path(__file__).parents[3]


def test_recipes_fit_the_tokenizers_that_ship() -> None:
    dalle, emoji = (resolve_recipe(ROOT / f"configs/{name}/dalle.yaml") for name in ("folder", "emoji"))
    assert isinstance(dalle, DALLERecipe) and isinstance(emoji, DALLERecipe)
    bpe, vqgan = (read_yaml(ROOT / part / "config.yaml") for part in (dalle.text_tokenizer, dalle.image_tokenizer))
    assert dalle.model.text_vocab == bpe["model"]["vocab_size"]
    assert dalle.model.text_length == emoji.model.text_length
    for recipe in (dalle, emoji):
        tokenizer = load_image_tokenizer(ROOT / recipe.image_tokenizer)
        assert (recipe.model.grid, recipe.model.image_vocab) == (tokenizer.grid, tokenizer.codebook_size)
    ours = read_yaml(ROOT / "configs/folder/vqgan.yaml")
    assert from_dict(ImageTokenizerConfig, ours["model"], "") == from_dict(ImageTokenizerConfig, vqgan["model"], "")


@pytest.mark.slow
@pytest.mark.skipif(
    not (ROOT / "tokenizers/emoji-vqgan/model.safetensors").exists(), reason="the tokenizer's weights are not here"
)
def test_training_runs_on_fewer_images_than_a_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README's command with five images, one of them broken."""
    mine = tmp_path / "my_images"
    mine.mkdir()
    for number in range(4):
        Image.new("RGB", (100, 80), (60 * number, 20, 90)).save(mine / f"{number}.jpg")
        (mine / f"{number}.txt").write_text(f"color {number}")
    (mine / "bad.jpg").write_text("hello")
    (mine / "bad.txt").write_text("hello")
    monkeypatch.chdir(ROOT)
    small = ["model.transformer.width=64", "model.transformer.depth=1", "model.transformer.heads=2", "run.tracker=none"]
    where = [f"data.path={mine}/", f"run.dir={tmp_path / 'run'}", "run.device=cpu", "run.precision=fp32"]
    assert train.main(["configs/folder/dalle.yaml", *where, *small, "run.steps=2"]) == 0
    told = capsys.readouterr()
    assert "broken records skipped: 1 (bad.jpg: the file is text" in told.out
    assert "Traceback" not in told.err
