"""Lumina-mGPT 2.0 writes the codes and logits of transformers' Chameleon, on random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dalle
from dalle.checkpoints.published import llama, lumina2
from dalle.checkpoints.published.models import read_model
from dalle.checkpoints.published.summary import without_weights
from dalle.generation.options import SamplingConfig
from support.published.autoencoders import decode, random_state
from support.published.language_models import (
    CAPTIONS,
    TEXTS,
    byte_level,
    check_converted,
    check_image,
    check_logits_between_row_ends,
    greedy,
)
from support.published.lumina2 import (
    CELL,
    CODES,
    ROWS,
    SPECIAL,
    config_of,
    first,
    id_of,
    image_state,
    prompt,
    published,
    reference,
    start,
    tokenizer,
    write,
)

transformers = pytest.importorskip("transformers", reason='pip install "dalle[t5]"')
GRID: dict[str, Any] = {"grid": ROWS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("lumina"))


def next_logits(ids: list[int]) -> Tensor:
    """transformers' own head hides the logits of codes."""
    with torch.no_grad():
        return reference().lm_head(reference().model(input_ids=torch.tensor([ids])).last_hidden_state)[0]


def test_logits_are_those_of_transformers(folder: Path) -> None:
    found = read_model(folder, None, GRID)
    model, words = dalle.load_model(folder, **GRID), found.text_tokenizer
    assert words is not None and found.model.family == "a Lumina-mGPT 2.0 (Chameleon)"
    assert found.sampling == SamplingConfig(guidance=4.0, top_k=4096) and read_model(folder).model.config.grid == (
        96,
        96,
    )
    for text in TEXTS:
        assert words.encode_ragged([text])[0] == prompt(text), text
    ids = torch.arange(CODES) + first()
    text = words.encode(CAPTIONS, model.config.text_length)
    fronts = [(prompt(caption), start(ROWS, ROWS)) for caption in CAPTIONS]
    check_logits_between_row_ends(model, text, fronts, ids, (ROWS, id_of("<reserved08799>")), next_logits)


@pytest.mark.parametrize("grid", [(8, 8), (4, 12)])
def test_images_are_those_of_transformers_and_slow_modules(grid: tuple[int, int], folder: Path) -> None:
    pipe = dalle.TextToImage.from_pretrained(folder, device="cpu", **GRID)
    rows, columns = grid
    size = CELL * columns, CELL * rows
    ids, end = torch.arange(CODES) + first(), (columns, id_of("<reserved08799>"))
    for result, caption in zip(pipe(CAPTIONS, size=size, temperature=0.0), CAPTIONS):
        fronts = prompt(caption, rows, columns), start(rows, columns)
        wanted = greedy(lambda tokens: next_logits(tokens)[-1], *fronts, ids, rows * columns, 4.0, end).view(
            rows, columns
        )
        assert torch.equal(result.codes[0], wanted) and len(wanted.unique()) > 2
        check_image(result.images[0], size, decode(image_state(), wanted[None]))


def test_converted_it_draws_the_same(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_converted(folder, tmp_path / "ours", 8, "96x32", "a Lumina-mGPT 2.0", capsys)


def test_at_full_size_all_tensors_fit(tmp_path: Path) -> None:
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    with torch.device("meta"):
        whole = transformers.ChameleonForConditionalGeneration(
            config_of(171_384, **sizes, num_attention_heads=32, num_key_value_heads=32)
        )
    tensors = {name: torch.ones(()).expand(value.shape) for name, value in published(whole).items()}
    count = sum(value.numel() for value in tensors.values())
    assert round(count / 1e7) == 788  # 7.88 B
    (tmp_path / "tokenizer.json").write_text(tokenizer().to_str())
    found = lumina2.load(llama.Files(tmp_path, tmp_path, tensors, {"vocab_size": 171_384}, {}))
    module = without_weights(found.model.config)
    assert found.model.config.image_vocab == 16_384 and found.model.config.text_vocab == 155_000
    found.model.check(module, "full size")
    # Without the text head, and with a row of the table for the row ends beside those of the codes
    assert sum(value.numel() for value in module.parameters()) == count - (155_000 - 1) * 4096


def test_names_of_codes_in_the_tokenizer_are_left_out(folder: Path, tmp_path: Path) -> None:
    tree = json.loads(tokenizer().to_str())
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    entry = dict(tree["added_tokens"][-1], id=first() + 3, content="<code 3>")
    longer = json.dumps(tree | {"added_tokens": [*tree["added_tokens"], entry]}).encode()
    assert json.loads(lumina2._only_words(longer, first())) == tree


def test_damaged_and_foreign_files_are_one_line_errors(folder: Path, tmp_path: Path) -> None:
    def refused(message: str, source: Path, **options: Any) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            dalle.TextToImage.from_pretrained(source, device="cpu", **{**GRID, **options})
        assert "\n" not in str(caught.value)

    copy = write(tmp_path / "copy")
    refused("in multiples of 4", copy, grid=6)
    refused("of the family chameleon", copy, family="chameleon")
    other = tmp_path / "movqgan.ckpt"
    torch.save(random_state([32, 32, 32, 64], 1, (3,), 4, CODES + 1, 4, modulated=True), other)
    refused("use the one that it was trained with", copy, image_tokenizer=other)
    # The words of Qwen alone, without those of the project
    plain = byte_level(SPECIAL[:3], 330)
    words = (copy / "tokenizer.json").read_text()
    (copy / "tokenizer.json").write_text(plain.to_str())
    refused("this tokenizer.json has no token '<", copy)
    (copy / "tokenizer.json").write_text(words)
    (copy / "model-00002-of-00002.safetensors").unlink()
    refused("model-00002-of-00002.safetensors, which is not there", copy)
