"""What a user can get wrong about his images: one line each."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest

from dalle.data import location, open_data, open_training
from dalle.data.custom.config import CustomConfig
from dalle.data.custom.folder import image_files
from dalle.data.custom.open_source import is_hub_id
from dalle.data.labeled import open_labeled_images
from dalle.data.loader import evaluation_batches
from support.custom_layouts import (
    SIDE,
    STREAM,
    add,
    image,
    with_json_tars,
    with_parquet,
    with_tars,
)


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
    (tmp_path / "damaged").mkdir()
    table = pyarrow.table({"file_name": [f"{number}.png" for number in range(99)], "text": ["word"] * 99})
    parquet.write_table(table, tmp_path / "damaged/metadata.parquet")
    with (tmp_path / "damaged/metadata.parquet").open("r+b") as file:  # inside: its head and footer are whole
        file.seek(4)
        file.write(b"\xff" * 200)
    return {
        "damaged": "metadata.parquet is not a complete Parquet file",
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
        "odd.parquet": "): there are a, b; set data.image",
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


def test_homes_of_unknown_users_are_one_line() -> None:
    path = "~nobody-of-this-name/x"
    for opened in (
        lambda: open_training(CustomConfig(path=path), SIDE),
        lambda: location(CustomConfig(path=path)),
        lambda: is_hub_id(path),
        lambda: image_files(path),
        lambda: open_labeled_images(path),
    ):
        with pytest.raises(ValueError, match=f"^{path}: ~nobody-of-this-name is no home folder here: give the path"):
            opened()


def test_errors_of_the_validation_data_name_its_options(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        with_parquet(tmp_path / name)
    (tmp_path / "two/part-0.parquet").rename(tmp_path / "two/test-0.parquet")
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    for options, said in (
        ({"validation_split": "no"}, "has no split 'no': there are train; set data.validation_split to one"),
        ({"validation_path": two, "split": "validation"}, "there are train, test; set data.validation_split to one"),
        ({"validation_path": str(tmp_path / "no/a/b")}, "; set data.validation_path to your images"),
        ({"validation_path": str(tmp_path / "*.tar")}, "no file matches data.validation_path "),
    ):
        with pytest.raises(ValueError, match=said):
            open_data(CustomConfig(path=one, **options), "validation", SIDE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"there are train; set data\.split to one"):
        open_data(CustomConfig(path=one, split="test"), "train", SIDE)
