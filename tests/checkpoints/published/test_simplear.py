"""SimpleAR writes the codes and logits of transformers' Qwen2, on random weights."""

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
from dalle.generation.options import EngineOptions, SamplingConfig
from dalle.models.dalle import DALLE
from support.native_decode import check_fused_step
from support.published import simplear
from support.published.language_models import CAPTIONS, TEXTS, greedy
from support.published.simplear import CODES, ROWS, null, prompt

pytest.importorskip("transformers", reason='pip install "dalle[t5]"')
GREEDY = SamplingConfig(guidance=6.0, temperature=0.0)
GRID: dict[str, Any] = {"grid": ROWS}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    base = tmp_path_factory.mktemp("simplear")
    tied, apart = simplear.model_of(), simplear.model_of(tied=False)
    return {
        "one file": (tied, simplear.write(tied, base / "a")),
        "shards": (apart, simplear.write(apart, base / "b", shards=2)),
    }


def next_logits(model: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("layout", ["one file", "shards"])
def test_logits_and_codes_are_those_of_transformers(layout: str, both: dict[str, tuple[Any, Path]]) -> None:
    reference, folder = both[layout]
    found = read_model(folder, None, GRID)
    model, words = dalle.load_model(folder, **GRID), found.text_tokenizer
    assert words is not None and found.sampling == SamplingConfig(guidance=6.0)
    shape = model.config.transformer
    assert (shape.biases, shape.kv_heads, shape.heads, model.config.rope_base) == ("qkv", 1, 7, 1e6)
    assert model.config.null_ids == tuple(null()) and len(null()) not in {len(prompt(text)) for text in CAPTIONS}
    ids = torch.arange(CODES) + simplear.tokenizer().get_vocab_size()
    text = words.encode(CAPTIONS, model.config.text_length)
    codes = torch.randint(CODES, (2, ROWS**2), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, blank = model(text, codes), model(model.null_text(text), codes)
    for row, caption in enumerate(CAPTIONS):
        for got, front in ((ours[row], prompt(caption)), (blank[row], null())):
            wanted = next_logits(reference, front + ids[codes[row, :-1]].tolist())[len(front) - 1 :, ids]
            span = wanted.max() - wanted.min()
            assert (got - wanted).abs().max() < 2e-5 * span and span > 1
    several = (EngineOptions(), EngineOptions(window=5), EngineOptions(batch_size=1))
    for engine in several if layout == "one file" else several[:1]:
        drawn = generate(model, text, [[0], [1]], GREEDY, engine).flatten(1)
        for row, caption in enumerate(CAPTIONS):
            wanted = greedy(lambda i: next_logits(reference, i)[-1], prompt(caption), null(), ids, ROWS**2, 6.0)
            assert torch.equal(drawn[row], wanted) and len(wanted.unique()) > 2


def test_the_fused_step_has_grouped_heads_and_their_biases(both: dict[str, tuple[Any, Path]]) -> None:
    model = dalle.load_model(both["one file"][1], **GRID)
    text = torch.tensor([prompt("a fox")])
    codes = torch.randint(CODES, (1, ROWS**2), generator=torch.Generator().manual_seed(1))
    check_fused_step(model, text, codes)


def test_text_ids(both: dict[str, tuple[Any, Path]], tmp_path: Path) -> None:
    folder = both["one file"][1]
    words = read_model(folder, None, GRID).text_tokenizer
    assert words is not None
    for text in TEXTS:
        assert words.encode_ragged([text])[0] == prompt(text), text
    cut, whole = words.encode(["word " * 300], 64)[0].tolist(), prompt("word " * 300)
    assert cut == [*whole[:63], whole[-1]] and words.decode([prompt("лиса, 12")]) == ["лиса, 12"]
    # The same in the files that transformers' slow tokenizers write
    slow = simplear.write(both["one file"][0], tmp_path / "slow")
    content = json.loads((slow / "tokenizer.json").read_text())
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in content["model"]["merges"]]
    (slow / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (slow / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (slow / "added_tokens.json").write_text(json.dumps({e["content"]: e["id"] for e in content["added_tokens"]}))
    (slow / "tokenizer.json").unlink()
    again = read_model(slow, None, GRID).text_tokenizer
    assert again is not None and again.encode_ragged(TEXTS) == words.encode_ragged(TEXTS)


def test_a_negative_prompt_takes_the_place_of_its_own(both: dict[str, tuple[Any, Path]]) -> None:
    reference, folder = both["one file"]
    images = folder / "DV8x16x16"
    pipe = dalle.TextToImage.from_pretrained(folder, device="cpu", image_tokenizer=images, **GRID)
    (plain,), (same,) = (pipe("a fox", temperature=0.0, negative=n) for n in (None, simplear.NEGATIVE))
    assert torch.equal(plain.codes, same.codes)
    (other,) = pipe("a fox", temperature=0.0, negative="blurry")
    ids = torch.arange(CODES) + simplear.tokenizer().get_vocab_size()
    wanted = greedy(lambda i: next_logits(reference, i)[-1], prompt("a fox"), null("blurry"), ids, ROWS**2, 6.0)
    assert torch.equal(other.codes.flatten(), wanted)


def test_smaller_squares_are_drawn_as_transformers_draws_them(both: dict[str, tuple[Any, Path]]) -> None:
    reference, folder = both["one file"]
    pipe = dalle.TextToImage.from_pretrained(folder, device="cpu", image_tokenizer=folder / "DV8x16x16", **GRID)
    (result,) = pipe("a fox", temperature=0.0, size="48x48")
    ids = torch.arange(CODES) + simplear.tokenizer().get_vocab_size()
    wanted = greedy(lambda i: next_logits(reference, i)[-1], prompt("a fox"), null(), ids, 9, 6.0)
    assert torch.equal(result.codes.flatten(), wanted) and result.images[0].size == (48, 48)
    with pytest.raises(ValueError, match="size is 48x64: this model draws square images only"):
        pipe("a fox", size="48x64")


def test_the_commands_sample_inspect_and_convert(
    both: dict[str, tuple[Any, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = both["shards"][1]
    images = folder / "DV8x16x16"
    pipe = dalle.TextToImage.from_pretrained(folder, device="cpu", image_tokenizer=images, **GRID)
    flat: dict[str, Any] = {"n": 3, "seed": 5, "temperature": 4.0}  # random weights are sure of few codes
    (result,) = pipe("a red fox", **flat)
    assert pipe.image_tokenizer.factor == 16 and result.images[0].size == (16 * ROWS, 16 * ROWS)
    source = ["--model", str(folder), "--image-tokenizer", str(images), "--given", f"grid={ROWS}"]
    few = ["--n", "1", "--no-grid", "--device", "cpu", "--dtype", "int8", "--out", str(tmp_path / "drawn")]
    assert main(["sample", "a fox", *source, *few]) == 0 and len(list(tmp_path.glob("drawn/*/*.png"))) == 1
    capsys.readouterr()
    assert main(["inspect", str(folder), "grid=4"]) == 0
    told = capsys.readouterr().out
    parameters = sum(parameter.numel() for parameter in pipe.model.parameters())
    assert "a SimpleAR (Qwen2.5)" in told and f"- parameters: {parameters:,}, " in told and "guidance 6" in told
    assert told.count("tokenizer: in these files") == 2 and "or other squares of at most 4,096 codes" in told
    for dtype in ("float32", "int8"):
        out = tmp_path / dtype
        convert = ["convert", str(folder), str(out), "grid=4", "--image-tokenizer", str(images), "--dtype", dtype]
        assert main(convert) == 0
        again = dalle.TextToImage.from_pretrained(out, device="cpu")
        assert again.model.config == pipe.model.config and again.sampling == pipe.sampling
        (same,) = again("a red fox", **flat)
        assert len(same.codes.unique()) > 4 and (dtype == "int8" or torch.equal(same.codes, result.codes))
    assert "NVIDIA Open Model License" in (tmp_path / "int8/README.md").read_text()


def test_damaged_and_foreign_files_are_one_line_errors(both: dict[str, tuple[Any, Path]], tmp_path: Path) -> None:
    folder = simplear.write(both["one file"][0], tmp_path / "a")
    state = load_file(folder / "model.safetensors")

    def refused(message: str, **changes: Tensor | None) -> None:
        new = {name: value for name, value in (state | changes).items() if value is not None}
        save_file(new, folder / "model.safetensors")
        with pytest.raises(ValueError, match=message) as caught:
            dalle.load_model(folder, **GRID)
        assert "\n" not in str(caught.value)

    bias = "model.layers.1.self_attn.k_proj.bias"
    refused(f"it has no tensor {bias}", **{bias: None})
    refused("it has no tensor model.layers.0.mlp.up_proj.weight", **{"model.layers.0.mlp.up_proj.weight": None})
    refused("which are not whole heads", **{"model.layers.1.self_attn.k_proj.weight": torch.zeros(9, simplear.WIDTH)})
    refused("unknown tensor names: .*q_norm", **{"model.layers.0.self_attn.q_norm.weight": torch.ones(8)})
    refused("they are of two models", **{"lm_head.weight": torch.zeros(7, simplear.WIDTH)})
    table = state["model.embed_tokens.weight"]
    refused("a Qwen2 with .* no image codes", **{"model.embed_tokens.weight": table[:-CODES].clone()})
    config = json.loads((folder / "config.json").read_text())
    for changed, message in (
        ({"use_sliding_window": True}, "a sliding window"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, r"positions are scaled \(yarn\)"),
        ({"hidden_act": "gelu"}, "its activation is 'gelu'"),
        ({"tie_word_embeddings": False}, "it has no tensor lm_head.weight"),
        ({"rms_norm_eps": "x"}, "its config.json says rms_norm_eps 'x': it must be a number"),
        ({"rope_theta": [1]}, r"its config.json says rope_theta \[1\]: it must be a number"),
        ({"model_type": "qwen3"}, "it is a language model that draws no images"),
    ):
        (folder / "config.json").write_text(json.dumps(config | changed))
        refused(message)
    (folder / "config.json").write_text(json.dumps(config))
    words = json.loads((folder / "tokenizer.json").read_text())
    kept = [entry for entry in words["added_tokens"] if entry["content"] in simplear.WORDS]
    (folder / "tokenizer.json").write_text(json.dumps(words | {"added_tokens": kept}))
    refused("it is a language model that draws no images")
    (folder / "tokenizer.json").unlink()
    refused("has no tokenizer.json")


@pytest.mark.parametrize(
    "width, layers, heads, kept, hidden, parameters",
    [
        pytest.param(896, 24, 14, 2, 4864, 551_140_224, id="0.5B"),
        pytest.param(1536, 28, 12, 2, 8960, 1_641_612_800, id="1.5B", marks=pytest.mark.slow),
    ],
)
def test_shapes_of_the_published_sizes(
    width: int, layers: int, heads: int, kept: int, hidden: int, parameters: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Nothing missing or left over at full width, on the meta device, and as many parameters as transformers has."""
    import transformers

    words = 151_672
    shape = {
        "vocab_size": words + 64_000, "hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kept, "tie_word_embeddings": True, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    with torch.device("meta"):
        reference = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shape))
    state = {name: value for name, value in reference.state_dict().items() if name != "lm_head.weight"}
    (tmp_path / "config.json").write_text(json.dumps(shape | {"model_type": "qwen2", "hidden_act": "silu"}))
    whole = json.loads(simplear.tokenizer().to_str())
    first = len(whole["model"]["vocab"])
    whole["model"]["vocab"] |= {f"<filler {i}>": i for i in range(first, words - 10)}
    for number, entry in enumerate(whole["added_tokens"]):
        entry["id"] = words - 10 + number
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr("dalle.checkpoints.published.models.read_stored_state", lambda file: state)
    found = read_model(tmp_path).model
    with torch.device("meta"):
        model = DALLE(found.config)
    found.check(model, "published")
    assert sum(value.numel() for value in state.values()) == parameters
    # Rows of image codes are there twice, as embedding and as head
    total = sum(value.numel() for value in state.values())
    assert sum(parameter.numel() for parameter in model.parameters()) == total + 64_000 * width
    assert (found.config.transformer.heads, found.config.grid, found.config.image_vocab) == (heads, (64, 64), 64_000)
    assert found.config.transformer.head_width == width // heads and found.config.text_vocab == words
