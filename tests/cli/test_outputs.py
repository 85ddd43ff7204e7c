"""Folders and files of commands: names of any script, never an old folder, whole files only."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from dalle.cli.outputs import check_folder, file_record, new_folder, slug
from dalle.files import write_text


def test_folder_names_are_slugs_of_any_script() -> None:
    assert slug("A red heart, 3d style!") == "a-red-heart-3d-style"
    assert slug("गुलाबी हात्ती") == "गुलाबी-हात्ती"
    assert slug("") == slug("?!") == "empty"
    assert slug("../../etc") == "etc"
    assert len(slug("ह" * 500).encode()) <= 60


def test_new_folders_never_reuse_old_ones(tmp_path: Path) -> None:
    made = [new_folder(tmp_path / "out", "a-cat") for _ in range(3)]
    assert [folder.name for folder in made] == ["a-cat", "a-cat-2", "a-cat-3"]


def test_folder_check_creates_nothing(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is not a folder that can be written"):
        check_folder(tmp_path / "file" / "out")


def test_file_record_has_the_sha256(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "लाल")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "लाल"
    assert file_record(tmp_path / "a.txt") == {"file": "a.txt", "sha256": hashlib.sha256("लाल".encode()).hexdigest()}
