"""Inputs as strangers have them: text of any encoding, nested splits, tars and tables of other tools, odd names."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from dalle.cli.errors import print_error
from dalle.data import open_data, open_training
from dalle.data.base import BadRecord
from dalle.data.custom.config import CustomConfig
from dalle.data.summary import summarize
from dalle.images.read import UnreadableImage, decode_image
from support.custom_layouts import SIDE, STREAM, image, number_of
from support.found_inputs import put, read, table, tar

NUMBERS = {number: f"number {number}" for number in range(3)}
ROWS = "".join(f"{number}.png,number {number}\r\n" for number in range(3))
LINES = "".join(
    json.dumps({"image_file_name": f"{number}.png", "text": f"number {number}"}) + "\n" for number in NUMBERS
)
METADATA = {
    "metadata.csv": f"file_name,text\r\n{ROWS}".encode("utf-16"),
    "Metadata.CSV": f"\ufefffile_name,text\r\n{ROWS}".encode(),
    "metadata.tsv": f"file_name\ttext\n{ROWS.replace(',', chr(9))}".encode(),
    "metadata.jsonl": LINES.encode("utf-16"),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_in_any_encoding_case_and_separator(name: str, tmp_path: Path) -> None:
    put(tmp_path, *NUMBERS, text=None)
    (tmp_path / name).write_bytes(METADATA[name])
    assert read(tmp_path) == (NUMBERS, [])


def test_quoted_line_breaks_and_quotes_of_a_csv(tmp_path: Path) -> None:
    put(tmp_path, 1, text=None)
    (tmp_path / "metadata.csv").write_bytes(b'"file_name","text"\r\n"1.png","a ""red"", big\r\nheart"\r\n')
    assert read(tmp_path) == ({1: 'a "red", big heart'}, [])


@pytest.mark.parametrize("folders", [("data/{}",), ("cats/{}", "dogs/{}/a/b")])
def test_splits_below_the_top_are_not_trained_on(
    folders: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, folder in enumerate(folders):
        put(tmp_path / folder.format("Train"), number)
        put(tmp_path / folder.format("val"), 10 + number)
    assert set(read(tmp_path)[0]) == set(range(len(folders)))
    assert ("1 file" if len(folders) == 1 else "2 files") + " of other splits (validation)" in caplog.text
    held_out = open_data(CustomConfig(path=str(tmp_path), validation_split="valid"), "validation", SIDE)
    assert {number_of(held_out.pair(row, 0).image) for row in range(len(held_out))} == {10, 11}.intersection(
        range(10, 10 + len(folders))
    )


def test_metadata_above_the_folders_of_splits(tmp_path: Path) -> None:
    put(tmp_path / "train", 1, text=None)
    put(tmp_path / "test", 2, text=None)
    rows = "train/1.png,number 1\ntest/2.png,number 2\n"
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n{rows}")
    assert read(tmp_path) == ({1: "number 1"}, [])
    assert read(tmp_path, split="test") == ({2: "number 2"}, [])


@STREAM
def test_texts_named_after_the_whole_image_file_in_a_tar(stream: bool, tmp_path: Path) -> None:
    texts = {"0.jpg.txt": b"number 0", "1.jpg.json": b'{"caption": "number 1"}'}
    members = [member for name, text in texts.items() for member in ((name[:5], image(int(name[0]))), (name, text))]
    tar(tmp_path / "a.tar", members)
    assert read(tmp_path, stream) == ({0: "number 0", 1: "number 1"}, [])


@STREAM
def test_names_that_come_again_in_a_tar_are_records_of_their_own(stream: bool, tmp_path: Path) -> None:
    members = [("same.png", image(1)), ("same.txt", b"one"), ("same.png", image(2)), ("same.txt", b"two")]
    tar(tmp_path / "a.tar", members)
    assert read(tmp_path, stream) == ({1: "one", 2: "two"}, [])


@STREAM
def test_texts_elsewhere_in_the_tar_are_refused(stream: bool, tmp_path: Path) -> None:
    images = [(f"images/{n}.png", image(n)) for n in range(3)]
    tar(tmp_path / "a.tar", images + [(f"captions/{n}.txt", b"x") for n in range(3)])
    with pytest.raises(
        ValueError, match=r"a.tar: no image .* has a caption: expected 000.txt right before .*--sort=name"
    ):
        read(tmp_path, stream)


@STREAM
@pytest.mark.parametrize("cell", [str, lambda name: {"bytes": None, "path": name}])
def test_tables_name_files_from_their_folder(cell: Callable[[str], Any], stream: bool, tmp_path: Path) -> None:
    put(tmp_path / "pics", 1, 2, text=None)
    table(tmp_path / "a.parquet", image=[cell("pics/1.png"), cell("pics\\2.png"), cell("no.png")], text=["a", "b", "c"])
    good, (bad,) = read(tmp_path, stream)
    assert good == {1: "a", 2: "b"}
    assert bad == "a.parquet/2: expected an image's bytes, base64, or a path from the table's folder, got 'no.png'"


@STREAM
def test_tables_with_other_columns_are_one_line(stream: bool, tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", image=[image(1)], text=["one"])
    table(tmp_path / "b.parquet", image=[image(2)], caption=["two"])
    with pytest.raises(ValueError, match="b.parquet has the columns image, caption, and a.parquet has image, text"):
        read(tmp_path, stream)
    table(tmp_path / "b.parquet", image=[image(2)], text=[["two"]])
    with pytest.raises(ValueError, match="cannot be loaded: Couldn't cast array of type list"):
        read(tmp_path, stream)


@STREAM
def test_missing_keys_of_a_table_do_not_make_records_one(stream: bool, tmp_path: Path) -> None:
    keys = pyarrow.array([None] * 64, pyarrow.string())
    table(tmp_path / "a.parquet", id=keys, image=[image(n) for n in range(64)], text=["x"] * 64)
    config = CustomConfig(path=str(tmp_path), key="id", validation_share=0.3, stream=stream)
    assert 5 < len(open_data(config, "validation", SIDE)) < 40


ODD: list[tuple[Any, str]] = [
    (None, "its caption is empty"),
    (float("nan"), "its caption is empty"),
    (" \t", "its caption is empty"),
    (True, "its caption is a bool, True: expected text, or a list of texts"),
    ({"en": "x"}, "its caption is a dict, {'en': 'x'}: expected text, or a list of texts"),
    ([["x"]], "its caption is a list, ['x']: expected text, or a list of texts"),
]


def test_captions_that_are_no_text_are_named(tmp_path: Path) -> None:
    put(tmp_path, 0, *range(1, 1 + len(ODD)), text=None)
    rows = [{"file_name": "0.png", "text": ["", None, "fine"]}]
    rows += [{"file_name": f"{number}.png", "text": value} for number, (value, _) in enumerate(ODD, 1)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = [f"{number}.png: {told}" for number, (_, told) in enumerate(ODD, 1)]
    assert read(tmp_path) == ({0: "fine"}, said)


@STREAM
def test_dicts_as_captions_of_a_table_are_named(stream: bool, tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", image=[image(1)], captions=[[{"raw": "x"}]])
    assert read(tmp_path, stream)[1] == [
        "a.parquet/0: its caption is a dict, {'raw': 'x'}: expected text, or a list of texts"
    ]


def test_json_that_python_cannot_read_is_one_line(tmp_path: Path) -> None:
    put(tmp_path, 1, text=None)
    for content in ("[" * 100_000 + "]" * 100_000, "9" * 5000):
        (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "1.png", "text": {content}}}\n')
        with pytest.raises(ValueError, match=r"metadata.jsonl, line 1 is not JSON"):
            read(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    put(tmp_path, 2)
    (tmp_path / "1.json").write_text("[" * 100_000)
    assert read(tmp_path) == ({2: "number 2"}, ["1.png: 1.json cannot be read (it is nested too deep)"])


def test_links_to_themselves_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "a", 1)
    os.symlink(tmp_path, tmp_path / "a/up")
    os.symlink("two", tmp_path / "one")
    os.symlink("one", tmp_path / "two")
    assert read(tmp_path) == ({1: "number 1"}, [])
    assert "2 links without a target" in caplog.text and "1 link to folders already read" in caplog.text


def test_control_characters_of_names_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a\n\x1b[31m.png").write_bytes(image(1))
    (tmp_path / "a\n\x1b[31m.txt").write_text("red")
    data = open_training(CustomConfig(path=str(tmp_path)), SIDE)
    assert "for example a\\n\\x1b[31m.png: red" in str(summarize(data, data))  # type: ignore[arg-type]
    assert str(BadRecord("a\nb", "x")) == "a\\nb: x"
    print_error("dalle", ValueError("a\x1b[31m"))
    assert capsys.readouterr().err == "dalle: a\\x1b[31m\n"


def test_errors_name_what_is_there_in_place_of_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    told = {
        "zip": "holds no images: .*; found 1 .zip \\(unpack them\\)",
        "gz": "holds no images: .*; found 1 .gz \\(unpack them\\)",
        "arrow": r"found 1 .arrow \(of save_to_disk: give the folder of that data set\)",
        "other": r"captions.csv is not read \(none of its images is there, as 'no.png'\): make it a metadata.csv",
        "cells": "holds no images: .*; found 1 .csv; tables that hold the images themselves are read as Parquet files",
        "cells/a.csv": "cells/a.csv is not a data file that can be read: .*; tables that hold the images themselves",
        "latin": "no captions: .*; 1.png: 1.txt cannot be read .'utf-8' codec",
        "meta/metadata.csv": "it is a metadata file: give its folder, .*meta$",
        "zip/a.zip": "not a data file that can be read: .*; .zip \\(unpack them\\)",
    }
    for name in told:
        (tmp_path / name.partition("/")[0]).mkdir(exist_ok=True)
    for name in ("zip/a.zip", "arrow/data.arrow"):
        (tmp_path / name).write_bytes(b"x")
    tar(tmp_path / "gz/a.tar.gz", [("0.png", image(0)), ("0.txt", b"x")], "w:gz")
    put(tmp_path / "other", 1, text=None)
    (tmp_path / "other/captions.csv").write_text("image,caption\nno.png,x\n")
    (tmp_path / "cells/a.csv").write_text("image,caption\niVBORw0KGgo,x\n")
    put(tmp_path / "latin", 1, text=None)
    (tmp_path / "latin/1.txt").write_bytes("caf\u00e9".encode("cp1252"))
    (tmp_path / "meta/metadata.csv").write_text("file_name,text\n")
    for name, expected in told.items():
        with pytest.raises(ValueError, match=expected) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "start, name",
    [(b"\0\0\0\x18ftypheic", "HEIC"), (b"\xff\x0a", "JPEG XL"), (b"%PDF-1.7\n", "PDF"), (b"\x1f\x8b", "gzip")],
)
def test_files_of_other_formats_are_named_by_their_content(start: bytes, name: str) -> None:
    with pytest.raises(UnreadableImage, match=f"it is a {name} file, which is not read: convert it"):
        decode_image(start + bytes(40))


@pytest.mark.parametrize("locked", ["listing", "search"])
def test_folders_without_permission_are_counted(
    locked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As the system refuses them to all but root: a folder's own names, or what its names stand for."""
    put(tmp_path, 1)
    put(tmp_path / "own/deep", 2)
    names = {"listing": ("own",), "search": ("own/config.yaml", "own/deep")}[locked]
    refused = {str(tmp_path / name) for name in names}

    def refusing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(path, (str, os.PathLike)) and str(path) in refused:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return function(path, *args, **kwargs)

        return call

    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    if locked == "search":
        monkeypatch.setattr(os, "stat", refusing(os.stat))
    assert read(tmp_path) == ({1: "number 1"}, [])
    assert "1 folder without read permission" in caplog.text
