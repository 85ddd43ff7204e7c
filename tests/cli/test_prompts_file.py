"""Files of prompts: what each format says, and what is wrong with a row in one line that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dalle.cli.prompts_file import PromptRow, read_prompts


def test_every_format_reads_the_same_prompts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a red heart\r\nलाल दिल\n", "utf-8")
    (tmp_path / "a.csv").write_text('prompt,seed,guidance\n"a red heart",7,2.5\nलाल दिल,,\n', "utf-8-sig")
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "a red heart", "seed": 7, "guidance": 2.5}\n\n{"prompt": "लाल दिल"}\n', "utf-8"
    )
    columns: dict[str, Any] = {"url": ["x", "y"], "prompt": ["a red heart", "लाल दिल"], "seed": [7, None]}
    pq.write_table(pa.table(columns | {"guidance": [2.5, float("nan")]}), tmp_path / "a.parquet")
    plain = read_prompts(tmp_path / "a.txt")
    assert plain == [PromptRow("line 1", "a red heart"), PromptRow("line 2", "लाल दिल")]
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        first, second = read_prompts(tmp_path / name)
        assert (first.prompt, first.seed, first.sampling) == ("a red heart", 7, {"guidance": 2.5})
        assert (second.prompt, second.seed, second.n, second.sampling) == ("लाल दिल", None, None, {})
    assert [row.place for row in read_prompts(tmp_path / "a.jsonl")] == ["line 1", "line 3"]


WRONG: dict[str, tuple[str, bytes, str]] = {
    "another ending": ("a.json", b"[]", "ends in .txt, .csv, .jsonl, .parquet"),
    "nothing": ("a.txt", b"", "has no prompt"),
    "a blank line": ("a.txt", b"a\n\nb\n", "line 2 is blank"),
    "not UTF-8": ("a.txt", b"a\n\xff\n", "not UTF-8 text"),
    "not JSON": ("a.jsonl", b'{"prompt": "a"}\n{', "line 2 is not JSON"),
    "a list": ("a.jsonl", b'["a"]', "line 1: expected an object"),
    "deep": ("a.jsonl", b'{"prompt": "a"}\n' + b"[" * 20_000, "line 2 is not JSON: it is nested too deeply"),
    "many digits": ("a.jsonl", b'{"prompt": "a", "seed": %s}' % (b"9" * 6000), "JSON: a number has too many digits"),
    "no number": ("a.jsonl", b'{"prompt": "a", "guidance": NaN}', "line 1 is not JSON: NaN is no number of JSON"),
    "many digits in a cell": ("a.csv", b"prompt,seed\na," + b"9" * 6000 + b"\n", "... (6,002 characters); it must be"),
    "no prompt": ("a.jsonl", b'{"seed": 1}', "prompt is missing"),
    "a number as prompt": ("a.jsonl", b'{"prompt": 3}', "prompt is 3, not text"),
    "a slip": ("a.jsonl", b'{"prompt": "a", "gidance": 3}', "unknown 'gidance'; known are prompt, seed"),
    "text as number": ("a.jsonl", b'{"prompt": "a", "guidance": "3"}', "guidance is '3'; it must be a number"),
    "half a seed": ("a.jsonl", b'{"prompt": "a", "seed": 1.5}', "seed is 1.5; it must be a whole number"),
    "yes": ("a.jsonl", b'{"prompt": "a", "n": true}', "n is True"),
    "text in a cell": ("a.csv", b"prompt,seed\na,seven\n", "row 1: seed is 'seven'"),
    "too many cells": ("a.csv", b"prompt,seed\na,1,2\n", "row 1 has not as many cells"),
    "too few cells": ("a.csv", b"prompt,seed\na,1\nb\n", "row 2 has not as many cells"),
    "an open quote": ("a.csv", b'prompt\n"a\n', "not CSV"),
    "two columns": ("a.csv", b"prompt,prompt\na,b\n", "line 1: 'prompt' is there twice"),
    "two keys": ("a.jsonl", b'{"prompt": "a", "seed": 1, "seed": 2}', "line 1: 'seed' is there twice"),
    "another header": ("a.csv", b"caption\na\n", "unknown 'caption'"),
    "not Parquet": ("a.parquet", b"PAR1" * 9, "not a Parquet file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_give_a_one_line_error(name: str, tmp_path: Path) -> None:
    file, content, message = WRONG[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match="a.") as error:
        read_prompts(tmp_path / file)
    assert message in str(error.value) and str(tmp_path / file) in str(error.value) and "\n" not in str(error.value)


def test_parquet_without_prompts_and_missing_file_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no column prompt, but caption"):
        read_prompts(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="none.txt cannot be read: No such file"):
        read_prompts(tmp_path / "none.txt")


def test_parquet_that_is_damaged_inside_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": [f"number {number}" * 9 for number in range(40)]}), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[:4] + b"\xff" * 300 + content[304:])
    with pytest.raises(ValueError, match="a.parquet is not a Parquet file, or is damaged: ") as error:
        read_prompts(tmp_path / "a.parquet")
    assert "\n" not in str(error.value)
