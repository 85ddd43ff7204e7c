"""Folders as people have them: what tools write, names of all kinds, splits, links; and what is not used is told."""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet as parquet
import pytest

from dalle.apps.search.sources import Item, items_of
from dalle.apps.search.store import Source
from dalle.data.custom.columns import clean_captions
from dalle.data.custom.config import CustomConfig
from dalle.data.custom.dataset import CustomDataset
from dalle.data.custom.folder import image_files
from dalle.data.custom.stream import CustomStream
from dalle.data.custom.walk import describe_ignored, normalized_name, walk
from support.image_folders import image, put

NFC, NFD = "café", unicodedata.normalize("NFD", "café")


def tar(file: Path, **members: str | bytes) -> None:
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def table(file: Path, rows: int = 3, **columns: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table({name: [value] * rows for name, value in columns.items()}), file)


def captions(path: Path, **options: Any) -> list[str]:
    """Every caption that training takes, of both splits together, by number; streamed they are the same."""
    config = CustomConfig(path=str(path), validation_share=0, **options)
    data = CustomDataset(config, "train", 8)
    found = [caption for row in range(len(data)) for caption in data.pair(row, 0).captions]
    stream = CustomStream(CustomConfig(path=str(path), validation_share=0, stream=True, **options), 8)
    assert sorted(c for record in stream.records(0, 0) for c in record.captions) == sorted(found)
    return sorted(found)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().partition(": not used: ")[2] for record in caplog.records]


# ---- what tools write


def img2dataset(root: Path) -> None:
    root.mkdir(exist_ok=True)
    for shard in ("00000", "00001"):
        table(root / f"{shard}.parquet", url="https://x/y.jpg", caption="c", key="k", status="success")
        (root / f"{shard}_stats.json").write_text("{}")


def test_img2dataset_shards_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    img2dataset(tmp_path)
    for shard in ("00000", "00001"):
        members = {
            f"{shard}{i}.{kind}": text
            for i in "012"
            for kind, text in (
                ("jpg", image("jpeg")),
                ("txt", f"{shard} {i}"),
                ("json", '{"caption": "no", "status": "success"}'),
            )
        }
        tar(tmp_path / f"{shard}.tar", **members)
    assert captions(tmp_path) == [f"{shard} {i}" for shard in ("00000", "00001") for i in "012"]
    assert told(caplog) == ["2 tables without images (.parquet)"]


def test_img2dataset_files_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    img2dataset(tmp_path)
    for i in "012":
        put(tmp_path, **{f"00000__{i}_png": None, f"00000__{i}_txt": f"c {i}", f"00000__{i}_json": '{"caption": "no"}'})
    assert captions(tmp_path) == ["c 0", "c 1", "c 2"]
    assert told(caplog) == ["2 tables beside images (.parquet)"]


def test_kohya_folders_are_read(tmp_path: Path) -> None:
    put(
        tmp_path, **{"10=dog__a_png": None, "10=dog__a_caption": "sks dog", "5=cat__b_png": None, "5=cat__b_txt": "cat"}
    )
    assert captions(tmp_path) == ["cat", "sks dog"]


def test_json_captions_beside_images_are_read(tmp_path: Path) -> None:
    put(tmp_path, a_png=None, a_json='{"caption": ["one", "two"], "title": "t"}')
    assert captions(tmp_path) == ["one", "two"]
    assert captions(tmp_path, caption="json.title") == ["t"]
    with pytest.raises(ValueError, match="no captions: expected metadata.jsonl, metadata.csv or NAME.title beside"):
        captions(tmp_path, caption="title")


def test_folders_saved_by_datasets_are_read(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": image(), "path": None}] * 2, "text": ["one", "two"]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    saved = datasets.Dataset.from_dict(rows, features=features)
    saved.save_to_disk(tmp_path / "alone")
    datasets.DatasetDict(train=saved, test=saved.select([1])).save_to_disk(tmp_path / "splits")
    assert captions(tmp_path / "alone") == captions(tmp_path / "splits") == ["one", "two"]
    assert captions(tmp_path / "splits", split="test") == ["two"]
    for name, there in (("alone", "train"), ("splits", "train, test")):
        with pytest.raises(ValueError, match=f"has no split 'dev': there are {there}; set data.split"):
            captions(tmp_path / name, split="dev")


def test_parquet_metadata_is_read(tmp_path: Path) -> None:
    put(tmp_path, a_png=None)
    parquet.write_table(pyarrow.table({"file_name": ["a.png"], "text": ["one"]}), tmp_path / "metadata.parquet")
    assert captions(tmp_path) == ["one"]


# ---- splits


def split_folders(root: Path) -> Path:
    for split, count in (("train", 6), ("test", 4), ("validation", 3)):
        names = [f"{i}.png" for i in range(count)]
        rows = "\n".join(json.dumps({"file_name": name, "text": f"{split} {name}"}) for name in names)
        put(
            root, **{f"{split}__{name.replace('.', '_')}": None for name in names}, **{f"{split}__metadata_jsonl": rows}
        )
    return root


def test_split_folders_are_recognized(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    split_folders(tmp_path)
    assert captions(tmp_path) == [f"train {i}.png" for i in range(6)]
    assert told(caplog) == ["7 files of other splits (test, validation)"]
    assert captions(tmp_path, split="test") == [f"test {i}.png" for i in range(4)]
    for name in ("validation", "val"):
        config = CustomConfig(path=str(tmp_path), validation_split=name)
        assert len(CustomDataset(config, "train", 8)) == 6 and len(CustomDataset(config, "validation", 8)) == 3
    for option in ("split", "validation_split"):
        said = f"has no split 'nonsense': there are train, test, validation; set data.{option} to one"
        with pytest.raises(ValueError, match=said):
            CustomDataset(CustomConfig(path=str(tmp_path), **{option: "nonsense"}), "validation", 8)  # type: ignore[arg-type]


def test_class_folders_are_no_splits(tmp_path: Path) -> None:
    put(tmp_path, test__a_png=None, test__a_txt="one", other__b_png=None, other__b_txt="two")
    assert captions(tmp_path) == ["one", "two"]
    with pytest.raises(ValueError, match="has no split 'validation': expected folders train/, validation/"):
        CustomDataset(CustomConfig(path=str(tmp_path), validation_split="validation"), "validation", 8)


def test_tables_named_for_a_split_are_recognized(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train", "extra", "more"):
        table(tmp_path / f"{name}.parquet", image=image(), caption=name)
    assert captions(tmp_path) == ["extra"] * 3 + ["more"] * 3 + ["train"] * 3
    table(tmp_path / "test-00000-of-00001.parquet", image=image(), caption="t")
    assert len(captions(tmp_path)) == 9 and captions(tmp_path, split="test") == ["t"] * 3
    assert "1 file of other splits (test)" in told(caplog)
    with pytest.raises(ValueError, match="has no split 'validation': there are train, test; set data.split to one"):
        captions(tmp_path, split="validation")


def test_options_that_a_layout_cannot_honor_are_refused(tmp_path: Path) -> None:
    put(tmp_path, a_png=None, a_txt="one")
    tar(tmp_path / "shard.tar", **{"0.png": image(), "0.txt": "one"})
    for path, options, message in (
        ("", {"image": "photo"}, "data.image=photo is for Parquet and tar files"),
        ("", {"key": "id"}, "data.key=id is for Parquet and tar files"),
        ("", {"split": "test"}, "has no split 'test'"),
        ("shard.tar", {"key": "id"}, "data.key=id is for Parquet files"),
        ("shard.tar", {"split": "test"}, "has no split 'test': named files are all of split train"),
    ):
        with pytest.raises(ValueError, match=message):
            captions(tmp_path / path, **options)


# ---- what lies beside


def test_archive_beside_images_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in "012":
        put(tmp_path, **{f"{i}_png": None, f"{i}_txt": f"image {i}"})
    tar(tmp_path / "backup.tar", **{"notes.md": "x"})
    assert captions(tmp_path) == ["image 0", "image 1", "image 2"]
    assert told(caplog) == ["1 archive beside images (.tar)"]


def test_files_with_other_extensions_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for kind in ("jpg", "JPEG", "jfif", "jpe"):
        put(tmp_path, **{f"{kind}_{kind}": image("jpeg"), f"{kind}_txt": kind})
    put(tmp_path, a_heic="x", b_heic="x", c_heic="x", a_svg="x", b_svg="x", a_txt="x", e_zip="x")
    assert captions(tmp_path) == ["JPEG", "jfif", "jpe", "jpg"]
    assert told(caplog) == [
        "3 .heic (convert them, as by pillow-heif), 2 .svg (render them at some size, as by cairosvg), "
        "1 .zip (unpack them)"
    ]
    for read in (lambda: list(items_of(Source(str(tmp_path)))), lambda: image_files(tmp_path)):
        caplog.clear()
        assert len(read()) == 4
        assert told(caplog)[0].startswith("3 .heic (convert them, as by pillow-heif), 2 .svg")


def test_images_without_captions_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, a_png=None, a_txt="one", b_png=None, c_txt="of nothing")
    data = CustomDataset(CustomConfig(path=str(tmp_path), validation_share=0), "train", 8)
    assert [data.rows.record(row).fault for row in range(2)] == [
        None, "there is no caption: expected it in b.txt or b.caption or b.json"]  # fmt: skip
    assert told(caplog) == ["1 image without a caption, 1 text without an image"]


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links here")
def test_links_are_followed_and_loops_are_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(
        tmp_path / "elsewhere",
        **{f"b{i}_{kind}": text for i in range(5) for kind, text in (("png", None), ("txt", f"b{i}"))},
    )
    root = put(
        tmp_path / "root",
        **{f"a{i}_{kind}": text for i in range(3) for kind, text in (("png", None), ("txt", f"a{i}"))},
    )
    (root / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "again").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "loop").symlink_to(root, target_is_directory=True)
    (root / "gone").symlink_to(tmp_path / "nowhere")
    assert captions(root) == ["a0", "a1", "a2", "b0", "b1", "b2", "b3", "b4"]
    assert told(caplog) == ["2 links to folders already read, 1 link without a target"]
    assert len([item for item in items_of(Source(str(root))) if isinstance(item, Item)]) == 8
    assert len(image_files(root)) == 8


def test_folders_of_runs_are_no_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(
        tmp_path,
        a_png=None,
        a_txt="one",
        run__config_yaml="stage: dalle",
        run__metrics_jsonl="",
        run__samples__1_png=None,
    )
    assert captions(tmp_path) == ["one"]
    assert told(caplog) == ["1 folder of training runs"]
    assert [path.name for path in walk(tmp_path).files] == ["a.png", "a.txt"]
    assert len(walk(tmp_path / "run").files) == 3, "a run that is asked for is looked at"


# ---- names


def test_uppercase_extensions_are_read(tmp_path: Path) -> None:
    for i in range(4):
        put(tmp_path, **{f"IMG={i}_JPG": image("jpeg"), f"IMG={i}_TXT": f"image {i}"})
    assert captions(tmp_path) == [f"image {i}" for i in range(4)]
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "IMG=0.jpg", "text": "one"}\n')
    assert captions(tmp_path) == ["one"]


@pytest.mark.parametrize("images, texts", [(NFD, NFC), (NFC, NFD)])
def test_unicode_normalization_of_names_does_not_matter(images: str, texts: str, tmp_path: Path) -> None:
    (tmp_path / f"{images}.png").write_bytes(image())
    (tmp_path / f"{texts}.txt").write_text("beside")
    assert captions(tmp_path) == ["beside"]
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": f"{texts}.png", "text": "listed"}))
    assert captions(tmp_path) == ["listed"]
    tar(tmp_path / "s.tar", **{f"{images}.png": image(), f"{texts}.txt": "in a tar"})
    assert captions(tmp_path / "s.tar") == ["in a tar"]


def test_backslash_paths_are_read(tmp_path: Path) -> None:
    put(tmp_path, pics__0_png=None)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "pics\\\\0.png", "text": "thing"}\n')
    assert captions(tmp_path) == ["thing"]


def test_normalized_name_lowers_the_extension_and_composes_unicode() -> None:
    assert normalized_name("a.b/C.JPG") == "a.b/C.jpg" and normalized_name(f"{NFD}.PNG") == f"{NFC}.png"
    assert normalized_name("A.B/c") == "A.B/c" and normalized_name("x") == "x"


def test_dots_within_tar_member_names_are_kept(tmp_path: Path) -> None:
    members = {
        f"photo 1.{i}.{kind}": text for i in range(6) for kind, text in (("png", image()), ("txt", f"photo {i}"))
    }
    tar(tmp_path / "a.tar", **members)
    assert captions(tmp_path / "a.tar") == [f"photo {i}" for i in range(6)]
    views = {"0.left.png": image(), "0.right.png": image(), "0.title.txt": "two views"}
    tar(tmp_path / "b.tar", **views)
    (record,) = CustomStream(CustomConfig(path=str(tmp_path / "b.tar"), stream=True, validation_share=0), 8).records(
        0, 0
    )
    assert record.fault is not None and "left.png, right.png are images of one record" in record.fault
    assert captions(tmp_path / "b.tar", image="left.png", caption="title.txt") == ["two views"]
    tar(
        tmp_path / "c.tar",
        **{"0.seg.png": image(), "0.png": image(), "0.txt": "one", "1.a.png": image(), "1.a.txt": "2"},
    )
    assert captions(tmp_path / "c.tar") == ["2", "one"], "the plain name is the image"


# ---- captions


def test_huge_captions_are_truncated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, a_png=None, a_txt="rose " * 2_000_000, b_png=None, b_txt="x" * 20_000)
    long, solid = captions(tmp_path)
    assert long == ("rose " * 2000).strip() and solid == "x" * 10_000
    assert "a caption of 9,999,999 characters is cut to 10,000: 'rose rose" in caplog.text
    assert len(caplog.text) < 10_000


def test_clean_captions_normalizes_lines_bytes_and_numbers() -> None:
    assert clean_captions("\ufeffone\u2028two\x0bthree\u00a0 four ", lines=True) == ("one two three four",)
    assert clean_captions("one\r\ntwo\rthree\n\n four", lines=True) == ("one", "two", "three", "four")
    assert clean_captions("one\ntwo") == ("one two",)
    assert clean_captions(["a", 0, 1.5, None, float("nan"), True, "a", " "]) == ("a", "0", "1.5")
    assert clean_captions(b"\xef\xbb\xbfone") == clean_captions("one".encode("utf-16")) == ("one",)
    with pytest.raises(UnicodeDecodeError):
        clean_captions(b"\xff\x00\xff")


WRITERS: dict[str, Callable[[Path, Any], None]] = {
    "text": lambda root, text: put(root, a_png=None, a_txt=text) and None,
    "jsonl": lambda root, text: (
        put(root, a_png=None, metadata_jsonl=json.dumps({"file_name": "a.png", "text": text})) and None
    ),
    "csv": lambda root, text: put(root, a_png=None, metadata_csv=f'file_name,text\na.png,"{text}"') and None,
    "tar": lambda root, text: tar(root / "s.tar", **{"0.png": image(), "0.txt": text}),
    "tar of JSON": lambda root, text: tar(
        root / "s.tar", **{"0.png": image(), "0.json": json.dumps({"caption": text})}
    ),
    "table": lambda root, text: table(root / "t.parquet", 1, image=image(), caption=text),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_captions_are_cleaned_alike_in_every_layout(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path, "\ufeffa\u2028 red\u00a0heart\x0b")
    assert captions(tmp_path) == ["a red heart"]


@pytest.mark.parametrize("mark", ["\ufeff", ""])
def test_byte_order_marks_are_removed(mark: str, tmp_path: Path) -> None:
    put(tmp_path / "a", a_png=None, a_txt=f"{mark}one")
    put(tmp_path / "b", a_png=None, metadata_csv=f"{mark}file_name,text\na.png,one")
    put(tmp_path / "c", a_png=None, metadata_jsonl=f'{mark}{{"file_name": "a.png", "text": "one"}}')
    put(tmp_path / "d", a_png=None, a_txt="one".encode("utf-16"))
    (tmp_path / "e").mkdir()
    tar(tmp_path / "e" / "s.tar", **{"0.png": image(), "0.json": f'{mark}{{"caption": "one"}}'})
    for name in "abcde":
        assert captions(tmp_path / name) == ["one"], name


def test_numeric_captions_become_text(tmp_path: Path) -> None:
    put(tmp_path / "a", a_png=None, metadata_jsonl='{"file_name": "a.png", "text": 0}')
    table(tmp_path / "b" / "t.parquet", 1, image=image(), caption=7)
    assert captions(tmp_path / "a") == ["0"] and captions(tmp_path / "b") == ["7"]


TABLES = (
    'file_name, text\na.png, "thing 0, red"\n',
    "file_name;text\na.png;thing 0, red\n",
    "file_name\ttext\na.png\tthing 0, red\n",
)


@pytest.mark.parametrize("text", TABLES)
def test_csv_dialects_are_read(text: str, tmp_path: Path) -> None:
    put(tmp_path, a_png=None, metadata_csv=text)
    assert captions(tmp_path) == ["thing 0, red"]


def test_ignored_files_are_counted_by_reason_most_frequent_first(tmp_path: Path) -> None:
    put(tmp_path / "a", a_png=None, a_txt="one")
    assert describe_ignored(walk(tmp_path / "a").ignored) == ""
    counts = Counter({".heic": 2, "archives beside images (.tar)": 1, "images without a caption": 1234, "unseen": 0})
    assert describe_ignored(counts) == "1,234 images without a caption, 2 .heic, 1 archive beside images (.tar)"


def test_unused_files_are_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, a_png=None, a_txt="one", b_heic="x")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            captions(tmp_path)
    assert len(told(caplog)) == 1
