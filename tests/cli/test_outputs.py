"""Folders and files of commands: names of any script, never an old folder, whole files only."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
from pathlib import Path

import pytest

from dalle.cli.outputs import ScoresFile, file_record, new_file, new_folder, slug
from dalle.cli.sample_parts import Kind, SampledImage, new_part
from dalle.files import write_text
from support.file_limits import files_of_at_most


def test_folder_names_are_slugs_of_any_script() -> None:
    assert slug("A red heart, 3d style!") == "a-red-heart-3d-style"
    assert slug("गुलाबी हात्ती") == "गुलाबी-हात्ती"
    assert slug("") == slug("?!") == "empty"
    assert slug("../../etc") == "etc"
    assert slug("\u2764\ufe0f") == "heavy-black-heart"  # not the invisible mark alone, nor "empty"
    assert slug("\U0001f525!") == "fire"
    assert slug("a \u2764\ufe0f") == "a"
    assert len(slug("ह" * 500).encode()) <= 60


def test_new_folders_never_reuse_old_ones(tmp_path: Path) -> None:
    made = [new_folder(tmp_path / "out", "a-cat") for _ in range(3)]
    assert [folder.name for folder in made] == ["a-cat", "a-cat-2", "a-cat-3"]


def test_new_files_never_replace_old_ones(tmp_path: Path) -> None:
    (tmp_path / "row-2.png").symlink_to("nowhere")
    (tmp_path / "row-3.png").mkdir()
    made = []
    for _ in range(2):
        with new_file(tmp_path / "row.png") as file:
            made.append(file.name)
            assert file.is_file()
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "row.png"):
        raise KeyboardInterrupt
    assert made == ["row.png", "row-4.png"]
    assert sorted(os.listdir(tmp_path)) == ["row-2.png", "row-3.png", "row-4.png", "row.png"]


def test_file_record_has_the_sha256(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "लाल")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "लाल"
    assert file_record(tmp_path / "a.txt") == {"file": "a.txt", "sha256": hashlib.sha256("लाल".encode()).hexdigest()}


def test_scores_file_is_valid_json_after_every_append(tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    scores = ScoresFile(file, {"model": "a", "options": {"top_k": None}})
    written = [{"file": f"{i}.png", "prompt": "लाल\n", "score": None if i == 2 else 0.5} for i in range(6)]
    before = b""
    for number in range(0, 6, 2):
        scores.append(written[number : number + 2], {"steps": number + 1})
        content = json.loads(file.read_text(encoding="utf-8"))
        expected = {"model": "a", "options": {"top_k": None}, "images": written[: number + 2], "steps": number + 1}
        assert content == expected
        assert file.read_bytes().startswith(before), "what was written stays"
        before = file.read_bytes().rpartition(b"\n  ]")[0]


def test_scores_file_is_as_before_after_a_failed_append(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk takes the first bytes of a write; Ctrl-C may come after all of them."""
    file, write = tmp_path / "scores.json", ScoresFile._write
    scores = ScoresFile(file, {"model": "a"})
    failures: list[BaseException] = []

    def failing(self: ScoresFile, content: bytes) -> None:
        if not failures:
            return write(self, content)
        error = failures.pop()
        write(self, content[: 10 if isinstance(error, OSError) else None])
        raise error

    monkeypatch.setattr(ScoresFile, "_write", failing)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    failures.append(full)
    with pytest.raises(OSError, match="scores.json"):
        scores.append([{"file": "0.png"}], {"steps": 1})
    assert not file.exists()
    scores.append([{"file": "0.png"}], {"steps": 1})
    before = file.read_bytes()
    for error in (full, KeyboardInterrupt()):
        failures.append(error)
        with pytest.raises(type(error)):
            scores.append([{"file": "1.png"}], {"steps": 20})
        assert file.read_bytes() == before
    scores.append([{"file": "1.png"}], {"steps": 20})
    found = json.loads(file.read_text())
    assert found == {"model": "a", "images": [{"file": "0.png"}, {"file": "1.png"}], "steps": 20}


@pytest.mark.parametrize(
    ("kind", "name"), [("folders", "0/00000000-00-seed5.png"), ("shards", "0.tar"), ("parquet", "0.parquet")]
)
def test_part_on_a_full_disk_names_its_file(kind: Kind, name: str, tmp_path: Path) -> None:
    image = SampledImage(0, 0, "a dog", 5, {"score": None}, {}, random.Random(0).randbytes(9000))
    with files_of_at_most(4000), pytest.raises(OSError) as caught, new_part(tmp_path, "0", kind) as part:
        part.add([image])
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / name))
    assert caught.value.strerror == os.strerror(errno.EFBIG)


def test_names_are_what_the_locale_can_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    assert [slug("केरा"), slug("a red केरा on ice"), slug("")] == ["prompt", "a-red--on-ice", "empty"]
