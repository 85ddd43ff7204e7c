"""Images in the cells of tables, and tables and tars of which a part is of no use."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet as parquet
import pytest

from dalle.data.custom.cells import parse_image_cell
from support.custom_layouts import STREAM, image
from support.found_inputs import put, read, table, tar

CELLS: dict[str, Callable[[int], Any]] = {
    "base64": lambda number: base64.b64encode(image(number)).decode(),
    "base64 in lines": lambda number: base64.encodebytes(image(number)).decode(),
    "data: URL": lambda number: "data:image/png;base64," + base64.b64encode(image(number)).decode(),
    "base64 in a struct": lambda number: {"bytes": base64.b64encode(image(number)).decode(), "path": None},
    "list of one": lambda number: [image(number)],
}


@STREAM
@pytest.mark.parametrize("kind", CELLS)
def test_images_of_cells_are_read(kind: str, stream: bool, tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", image=[CELLS[kind](number) for number in (1, 2)], text=["a", "b"])
    assert read(tmp_path, stream) == ({1: "a", 2: "b"}, [])


def test_cells_of_no_image_say_what_they_are(tmp_path: Path) -> None:
    for cell, reason in (
        (None, "there is no image"),
        ([], "there is no image"),
        ([b"a", b"b"], "there are 2 images: expected one"),
        ([0, 1, 2], r"got list '\[0, 1, 2\]'"),
        (3, "base64 or path, got int '3'"),
        ("pics/" + 60 * "a" + ".png", "or a path from the table's folder, got 'pics/aaa"),
        ("https://a.b/c.png", "its image is an address"),
    ):
        content, fault = parse_image_cell(cell, [tmp_path])
        assert content is None
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(fault)
    folder = tmp_path / ("a" * 64)
    put(folder, 1, text=None)
    assert parse_image_cell(f"{'a' * 64}/1.png", [tmp_path])[0] is not None, "a path that is nearly base64"


@STREAM
def test_columns_are_found_in_any_case(stream: bool, tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", Image=[image(1)], Text=["a"])
    assert read(tmp_path, stream) == ({1: "a"}, [])


@STREAM
def test_tables_without_rows_add_nothing(stream: bool, tmp_path: Path) -> None:
    rows = pyarrow.table({"image": [image(1)], "text": ["a"]})
    parquet.write_table(rows.slice(0, 0), tmp_path / "a.parquet")
    parquet.write_table(rows, tmp_path / "b.parquet")
    assert read(tmp_path, stream) == ({1: "a"}, [])


def test_pointers_of_git_lfs_are_named(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    put(tmp_path, 1, 2)
    (tmp_path / "2.png").write_bytes(pointer)
    advice = "a pointer of Git LFS in place of the file itself: `git lfs pull` in its folder"
    assert read(tmp_path) == ({1: "number 1"}, [f"2.png: the file is {advice}"])
    (tmp_path / "a.parquet").write_bytes(pointer)
    with pytest.raises(ValueError, match=f"a.parquet is {advice}"):
        read(tmp_path / "a.parquet")
    (tmp_path / "a.tar").write_bytes(pointer)
    assert read(tmp_path / "a.tar", stream=True) == ({}, [f"a.tar: the tar file is {advice}"])


def test_members_of_tars_that_are_not_used_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    members = [("0.png", image(0)), ("0.txt", b"a"), ("0.npy", b"x"), ("1.mp4", b"x"), ("2.npy", b"x"), ("README", b"")]
    file = tar(tmp_path / "a.tar", [("._0.png", b"x"), *members])
    assert read(file) == ({0: "a"}, [])
    assert f"{file}: not used: 2 .npy, 1 .mp4 (videos), 1 file without an extension" in caplog.text


@STREAM
def test_numbers_of_classes_are_read_as_their_names(stream: bool, tmp_path: Path) -> None:
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    rows = {"image": [{"bytes": image(number), "path": None} for number in range(3)], "label": [1, 0, -1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    expected = {0: "dog", 1: "cat"}, ["a.parquet/2: its caption is empty"]
    assert read(tmp_path, stream, caption="label") == expected


@STREAM
@pytest.mark.parametrize("first", [b"", b"no tar at all" * 100], ids=["empty", "damaged"])
def test_columns_of_tars_are_chosen_behind_a_first_shard_of_no_use(first: bytes, stream: bool, tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", [])
    if first:
        (tmp_path / "a.tar").write_bytes(first)
    tar(tmp_path / "b.tar", [("1.jpg", image(1)), ("1.seg.png", image(2)), ("1.txt", b"one")])
    assert read(tmp_path, stream, image="jpg")[0] == {1: "one"}


@STREAM
def test_columns_of_tars_are_those_of_names_with_dots(stream: bool, tmp_path: Path) -> None:
    members = [(f"a 1.{n}.{kind}", image(n) if kind == "png" else b"x") for n in (1, 2) for kind in ("png", "txt")]
    tar(tmp_path / "a.tar", members)
    assert read(tmp_path, stream, image="png", caption="txt") == ({1: "x", 2: "x"}, [])
    with pytest.raises(ValueError, match=r"a.tar has no NAME.jpg: there are 1.png, 2.png, .*png, txt; set data.image"):
        read(tmp_path, stream, image="jpg")
