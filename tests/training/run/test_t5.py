"""A DALL-E that reads features of a T5 is trained and resumed, by policy optimization too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import train
from support.published.folders import T5_WIDTH, t5
from support.tiny_model import DALLE_MODEL, dalle_recipe

for package in ("transformers", "bs4", "ftfy"):
    pytest.importorskip(package, reason='pip install "dalle[t5]"')


@pytest.mark.parametrize("grpo", [None, {"candidates": 2}], ids=["plain", "grpo"])
def test_a_t5_as_published_is_trained_on(
    grpo: dict[str, int] | None, tiny_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, run = t5(tmp_path / "t5"), tmp_path / "run"
    model = {name: value for name, value in DALLE_MODEL.items() if name != "text_vocab"}
    recipe = dalle_recipe(
        tiny_parts,
        run,
        model=model | {"text_features": T5_WIDTH, "text_head": False},
        text_tokenizer=str(encoder),
        clip=str(tiny_parts / "clip"),
        grpo=grpo,
    )
    recipe["run"] |= {"device": "cpu", "tracker": "none"}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    assert train.main([str(tmp_path / "recipe.json")]) == 0, capsys.readouterr().err
    before = yaml.safe_load((run / "origin.yaml").read_text())["parts_sha256"]
    assert before.keys() == {"text_tokenizer", "image_tokenizer", "clip"}
    assert train.main([str(tmp_path / "recipe.json"), "resume=true", "run.steps=2"]) == 0
    (encoder / "config.json").write_text((encoder / "config.json").read_text() + "\n")
    assert train.main([str(tmp_path / "recipe.json"), "resume=true", "run.steps=3"]) == 2
    assert "is not the one that the run in" in capsys.readouterr().err
