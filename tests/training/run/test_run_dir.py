"""The folder of a run: what is recorded of its data, and what an attempt that saved nothing leaves behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
from accelerate import Accelerator

from dalle.config import from_dict, read_yaml, to_dict
from dalle.data import location
from dalle.data.custom.config import CustomConfig
from dalle.training.recipe import PriorRecipe
from dalle.training.run.run_dir import describe, open_run_dir
from support.short_runs import TWO_STEPS

MODEL = {"transformer": {"width": 16, "depth": 1, "heads": 2}, "embed_dim": 8, "text_width": 16, "text_length": 12}


def recipe(data: Path, run: Path, **changes: object) -> PriorRecipe:
    content = {"stage": "prior", "model": MODEL | {"kind": "diffusion"}, "data": {"kind": "pairs", "path": str(data)}}
    options = TWO_STEPS | {"clip": "", "run": TWO_STEPS["run"] | {"dir": str(run)}}
    return from_dict(PriorRecipe, content | options | changes, "recipe")


def data_hash(data: Path, run: Path) -> str:
    run.mkdir(exist_ok=True)
    describe(recipe(data, run))
    found = read_yaml(run / "origin.yaml")["data_sha256"]
    assert isinstance(found, str)
    return found


def test_names_of_data_that_are_not_utf_8_are_hashed_by_their_bytes(tmp_path: Path) -> None:
    names = [b"ordinary", b"caf\xe9", b"caf\xe8"]
    folders = [Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)) for name in names]
    for folder, name in zip(folders, names, strict=True):
        folder.mkdir()
        (folder / os.fsdecode(name + b".png")).write_bytes(b"1234")
    hashes = [data_hash(folder, tmp_path / "run") for folder in folders]
    assert len(set(hashes)) == 3
    config = recipe(folders[0], tmp_path / "run").data
    assert isinstance(config, CustomConfig) and location(config) == folders[0]
    content = json.dumps(to_dict(config), sort_keys=True, ensure_ascii=False) + "ordinary.png\x004\n"
    assert hashes[0] == hashlib.sha256(content.encode()).hexdigest()


def test_data_in_folders_without_permission_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data/own").mkdir(parents=True)
    (tmp_path / "data/a.png").write_bytes(b"1234")
    expected = data_hash(tmp_path / "data", tmp_path / "run")
    (tmp_path / "data/own/b.png").write_bytes(b"1234")
    stat = os.stat

    def refusing(path: object, *args: object, **kwargs: object) -> os.stat_result:
        if str(path) == str(tmp_path / "data/own/b.png"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *args, **kwargs)  # type: ignore[arg-type,call-overload,no-any-return]

    monkeypatch.setattr(os, "stat", refusing)
    assert data_hash(tmp_path / "data", tmp_path / "run") == expected


@pytest.mark.parametrize("saved", [False, True])
def test_only_a_run_that_resumes_compares_its_data(saved: bool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "data.json").write_text("{}")
    if saved:
        (run / "checkpoints/step-00000001").mkdir(parents=True)
    lock, resumes = open_run_dir(recipe(tmp_path, run, resume=saved), Accelerator(cpu=True))
    with lock:
        assert resumes == saved == (run / "data.json").exists()
