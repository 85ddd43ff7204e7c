"""Emu3.5 writes the codes and logits of transformers' Qwen3, whose block it has, on random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

import dalle
from dalle.checkpoints.published import emu35, llama
from dalle.checkpoints.published.models import read_model
from dalle.checkpoints.published.summary import without_weights
from dalle.generation.options import SamplingConfig
from dalle.models.dalle import DALLE
from support.published.autoencoders import decode, random_state
from support.published.emu3 import CODES, EXTRA, ranks, special, write_words
from support.published.emu35 import HEAD, ROWS, image_state, null, prompt, reference, write
from support.published.language_models import (
    CAPTIONS,
    TEXTS,
    check_converted,
    check_image,
    check_logits_between_row_ends,
    greedy,
)

transformers = pytest.importorskip("transformers", reason='pip install "dalle[t5]"')
pytest.importorskip("regex")
GRID: dict[str, Any] = {"grid": ROWS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("models") / "Emu3.5-Image")


def next_logits(ids: list[int]) -> Tensor:
    with torch.no_grad():
        return reference()(input_ids=torch.tensor([ids])).logits[0]


def codes_of(caption: str, rows: int, columns: int) -> Tensor:
    ids = torch.arange(CODES) + special("<|visual token 000000|>")
    fronts = prompt(caption, rows, columns), null(rows, columns)
    end = columns, special("<|extra_200|>")
    found = greedy(lambda tokens: next_logits(tokens)[-1], *fronts, ids, rows * columns, 5.0, end)
    return found.view(rows, columns)


def test_logits_are_those_of_transformers(folder: Path) -> None:
    found = read_model(folder, None, GRID)
    model, words = dalle.load_model(folder, **GRID), found.text_tokenizer
    assert words is not None and found.model.family == "an Emu3.5"
    shape = model.config.transformer
    assert shape.qk_norm and shape.qk_norm_kind == "rms" and (shape.kv_heads, shape.head_width) == (2, HEAD)
    for text in TEXTS:
        assert words.encode_ragged([text])[0] == prompt(text), text
    assert model.config.null_ids == tuple(null())  # two spaces where the caption was
    ids = torch.arange(CODES) + special("<|visual token 000000|>")
    text = words.encode(CAPTIONS, model.config.text_length)
    fronts = [(prompt(caption), null()) for caption in CAPTIONS]
    check_logits_between_row_ends(model, text, fronts, ids, (ROWS, special("<|extra_200|>")), next_logits)


@pytest.mark.parametrize("grid", [(4, 4), (2, 5)])
def test_images_are_those_of_transformers_and_slow_modules(grid: tuple[int, int], folder: Path) -> None:
    pipe = dalle.TextToImage.from_pretrained(folder, device="cpu", **GRID)
    assert pipe.sampling == SamplingConfig(guidance=5.0, top_k=5120)
    size = 2 * grid[1], 2 * grid[0]
    for result, caption in zip(pipe(CAPTIONS, size=size, temperature=0.0), CAPTIONS):
        wanted = codes_of(caption, *grid)
        assert torch.equal(result.codes[0], wanted) and len(wanted.unique()) > 2
        check_image(result.images[0], size, decode(image_state(), wanted[None]))


def test_sampling_is_the_projects(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "BAAI-Emu3.5").symlink_to(folder)
    (tmp_path / "mine").symlink_to(folder)
    assert read_model(tmp_path / "BAAI-Emu3.5", None, GRID).sampling == SamplingConfig(guidance=2.0, top_k=5120)
    assert read_model(tmp_path / "mine", "emu35", GRID).sampling.guidance == 5.0
    assert read_model(folder).model.config.grid == (64, 64)


def test_converted_it_draws_the_same(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_converted(folder, tmp_path / "ours", 4, "10x4", "an Emu3.5", capsys)


def test_at_full_size_all_tensors_fit(tmp_path: Path) -> None:
    config = transformers.Qwen3Config(
        vocab_size=282_926, hidden_size=5120, intermediate_size=25600, num_hidden_layers=64, num_attention_heads=64,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        whole = transformers.Qwen3ForCausalLM(config)
    assert sum(value.numel() for value in whole.parameters()) == 34_103_460_864
    tensors = {name: torch.ones(()).expand(value.shape) for name, value in whole.state_dict().items()}
    write_words(tmp_path, 131_072)
    found = emu35.load(llama.Files(tmp_path, tmp_path, tensors, {"model_type": "Emu3"}, {}))
    module = without_weights(found.model.config)
    assert isinstance(module, DALLE) and module.config.image_vocab == 131_072 and not found.model.dropped
    found.model.check(module, "full size")
    # All but the rows of ids that no prompt and no image have, here nearly all of the words, and the text head
    kept = len(ranks()) + len(EXTRA) + 3
    words = 282_926 * 2 - kept - (131_072 + 1) - 131_072
    assert sum(value.numel() for value in module.parameters()) == 34_103_460_864 - words * 5120


def test_damaged_and_foreign_files_are_one_line_errors(folder: Path, tmp_path: Path) -> None:
    def refused(message: str, source: Path, **options: Any) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            dalle.TextToImage.from_pretrained(source, device="cpu", **{**GRID, **options})
        assert "\n" not in str(caught.value)

    copy = write(tmp_path / "copy")
    refused("no language model that draws of the family emu3:", copy, family="emu3")
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {"model_type": "qwen3"}))
    refused("a language model that draws no images", copy)
    (copy / "config.json").write_text(json.dumps(settings))
    # The image tokenizer of another model, with other codes
    other = tmp_path / "other"
    other.mkdir()
    torch.save(random_state([32, 64], 1, (1,), 8, CODES + 1, 8), other / "model.ckpt")
    sizes = {"n_embed": CODES + 1, "embed_dim": 8, "ddconfig": {}}
    (other / "config.yaml").write_text(yaml.safe_dump(sizes))
    refused("use the one that it was trained with", copy, image_tokenizer=other)
    shard = copy / "model-00001-of-00002.safetensors"
    state = load_file(shard)
    name = next(name for name in state if name.endswith(("k_norm.weight", "q_norm.weight")))
    save_file({key: value for key, value in state.items() if key != name}, shard)
    refused(f"missing: .*{name}", copy)
    shard.unlink()
    refused("model-00001-of-00002.safetensors, which is not there", copy)
