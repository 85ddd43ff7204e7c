"""Liquid writes the codes and logits of transformers' Gemma, on random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import dalle
from dalle.__main__ import main
from dalle.checkpoints.published.models import read_model
from dalle.generation.generate import generate
from dalle.generation.options import SamplingConfig
from support.published.chameleon import CODES
from support.published.language_models import CAPTIONS, TEXTS, greedy
from support.published.liquid import ROWS, model_of, prompt, tokenizer, write

pytest.importorskip("transformers", reason='pip install "dalle[t5]"')
GREEDY = SamplingConfig(guidance=7.0, temperature=0.0)
GRID: dict[str, Any] = {"grid": ROWS}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    model = model_of()
    return model, write(model, tmp_path_factory.mktemp("liquid"))


def next_logits(model: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


def test_logits_and_codes_are_those_of_transformers(published: tuple[Any, Path]) -> None:
    reference, folder = published
    found = read_model(folder, None, GRID)
    model, words = dalle.load_model(folder, **GRID), found.text_tokenizer
    assert words is not None and found.sampling == SamplingConfig(guidance=7, temperature=0.99, top_k=4096, top_p=0.96)
    text = words.encode(CAPTIONS, model.config.text_length)
    codes = torch.randint(CODES, (2, ROWS**2), generator=torch.Generator().manual_seed(1))
    one = tokenizer()
    ids = torch.arange(CODES) + one.get_vocab_size()
    null = [one.token_to_id(name) for name in ("<bos>", "<unconditional>", "<boi>")]
    with torch.no_grad():
        ours, blank = model(text, codes), model(model.null_text(text), codes)
    for row, caption in enumerate(CAPTIONS):
        for got, front in ((ours[row], prompt(caption)), (blank[row], null)):
            wanted = next_logits(reference, front + ids[codes[row, :-1]].tolist())[len(front) - 1 :, ids]
            span = wanted.max() - wanted.min()
            assert (got - wanted).abs().max() < 2e-5 * span and span > 1
    drawn = generate(model, text, [[0], [1]], GREEDY).flatten(1)
    for row, caption in enumerate(CAPTIONS):
        wanted = greedy(lambda i: next_logits(reference, i)[-1], prompt(caption), null, ids, ROWS**2, 7.0)
        assert torch.equal(drawn[row], wanted) and len(wanted.unique()) > 2


def test_text_ids(published: tuple[Any, Path]) -> None:
    words = read_model(published[1], None, GRID).text_tokenizer
    assert words is not None
    for text in TEXTS:
        assert words.encode_ragged([text])[0] == prompt(text), text
    assert words.decode([prompt("лиса, 12")]) == ["лиса, 12"]


def test_converted_it_draws_the_same(
    published: tuple[Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = published[1]
    pipe = dalle.TextToImage.from_pretrained(folder, device="cpu", **GRID)
    (result,) = pipe("a red fox", n=3, seed=5)
    assert main(["inspect", str(folder), "grid=4"]) == 0
    told = capsys.readouterr().out
    assert "a Liquid (Gemma)" in told and "Gemma Terms of Use" in told
    assert told.count("tokenizer: in these files") == 2
    assert main(["convert", str(folder), str(tmp_path / "ours"), "grid=4"]) == 0
    again = dalle.TextToImage.from_pretrained(tmp_path / "ours", device="cpu")
    assert again.model.config == pipe.model.config and again.sampling == pipe.sampling
    (same,) = again("a red fox", n=3, seed=5)
    assert torch.equal(same.codes, result.codes) and len(result.codes.unique()) > 4
    assert "Gemma Terms of Use" in (tmp_path / "ours/README.md").read_text()


def test_damaged_and_foreign_files_are_one_line_errors(published: tuple[Any, Path], tmp_path: Path) -> None:
    folder = write(published[0], tmp_path / "a")
    state = load_file(folder / "model.safetensors")

    def refused(message: str, **changes: Tensor | None) -> None:
        new = {name: value for name, value in (state | changes).items() if value is not None}
        save_file(new, folder / "model.safetensors")
        with pytest.raises(ValueError, match=message) as caught:
            dalle.load_model(folder, **GRID)
        assert "\n" not in str(caught.value)

    norm = "model.layers.1.input_layernorm.weight"
    refused(f"missing: {norm}", **{norm: None})
    table = state["model.embed_tokens.weight"]
    refused("a Gemma with .* words and no image codes", **{"model.embed_tokens.weight": table[:-CODES].clone()})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    refused("its activation is 'relu'")
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    refused("it is a language model")
