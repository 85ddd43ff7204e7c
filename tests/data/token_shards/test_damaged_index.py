"""An index of shards with any value replaced or missing: one line that names the file, or the same data."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest

from dalle.data import open_data
from dalle.data.token_shards.dataset import TokenShardsConfig
from dalle.data.token_shards.files import ShardIndex, existing_shard, write_index, write_shard
from support.provenance import token_provenance

MADE = token_provenance(codebook_size=9, shard_images=4)
OTHERS = (None, "many", "", -1, 0, 1, 2.5, True, 10**30, 10**12, [], [[]], {}, {"a": 1})
ABSENT = object()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A shard of three rows for each split."""
    columns = {"key": list("abc"), "view": [0] * 3, "mirrored": [False] * 3, "captions": [["रातो"]] * 3}
    shards = {
        split: [write_shard(tmp_path / f"{split}-00000.parquet", columns, np.array([[1, 2]] * 3), MADE, ["d: broken"])]
        for split in ("train", "validation")
    }
    write_index(tmp_path, ShardIndex(MADE, shards))
    return tmp_path


def places(node: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value in a JSON document."""
    yield path
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield from places(node[key], (*path, key))


def replaced(document: Any, path: tuple, value: Any) -> Any:
    if not path:
        return value
    changed = copy.deepcopy(document)
    *above, last = path
    node = changed
    for key in above:
        node = node[key]
    if value is ABSENT:
        del node[last]
    else:
        node[last] = value
    return changed


def fault_of(folder: Path) -> str | None:
    """What is wrong with the shards or with a row of them; None: nothing."""
    try:
        data = open_data(TokenShardsConfig(path=folder), "train", 8)
        for index in range(len(data)):
            data.pair(index, 0)
    except ValueError as error:
        return str(error)
    return None


def test_any_value_of_another_type_is_a_line_that_names_the_index(folder: Path) -> None:
    file = folder / "tokens.json"
    whole = json.loads(file.read_text(encoding="utf-8"))
    refused = 0
    for path in places(whole):
        for value in OTHERS if not path else (*OTHERS, ABSENT):
            file.write_text(json.dumps(replaced(whole, path, value)), encoding="utf-8")
            message = fault_of(folder)
            if message is None:
                continue
            refused += 1
            assert "\n" not in message and str(folder) in message, (path, value, message)
    assert refused > 200


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("shards", "train", 0, "rows"), "many", "shards: train.0: rows: expected an integer, got 'many'"),
        (("shards", "train", 0, "rows"), -3, "shards: train.0: rows is -3; it must be at least 0"),
        (("shards", "train", 0, "rows"), 10**9, "shards: train-00000.parquet has 1,000,000,000 rows, more than 4"),
        (("shards", "train", 0, "name"), "../a.parquet", "it must be that of a file in the folder"),
        (("shards",), [], "shards: expected a list of files for each split"),
        (("making", "grid"), [0, 8], "making: grid[0] is 0; it must be at least 1"),
        (("making", "mirror"), "no", "making: mirror: expected true or false, got 'no'"),
        ((), [], "expected format, making and shards"),
    ],
    ids=str,
)
def test_the_line_says_which_value(folder: Path, path: tuple, value: Any, reason: str) -> None:
    file = folder / "tokens.json"
    file.write_text(json.dumps(replaced(json.loads(file.read_text(encoding="utf-8")), path, value)), encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        open_data(TokenShardsConfig(path=folder), "train", 8)
    assert str(caught.value).startswith(f"{file} cannot be read (") and reason in str(caught.value)


def test_unreadable_indices_are_named(folder: Path) -> None:
    file = folder / "tokens.json"
    for content in (b"\xff\xfe", b"[" * 100_000, b'{"format": 1, "format": 1}', b"{"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"tokens.json cannot be read \(.*\): encode the data again") as caught:
            open_data(TokenShardsConfig(path=folder), "train", 8)
        assert "\n" not in str(caught.value)
    file.unlink()
    file.mkdir()
    with pytest.raises(ValueError, match=r"tokens.json cannot be read \(Is a directory\)"):
        open_data(TokenShardsConfig(path=folder), "train", 8)


def test_a_shard_with_a_damaged_list_of_bad_records_is_made_again(folder: Path) -> None:
    file = folder / "train-00000.parquet"
    assert existing_shard(file, MADE) is not None
    table = parquet.read_table(file)
    for bad in ("[", "{}", '"abc"', "[1]"):
        parquet.write_table(table.replace_schema_metadata({"image_tokenizer": "x", "bad": bad}), file)
        assert existing_shard(file, MADE) is None, bad
