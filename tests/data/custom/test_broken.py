"""Broken records of the user's images are skipped and named, damaged archives lose nothing in silence."""

from __future__ import annotations

import itertools
import json
import os
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest

from dalle.data import open_training
from dalle.data.base import BadRecord
from dalle.data.custom.config import CustomConfig
from dalle.data.custom.dataset import CustomDataset
from dalle.data.custom.webdataset import TarSource
from dalle.data.loader import batches
from support.custom_layouts import (
    COUNT,
    SHARD,
    SIDE,
    STREAM,
    add,
    image,
    with_jsonl,
    with_tars,
    with_texts,
)


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
    with pytest.raises(
        BadRecord, match=r"t.parquet/0: its image is an address, 'https://x/y.jpg': download the images first"
    ):
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
    with pytest.raises(ValueError, match=r"t.tar: no images: expected 000.jpg, 000.txt, ... in the tar$"):
        open_training(config, SIDE)
    with tarfile.open(tmp_path / "t.tar", "w") as tar:  # an archive within, and a text without an extension
        add(tar, "in.tar", b"x")
        add(tar, "README", b"x")
    with pytest.raises(ValueError, match=r"t.tar: no images: .* in the tar; found 1 .tar, 1 file without an ext"):
        open_training(config, SIDE)


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
