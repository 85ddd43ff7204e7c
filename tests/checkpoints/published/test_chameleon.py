"""Anole in both layouts writes the codes and logits of transformers' Chameleon, on random weights."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import dalle
from dalle.__main__ import main
from dalle.checkpoints.published.models import read_model
from dalle.generation.cpu_step import FusedBlocks
from dalle.generation.generate import generate
from dalle.generation.options import SamplingConfig
from dalle.image_tokenizers import VQConfig
from dalle.pipelines.sizes import sized
from dalle.text_tokenizers import JSONTokenizer
from support.published.folders import vqgan
from support.published.language_models import CAPTIONS, TEXTS, byte_level, greedy, randomize

transformers = pytest.importorskip("transformers", reason='pip install "dalle[t5]"')
ROWS, CODES, WORDS, WIDTH, HEADS = 4, 24, 420, 64, 4
GREEDY = SamplingConfig(guidance=3.0, temperature=0.0)
GRID: dict[str, Any] = {"grid": ROWS}


def letters(code: int) -> str:
    return f"IMGIMG{''.join(chr(ord('A') + int(digit)) for digit in str(code))}Z"


@cache
def tokenizer() -> Any:
    names = [letters(code) for code in range(CODES)]
    random.Random(0).shuffle(names)  # ids need not sort as codes
    special = ["<s>", "<pad>", "</s>", "<unk>", *names, "<eoss>", "<racm3:break>", "<reserved08706>"]
    special += ["<reserved08799>", *(f"<reserved{8800 + number:05d}>" for number in range(20))]
    return byte_level(special, 400)


def model_of(same_norms: bool, layers: int = 2) -> Any:
    config = transformers.ChameleonConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=layers, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, rms_norm_eps=1e-5, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        vocabulary_map=tokenizer().get_vocab() | {"<image>": 28},
        vq_config={"base_channels": 32, "embed_dim": 8, "num_embeddings": CODES, "latent_channels": 8,
                   "resolution": 16, "channel_multiplier": [1, 1], "num_res_blocks": 1},
    )  # fmt: skip
    model = randomize(transformers.ChameleonForConditionalGeneration(config), scale=3.0)
    if same_norms:
        with torch.no_grad():
            for layer in model.model.layers:
                for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
                    norm.weight.copy_(norm.weight[:1].expand_as(norm.weight))
                    norm.bias.copy_(norm.bias[:1].expand_as(norm.bias))
    return model


@cache
def code_ids() -> Tensor:
    return torch.tensor([tokenizer().token_to_id(letters(code)) for code in range(CODES)])


def write_transformers(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    return folder


def interleaved(value: Tensor) -> Tensor:
    """Rows (or norm weights) of heads in the order in which neighbors turn together."""
    width = WIDTH // HEADS
    parts = value.unflatten(0, (-1, 2, width // 2))  # [heads, halves, D / 2, ...]
    return parts.transpose(1, 2).flatten(0, 2)


def write_meta(model: Any, folder: Path) -> Path:
    names = (
        (r"model\.embed_tokens\.", "tok_embeddings."),
        (r"lm_head\.", "output."),
        (r"(.+)self_attn\.([qkvo])_proj\.", r"\1attention.w\2."),
        (r"(.+)self_attn\.([qk])_norm\.", r"\1attention.\2_normalization."),
        (r"(.+)mlp\.gate_proj\.", r"\1feed_forward.w1."),
        (r"(.+)mlp\.down_proj\.", r"\1feed_forward.w2."),
        (r"(.+)mlp\.up_proj\.", r"\1feed_forward.w3."),
        (r"(.+)input_layernorm\.", r"\1attention_norm."),
        (r"(.+)post_attention_layernorm\.", r"\1ffn_norm."),
        (r"model\.norm\.", "norm."),
    )
    state = {"rope.freqs": torch.zeros(8)}
    for name, value in model.state_dict().items():
        if name.startswith("model.vqmodel."):
            continue
        pattern, replacement = next(pair for pair in names if re.match(pair[0], name))
        if "_norm." in name and "self_attn" in name:
            value = interleaved(value[0])
        elif "q_proj" in name or "k_proj" in name:
            value = interleaved(value)
        state[re.sub(pattern, replacement, name).removeprefix("model.")] = value.clone()
    (folder / "models/7b").mkdir(parents=True)
    torch.save(state, folder / "models/7b/consolidated.pth")
    params = {"dim": WIDTH, "n_layers": 2, "n_heads": HEADS, "norm_eps": 1e-5, "swin_norm": False, "rope_theta": 10000}
    (folder / "models/7b/params.json").write_text(json.dumps(params))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/text_tokenizer.json").write_text(tokenizer().to_str())
    quantizer = VQConfig(codebook_size=CODES, code_channels=8, distance="euclidean", update="gradient")
    torch.save({"state_dict": vqgan(quantizer)}, folder / "tokenizer/vqgan.ckpt")
    yaml = {"model": {"params": {"embed_dim": 8, "n_embed": CODES, "ddconfig": {"resolution": 2 * ROWS}}}}
    (folder / "tokenizer/vqgan.yaml").write_text(json.dumps(yaml))
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    base = tmp_path_factory.mktemp("anole")
    own, same = model_of(False), model_of(True)
    return {
        "transformers": (own, write_transformers(own, base / "a")),
        "meta": (same, write_meta(same, base / "b")),
    }


def prompt(caption: str) -> list[int]:
    one = tokenizer()
    ends = [one.token_to_id(name) for name in ("<reserved08706>", "<racm3:break>")]
    return [0, *one.encode(caption, add_special_tokens=False).ids, *ends]


def next_logits(model: Any, ids: list[int]) -> Tensor:
    """Logits [T, V] behind each id; transformers' own head hides those of codes."""
    with torch.no_grad():
        return model.lm_head(model.model(input_ids=torch.tensor([ids])).last_hidden_state)[0]


@pytest.mark.parametrize("layout", ["transformers", "meta"])
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
    with pytest.raises(ValueError, match="draws an even number of rows"):
        read_model(folder, None, {"grid": 5})
    assert read_model(both["transformers"][1], "lumina", GRID).model.config.row_ends


def test_the_fused_step_has_the_norms_of_each_head(both: dict[str, tuple[Any, Path]]) -> None:
    model = dalle.load_model(both["transformers"][1], **GRID)
    text = torch.tensor([prompt("a fox")])
    codes = torch.randint(CODES, (1, 9), generator=torch.Generator().manual_seed(1))
    blocks = FusedBlocks(model.transformer)
    with torch.no_grad():
        _, cache = model.prefill(text)
        whole = model.new_cache(1)
        whole.load_prefixes([cache])
        found = torch.stack([model.extend(codes[:, i : i + 1], whole, blocks)[0] for i in range(9)])
        if blocks.step is None:
            pytest.skip("no native code here")
        torch.testing.assert_close(found, model(text, codes)[0, 1:], atol=1e-4, rtol=1e-4)


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
    (folder / "tokenizer.json").write_text(
        byte_level(["<s>", "<pad>", "<racm3:break>", "<reserved08706>"], 300).to_str()
    )
    refused("names 0 image codes")
    (folder / "tokenizer.json").unlink()
    refused("has no tokenizer.json")
    write_transformers(both["transformers"][0], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"swin_norm": True}))
    refused("a Chameleon 30B")
