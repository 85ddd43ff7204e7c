"""Anole in both layouts writes the codes and logits of transformers' Chameleon, on random weights."""

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
from dalle.pipelines.sizes import sized
from dalle.text_tokenizers import JSONTokenizer
from support.native_decode import check_fused_step
from support.published.chameleon import (
    CODES,
    ROWS,
    WIDTH,
    WORDS,
    code_ids,
    letters,
    model_of,
    prompt,
    tokenizer,
    write_meta,
    write_transformers,
)
from support.published.language_models import CAPTIONS, TEXTS, byte_level, greedy

pytest.importorskip("transformers", reason='pip install "dalle[t5]"')
GREEDY = SamplingConfig(guidance=3.0, temperature=0.0)
GRID: dict[str, Any] = {"grid": ROWS}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    base = tmp_path_factory.mktemp("anole")
    own, same, few = model_of(False), model_of(True), model_of(False, layers=1, kv_heads=1)
    return {
        "transformers": (own, write_transformers(own, base / "a")),
        "meta": (same, write_meta(same, base / "b")),
        "one head of keys": (few, write_transformers(few, base / "c")),
    }


def next_logits(model: Any, ids: list[int]) -> Tensor:
    """Logits [T, V] behind each id; transformers' own head hides those of codes."""
    with torch.no_grad():
        return model.lm_head(model.model(input_ids=torch.tensor([ids])).last_hidden_state)[0]


@pytest.mark.parametrize("layout", ["transformers", "meta", "one head of keys"])
def test_logits_and_codes_are_those_of_transformers(layout: str, both: dict[str, tuple[Any, Path]]) -> None:
    reference, folder = both[layout]
    found = read_model(folder, None, GRID)
    model = dalle.load_model(folder, **GRID)
    assert found.text_tokenizer is not None and found.sampling == SamplingConfig(guidance=3, temperature=0.7, top_p=0.9)
    text = found.text_tokenizer.encode(CAPTIONS, model.config.text_length)
    codes = torch.randint(CODES, (2, ROWS**2), generator=torch.Generator().manual_seed(1))
    ids = code_ids()
    null = [0, tokenizer().token_to_id("<racm3:break>")]
    with torch.no_grad():
        ours, blank = model(text, codes), model(model.null_text(text), codes)
    for row, caption in enumerate(CAPTIONS):
        for got, front in ((ours[row], prompt(caption)), (blank[row], null)):
            wanted = next_logits(reference, front + ids[codes[row, :-1]].tolist())[len(front) - 1 :, ids]
            span = wanted.max() - wanted.min()
            assert (got - wanted).abs().max() < 2e-5 * span and span > 1
    drawn = generate(model, text, [[0], [1]], GREEDY).flatten(1)
    for row, caption in enumerate(CAPTIONS):
        wanted = greedy(lambda i: next_logits(reference, i)[-1], prompt(caption), null, ids, ROWS**2, 3.0)
        assert torch.equal(drawn[row], wanted) and len(wanted.unique()) > 1


@pytest.mark.parametrize("grid", [(4, 4), (2, 6)])
def test_lumina_has_sizes_in_the_prompt_and_ends_of_rows(
    grid: tuple[int, int], both: dict[str, tuple[Any, Path]], tmp_path: Path
) -> None:
    reference, columns = both["transformers"][0], grid[1]
    folder = write_transformers(reference, tmp_path / "Lumina-mGPT-7B-512")
    found = read_model(folder, None, GRID)
    one = tokenizer()
    assert found.text_tokenizer is not None and found.model.family == "a Lumina-mGPT (Chameleon)"
    assert found.sampling == SamplingConfig(guidance=4.0, top_k=2000)
    assert read_model(folder).model.config.grid == (32, 32)  # 512 pixels, by its name
    model, words = sized(dalle.load_model(folder, **GRID), found.text_tokenizer, 16, (16 * columns, 16 * grid[0]))
    assert model.config.row_ends and model.config.grid == grid and isinstance(words, JSONTokenizer)
    names = ("<racm3:break>", *(f"<reserved{8800 + side // 2:05d}>" for side in grid))  # height first
    start = [one.token_to_id(name) for name in names]
    line = one.token_to_id("<reserved08799>")

    def front(caption: str) -> list[int]:
        size = f"{16 * columns}x{16 * grid[0]}"  # width first
        text = f"Generate an image of {size} according to the following prompt:\n{caption}"
        return [0, *one.encode(text, add_special_tokens=False).ids, one.token_to_id("<reserved08706>"), *start]

    def rows(ids: list[int], length: int) -> list[int]:
        """With a new line behind each row of codes, as the project forces them."""
        tokens = ids[:length]
        for count, number in enumerate(ids[length:], 1):
            tokens += [number, line] if count % columns == 0 else [number]
        return tokens

    for text in TEXTS:
        assert words.encode_ragged([text])[0] == front(text), text
    text = words.encode(CAPTIONS, model.config.text_length)
    drawn = generate(model, text, [[0], [1]], SamplingConfig(guidance=4.0, temperature=0.0))
    assert drawn.shape[1:] == grid
    for row, caption in enumerate(CAPTIONS):
        prompt, null = front(caption), start
        codes: list[int] = []
        for _ in range(grid[0] * columns):
            drawn_ids = [int(code_ids()[code]) for code in codes]
            logits, blank = (
                next_logits(reference, rows(ids + drawn_ids, len(ids)))[-1, code_ids()] for ids in (prompt, null)
            )
            codes.append(int((blank + 4.0 * (logits - blank)).argmax()))
        assert drawn[row].flatten().tolist() == codes and len(set(codes)) > 1
    wrong = "both sides must be multiples of 32", "may be at most 4 times the shorter", "has more than 4,096 pixels"
    for size, message in zip(((48, 32), (160, 32), (96, 96)), wrong):
        with pytest.raises(ValueError, match=message):
            sized(model, words, 16, size)
    with pytest.raises(ValueError, match="rows of image tokens in multiples of 2"):
        read_model(folder, None, {"grid": 5})
    assert read_model(both["transformers"][1], "lumina", GRID).model.config.row_ends


def test_the_fused_step_has_the_norms_of_each_head(both: dict[str, tuple[Any, Path]]) -> None:
    model = dalle.load_model(both["transformers"][1], **GRID)
    text = torch.tensor([prompt("a fox")])
    codes = torch.randint(CODES, (1, ROWS**2), generator=torch.Generator().manual_seed(1))
    check_fused_step(model, text, codes)


def test_text_ids(both: dict[str, tuple[Any, Path]]) -> None:
    words = read_model(both["meta"][1], None, GRID).text_tokenizer
    assert words is not None
    for text in TEXTS:
        assert words.encode_ragged([text])[0] == prompt(text), text
    cut, whole = words.encode(["word " * 300], 64)[0].tolist(), prompt("word " * 300)
    assert cut == [*whole[:62], *whole[-2:]]
    assert words.decode([prompt("лиса, 12")]) == ["лиса, 12"]


def test_converted_it_draws_the_same(
    both: dict[str, tuple[Any, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = both["meta"][1]
    pipe = dalle.TextToImage.from_pretrained(folder, device="cpu", **GRID)
    flat: dict[str, Any] = {"temperature": 4.0, "top_p": 1.0}  # random weights are sure of few codes
    (result,) = pipe("a red fox", n=3, seed=5, **flat)
    assert main(["inspect", str(folder), "grid=4"]) == 0
    told = capsys.readouterr().out
    assert "an Anole (Chameleon)" in told and "Chameleon Research License" in told
    assert told.count("tokenizer: in these files") == 2
    assert main(["convert", str(folder), str(tmp_path / "ours"), "grid=4"]) == 0
    again = dalle.TextToImage.from_pretrained(tmp_path / "ours", device="cpu")
    assert again.model.config == pipe.model.config and again.sampling == pipe.sampling
    (same,) = again("a red fox", n=3, seed=5, **flat)
    assert torch.equal(same.codes, result.codes) and len(result.codes.unique()) > 4
    assert "not for commercial use" in (tmp_path / "ours/README.md").read_text()


def test_damaged_and_foreign_files_are_one_line_errors(both: dict[str, tuple[Any, Path]], tmp_path: Path) -> None:
    folder = write_transformers(both["transformers"][0], tmp_path / "a")
    state = load_file(folder / "model.safetensors")

    def refused(message: str, **changes: Tensor | None) -> None:
        new = {name: value for name, value in (state | changes).items() if value is not None}
        save_file(new, folder / "model.safetensors")
        with pytest.raises(ValueError, match=message) as caught:
            dalle.load_model(folder, **GRID)
        assert "\n" not in str(caught.value)

    norm = "model.layers.1.self_attn.k_norm.weight"
    refused(f"it has no tensor {norm}", **{norm: None})
    refused("its norms on queries and keys are", **{norm: torch.ones(3, 16)})
    refused("it has no tensor lm_head.weight", **{"lm_head.weight": None})
    refused("draws no images", **{"lm_head.weight": torch.zeros(WORDS, WIDTH)})
    refused("unknown tensor names", **{"model.layers.0.self_attn.q_proj.bias": torch.zeros(WIDTH)})
    names = ["<s>", "<pad>", "<racm3:break>", "<reserved08706>", letters(0), letters(2)]
    (folder / "tokenizer.json").write_text(byte_level(names, 300).to_str())
    refused("names 2 image codes .* not all from 0 on")
    (folder / "tokenizer.json").unlink()
    refused("has no tokenizer.json")
    write_transformers(both["transformers"][0], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"swin_norm": True}))
    refused("a Chameleon 30B")
