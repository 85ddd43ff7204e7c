"""Tables of captions as other projects have them: COCO, kohya-ss, Flickr8k and 30k; tables with other headers."""

from __future__ import annotations

import json
import logging
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from dalle.data import open_data
from dalle.data.custom.config import CustomConfig
from dalle.data.custom.folder import FolderSource
from dalle.data.custom.walk import walk
from support.custom_layouts import SIDE, number_of
from support.found_inputs import put, read


def coco(*numbers: int) -> str:
    """Two captions for each image, as in captions_train2017.json."""
    images = [{"id": 100 + number, "file_name": f"{number}.png", "width": 4} for number in numbers]
    captions = [{"image_id": 100 + n, "id": m, "caption": f"number {n}"} for n in numbers for m in range(2)]
    return json.dumps({"info": {"year": 2017}, "licenses": [], "images": images, "annotations": captions})


def test_coco_is_read_with_its_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "train2017", 1, 2, text=None)
    put(tmp_path / "val2017", 3, text=None)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/captions_train2017.json").write_text(coco(1, 2, 7))
    (tmp_path / "annotations/captions_val2017.json").write_text(coco(3))
    (tmp_path / "annotations/instances_val2017.json").write_text(
        '{"images": [{"id": 1, "file_name": "3.png"}], "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]}'
    )
    assert read(tmp_path) == ({1: "number 1", 2: "number 2"}, [])
    assert "2 captions of images that are not there" in caplog.text
    held_out = open_data(CustomConfig(path=str(tmp_path), validation_split="val2017"), "validation", SIDE)
    assert [number_of(held_out.pair(row, 0).image) for row in range(len(held_out))] == [3]


TABLES = {
    "captions.json": json.dumps([{"image": "1.png", "caption": "number 1"}, {"image": "2.png", "prompt": "number 2"}]),
    "dict.json": json.dumps({"1.png": "number 1", "2.png": ["number 2"]}),
    "meta_cap.json": json.dumps({"1": {"caption": "number 1"}, "pics/2": {"caption": "number 2", "tags": "x"}}),
    "captions.txt": "image,caption\n1.png,number 1\n2.png,number 2\n",
    "results.csv": "image_name| comment_number| comment\n1.png| 0| number 1\n2.png| 0| number 2\n",
    "data.jsonl": '{"path": "pics/1.png", "text": "number 1"}\n{"path": "./pics\\\\2.png", "text": "number 2"}\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_under_other_names_are_read(name: str, tmp_path: Path) -> None:
    put(tmp_path / "pics", 1, 2, text=None)
    (tmp_path / name).write_text(TABLES[name])
    assert read(tmp_path) == ({1: "number 1", 2: "number 2"}, [])
    records = FolderSource(tmp_path, walk(tmp_path).files, None, captioned=False).rows()  # as the search index reads
    assert [records.captions(row)[0] for row in range(len(records))] == ["number 1", "number 2"]


def test_tables_are_passed_over_where_images_have_texts(tmp_path: Path) -> None:
    put(tmp_path, 1, 2)
    (tmp_path / "captions.json").write_text('{"1.png": "another", "2.png": "another"}')
    assert read(tmp_path)[0] == {1: "number 1", 2: "number 2"}


def test_names_that_several_images_have_are_not_guessed(tmp_path: Path) -> None:
    put(tmp_path / "a", 1, text=None)
    put(tmp_path / "b", 1, 2, text=None)
    (tmp_path / "captions.csv").write_text("filename,caption\n1.png,one of two\n2.png,number 2\n")
    assert read(tmp_path)[0] == {2: "number 2"}


def test_why_a_table_is_not_read_is_said(tmp_path: Path) -> None:
    put(tmp_path, 1, text=None)
    for content, reason in (
        ('image,caption\n1.png,"open\n', r"captions.csv is not read \(line 2: .*; is a quote left open"),
        ("a,b\n1.png,x\n", r"captions.csv is not read \(no captions of named images"),
    ):
        (tmp_path / "captions.csv").write_text(content)
        with pytest.raises(ValueError, match=reason):
            read(tmp_path)


HEADERS = {
    "case": "File_Name,Text\n1.png,number 1\n",
    "bars": "file_name|text\n1.png|number 1\n",
    "blank lines": "\n\r\nfile_name;text\n1.png;number 1\n",
    "Excel's own line": "sep=;\r\nfile_name;text\r\n1.png;number 1\r\n",
    "any separator": "sep=^\nfile_name^text\n1.png^number 1\n",
    "long": "file_name,text,more\n1.png,number 1," + 300_000 * "x" + "\n",
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_of_spreadsheets_are_understood(name: str, tmp_path: Path) -> None:
    put(tmp_path, 1, text=None)
    (tmp_path / "metadata.csv").write_text(HEADERS[name], newline="")
    assert read(tmp_path) == ({1: "number 1"}, [])


WRONG: dict[str, tuple[str, Any, str]] = {
    "line below blank ones": ("metadata.csv", "\n\nfile_name,text\n1.png,a, b\n", "line 4 has more fields"),
    "column twice": ("metadata.csv", "file_name,text,text\n1.png,a,b\n", "two columns 'text': rename one"),
    "NUL": ("metadata.csv", "file_name,text\n1.png,a\0b\n", "is not UTF-8 text .*NUL, as in UTF-16"),
    "address": ("metadata.jsonl", '{"file_name": "https://a.b/1.png", "text": "a"}', "'https://.*download the images"),
    "long name": ("metadata.csv", f"file_name,text\n{300 * 'x'},a\n", "line 2: there is no image .*xxx$"),
    "pretty JSON": ("metadata.jsonl", '{\n"file_name": "1.png"}', "line 1 is not JSON: .*expected one object on each"),
    "list": ("metadata.jsonl", "[]", r'line 1: expected \{"file_name": ..., "text": ...\} on each line'),
    "base64": ("metadata.csv", f"image,text\n{'iVBO' * 200},a\n", "no column 'file_name': .*read as Parquet files"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_metadata_is_one_line(name: str, tmp_path: Path) -> None:
    put(tmp_path, 1, text=None)
    file, content, reason = WRONG[name]
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=reason) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_rows_without_the_column_are_named(tmp_path: Path) -> None:
    put(tmp_path, 1, 2, text=None)
    rows = ['{"file_name": "1.png", "caption": "number 1"}', '{"file_name": "2.png", "text": "number 2"}']
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    assert read(tmp_path) == ({1: "number 1"}, ["2.png: it has no 'caption' in metadata.jsonl, line 2"])


def test_folders_that_name_a_split_and_a_year_are_splits(tmp_path: Path) -> None:
    for folder, number in (("Train2017", 1), ("val_2", 2), ("test-1", 3)):
        put(tmp_path / folder, number)
    assert read(tmp_path) == ({1: "number 1"}, [])
    assert read(tmp_path, split="dev") == ({2: "number 2"}, [])


def test_data_beside_folders_of_splits_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for number, folder in enumerate(("train", "validation", "more")):
        put(tmp_path / folder, number)
    assert set(read(tmp_path)[0]) == {0, 1, 2}
    reason = "nothing beside folders such as train/ and validation/, and there is more/2.png"
    assert f"all of its folders are trained on, as splits need {reason}" in caplog.text
    with pytest.raises(ValueError, match=f"has no split 'test': expected {reason}"):
        read(tmp_path, split="test")


def test_folders_of_the_system_are_no_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, 1)
    for number, folder in enumerate(("@eaDir", "__MACOSX", "$RECYCLE.BIN", "a/lost+found")):
        put(tmp_path / folder, 10 + number)
    assert read(tmp_path) == ({1: "number 1"}, [])
    assert not caplog.text


def test_texts_with_nuls_are_broken_and_other_controls_are_spaces(tmp_path: Path) -> None:
    put(tmp_path, 1, 2, 3, 4, text=None)
    contents = ["number 1".encode("utf-16-le"), "number 2".encode("utf-32"), b"number\x07\x1b 3", b"\0\0\0"]
    for number, content in enumerate(contents, 1):
        (tmp_path / f"{number}.txt").write_bytes(content)
    good, bad = read(tmp_path)
    assert good == {2: "number 2", 3: "number 3"}
    assert [line.partition(" (")[0] for line in bad] == ["1.png: 1.txt cannot be read", "4.png: 4.txt cannot be read"]
    assert all("NUL, as in UTF-16" in line for line in bad)


def test_decomposed_names_of_tables_are_found(tmp_path: Path) -> None:
    put(tmp_path / "pics", 1, text=None)
    (tmp_path / "pics/1.png").rename(tmp_path / "pics" / unicodedata.normalize("NFD", "é.PNG"))
    (tmp_path / "captions.json").write_text(json.dumps({"é.png": "number 1"}))
    assert read(tmp_path) == ({1: "number 1"}, [])


@pytest.mark.parametrize("name", ["metadata.csv", "captions.csv"])
def test_images_whose_names_differ_in_case_alone_keep_their_captions(name: str, tmp_path: Path) -> None:
    put(tmp_path / "pics", 1, 2, 3, text=None)
    for number, own in ((1, "IMG.PNG"), (2, "IMG.png"), (3, "other.PNG")):
        (tmp_path / f"pics/{number}.png").rename(tmp_path / "pics" / own)
    rows = "pics/IMG.png,number 2\npics/other.png,number 3\n./pics/IMG.PNG,number 1\n"
    (tmp_path / name).write_text(f"file_name,text\n{rows}")
    assert read(tmp_path) == ({1: "number 1", 2: "number 2", 3: "number 3"}, [])


def test_a_name_that_two_images_have_but_for_its_case_is_not_guessed(tmp_path: Path) -> None:
    put(tmp_path / "pics", 1, 2, text=None)
    for number, own in ((1, "IMG.PNG"), (2, "IMG.png")):
        (tmp_path / f"pics/{number}.png").rename(tmp_path / "pics" / own)
    put(tmp_path / "pics", 3, text=None)
    (tmp_path / "captions.csv").write_text("file_name,text\nIMG,one of two\n3,number 3\n")
    assert read(tmp_path) == ({3: "number 3"}, [])


def test_cells_that_are_too_long_for_a_name_are_images_that_are_not_there(tmp_path: Path) -> None:
    put(tmp_path, 1, text=None)
    (tmp_path / "captions.csv").write_text(f"image,caption\n{'iVBO' * 100},x\n1.png,number 1\n")
    assert read(tmp_path) == ({1: "number 1"}, [])


def test_ids_that_are_no_ids_name_no_image(tmp_path: Path) -> None:
    put(tmp_path, 1, 2, text=None)
    images = [{"id": each, "file_name": "2.png"} for each in ([1], {}, None)] + [{"id": 7, "file_name": "1.png"}]
    own = [{"image_id": each, "caption": "number 2"} for each in ([1], {}, None)]
    content = {"images": images, "annotations": [*own, {"image_id": 7.0, "caption": "number 1"}]}
    (tmp_path / "captions.json").write_text(json.dumps(content))
    assert read(tmp_path) == ({1: "number 1"}, [])
