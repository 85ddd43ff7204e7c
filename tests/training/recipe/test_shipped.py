"""Recipes by name: every one that ships has one, a file comes first, a slip is told of."""

from __future__ import annotations

from pathlib import Path

import pytest

import train
from dalle.config import ConfigError
from dalle.files import ROOT
from dalle.training.recipe.shipped import find_recipe, shipped_recipes


def test_every_shipped_recipe_has_a_name() -> None:
    names = shipped_recipes()
    files = {*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "tokenizers").rglob("config.yaml")}
    assert set(names.values()) == {file for file in files if file.parent.name != "accelerate"}
    assert names["emoji/dalle"] == ROOT / "configs/emoji/dalle.yaml"
    assert names["emoji-bpe"] == ROOT / "tokenizers/emoji-bpe/config.yaml"
    assert all(find_recipe(name) == file for name, file in names.items())


def test_files_come_before_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("shapes/bpe") == find_recipe(Path("configs/shapes/bpe.yaml")) == ROOT / "configs/shapes/bpe.yaml"
    for name in ("shapes/bpe", "configs/shapes/bpe.yaml"):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_text("stage: text_tokenizer")
        assert find_recipe(name) == Path(name)


def test_misspelled_recipe_suggests_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"emoji/dall: .* did you mean emoji/dalle\? those that ship: emoji/clip, "):
        find_recipe("emoji/dall")
    assert train.main(["absent.yaml"]) == 2
    assert capsys.readouterr().err == "train.py: absent.yaml: no such file\n"
    shipped = r"^configs/emoji/dale\.yaml: no such file; did you mean configs/emoji/dalle\.yaml\?$"
    with pytest.raises(ConfigError, match=shipped):
        find_recipe("configs/emoji/dale.yaml")  # one that ships, from another folder
    Path("mine.yaml").write_text("stage: dalle")
    with pytest.raises(ConfigError, match=r"^mime\.yaml: no such file; did you mean mine\.yaml\?$"):
        find_recipe("mime.yaml")
