"""Damaged copies of the embedded sets: what is skipped and counted, what is an error, and its file and row."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest

from dalle.data import BadRecord
from dalle.data.bad_records import BadRecordCounter
from dalle.data.drawings import DrawingsConfig, DrawingsDataset
from dalle.data.drawings.render import Vector
from dalle.data.drawings.sets import DRAWINGS, read_set
from dalle.data.loader import batches, evaluation_batches

SIDE = 32
CONCEPTS, NOTO, LUCIDE = "emoji/concepts/concepts.parquet", "emoji/images/noto.parquet", "icons/icons/lucide.parquet"
Edit = Callable[[list[dict]], object]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of a few rows of each set."""
    for name in (NOTO, LUCIDE):
        table = parquet.read_table(DRAWINGS / name)
        trained = table.filter(pyarrow.compute.equal(table["split"], "train")).slice(0, 6)
        (tmp_path / name).parent.mkdir(parents=True)
        parquet.write_table(trained, tmp_path / name)
    (tmp_path / CONCEPTS).parent.mkdir()
    shutil.copy(DRAWINGS / CONCEPTS, tmp_path / CONCEPTS)
    return tmp_path


def edit(file: Path, change: Edit) -> None:
    table = parquet.read_table(file)
    rows = table.to_pylist()
    change(rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=table.schema), file)


def opened(root: Path, split: str = "known", **options: object) -> DrawingsDataset:
    own = {"root": root, "styles": ("noto", "outline")} | options
    return DrawingsDataset(DrawingsConfig(**own), split, SIDE)  # type: ignore[arg-type]


def in_row(number: int, **cells: object) -> Edit:
    return lambda rows: rows[number].update(cells)


BAD_IMAGES = {
    "image null": (NOTO, in_row(2, image=None), "is empty"),
    "bytes null": (NOTO, in_row(2, image={"bytes": None, "path": None}), "is empty"),
    "junk": (NOTO, in_row(2, image={"bytes": b"junk", "path": None}), "not an image"),
    "half a path element": (LUCIDE, in_row(2, body="<path d="), "cannot be drawn"),
    "unreadable path": (LUCIDE, in_row(2, body="<path d='junk'/>"), "shows nothing"),
    "no body": (LUCIDE, in_row(2, body=None), "shows nothing"),
    "empty body": (LUCIDE, in_row(2, body=""), "shows nothing"),
    "no viewBox": (LUCIDE, in_row(2, viewbox=None), "viewBox"),
    "words in viewBox": (LUCIDE, in_row(2, viewbox="a b c"), "viewBox"),
    "NaN in viewBox": (LUCIDE, in_row(2, viewbox="0 nan 24 24"), "viewBox"),
    "oblong viewBox": (LUCIDE, in_row(2, viewbox="0 0 24 12"), "viewBox"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_damaged_image_is_a_bad_record_that_names_file_and_row(root: Path, name: str) -> None:
    file, change, reason = BAD_IMAGES[name]
    edit(root / file, change)
    data = opened(root)
    faults = []
    for index in range(len(data)):
        try:
            data.pair(index, 0)
        except BadRecord as error:
            faults.append(str(error))
    (fault,) = faults
    assert fault.startswith(f"{root / file}, row 3: ") and reason in fault and "\n" not in fault


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_drawings_are_skipped_and_counted(root: Path, workers: int) -> None:
    edit(root / NOTO, in_row(0, image=None))
    edit(root / LUCIDE, in_row(0, body="<path d="))
    data = opened(root, "train", scenes=0.0)
    bad = next(batches(data, batch_size=40, seed=0, workers=workers)).bad
    assert len(set(bad)) == 2
    BadRecordCounter(2).add(bad)
    with pytest.raises(ValueError, match=r"too many broken records: 2 .*row 1: .*data.max_bad is 1"):
        BadRecordCounter(1).add(bad)
    skipped: list[str] = []
    assert sum(len(b.captions) for b in evaluation_batches(opened(root), 4, report=skipped.extend)) == 10
    assert len(skipped) == 2


def test_nothing_but_bad_drawings_is_an_error(root: Path) -> None:
    edit(root / LUCIDE, lambda rows: [row.update(body="<path d='junk'/>") for row in rows])
    with pytest.raises(ValueError, match=r"no usable image in the data set.*lucide.parquet, row"):
        next(batches(opened(root, "train", sets=("icons",), styles=None), batch_size=4, seed=0))


WRONG_ROWS = {
    "concept's name null": (CONCEPTS, in_row(4, name=None, caption=None), "its name is empty"),
    "concept's caption empty": (CONCEPTS, in_row(4, caption=""), "its caption is empty"),
    "emoji's concept missing": (NOTO, in_row(4, codepoints="ffff"), "ffff is not in"),
    "emoji's split null": (NOTO, in_row(4, split=None), "its split is empty"),
    "emoji's split unknown": (NOTO, in_row(4, split="tarin"), "its split 'tarin' is unknown"),
    "icon's name empty": (LUCIDE, in_row(4, name=""), "its name is empty"),
    "icon's family unknown": (LUCIDE, in_row(4, family="mystery"), "its family 'mystery' is unknown"),
    "icon's family null": (LUCIDE, in_row(4, family=None), "its family is empty"),
    "icon's category null": (LUCIDE, in_row(4, category=None), "its category is empty"),
}


@pytest.mark.parametrize("name", WRONG_ROWS)
def test_a_row_without_names_is_an_error_that_names_file_and_row(root: Path, name: str) -> None:
    file, change, reason = WRONG_ROWS[name]
    edit(root / file, change)
    with pytest.raises(ValueError, match=r"row 5: ") as caught:
        opened(root)
    assert str(caught.value).startswith(f"{root / file}, row 5: ") and reason in str(caught.value)


def test_a_missing_concept_is_an_error_that_names_the_file(root: Path) -> None:
    (first, *_) = parquet.read_table(root / NOTO)["codepoints"].to_pylist()
    edit(root / CONCEPTS, lambda rows: rows.pop([row["codepoints"] for row in rows].index(first)))
    with pytest.raises(ValueError, match=rf"noto.parquet, row 1: {first} is not in .*concepts.parquet"):
        opened(root)


@pytest.mark.parametrize("name", [CONCEPTS, NOTO, LUCIDE])
@pytest.mark.parametrize("damage", ["cut", "empty", "overwritten", "pointer"])
def test_a_damaged_file_is_an_error_of_one_line_that_names_it(root: Path, name: str, damage: str) -> None:
    content = (root / name).read_bytes()
    damaged = {
        "cut": content[: len(content) // 2],
        "empty": b"",
        "overwritten": content[:4] + b"\xff" * 900 + content[904:],
        "pointer": b"version https://git-lfs.github.com/spec/v1\n",
    }
    (root / name).write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=r"parquet is (not a complete Parquet file|a pointer of Git LFS)") as caught:
        opened(root)
    assert str(caught.value).startswith(f"{root / name} is ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("column", ["viewbox", "split"])
def test_missing_columns_and_other_types_are_refused(root: Path, column: str) -> None:
    file = root / LUCIDE
    table = parquet.read_table(file)
    parquet.write_table(table.drop_columns([column]), file)
    with pytest.raises(ValueError, match=rf"lucide.parquet is not a file of the data set \(it has no '{column}'\)"):
        opened(root)
    numbers = pyarrow.array(range(len(table)))
    parquet.write_table(table.drop_columns([column]).append_column(column, numbers), file)
    with pytest.raises(ValueError, match=rf"\(its column '{column}' holds int64\): copy it again"):
        opened(root)


def test_thin_lines_in_few_pixels_are_no_damage() -> None:
    """Two of the drawings fade to nothing in 2 x 2 pixels, as objects of the smallest images have."""
    faint = Vector("0 0 640 640", '<path fill="currentColor" d="M0 0h1v640h-1z"/>')
    assert not faint.render(1)[..., 3].any()
    with pytest.raises(ValueError, match="shows nothing"):
        Vector("0 0 8 8", '<path fill="none" d="M2 2h4"/>').render(1)


def test_every_shipped_icon_shows_something() -> None:
    icons = read_set("icons", DRAWINGS)
    assert all(np.any(icon.render(8)) for icon in icons[::25])
