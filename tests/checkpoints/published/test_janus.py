"""Janus in all its layouts writes the codes, logits and images of transformers, on random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import dalle
import train
from dalle.__main__ import main
from dalle.checkpoints.published.models import read_model
from dalle.generation.generate import generate
from dalle.generation.options import EngineOptions, SamplingConfig
from dalle.models.dalle import DALLE
from support.published import janus

pytest.importorskip("transformers", reason='pip install "dalle[t5]"')
GREEDY = SamplingConfig(guidance=5.0, temperature=0.0)
LAYOUTS = ["transformers", "bin", "shards", "safetensors"]


@pytest.fixture(scope="module")
def reference() -> Any:
    return janus.model_of()


@pytest.fixture(scope="module")
def folders(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("janus")
    made = {kind: janus.write_deepseek(reference, base / kind, kind) for kind in LAYOUTS[1:]}
    return made | {"transformers": janus.write_transformers(reference, base / "transformers")}


def load(folder: Path) -> dalle.TextToImage:
    return dalle.TextToImage.from_pretrained(folder, device="cpu", **({} if folder.name == "transformers" else GRID))


GRID: dict[str, Any] = {"grid": janus.ROWS}


def prompt(caption: str, roles: tuple[str, str] = ("<|User|>", "<|Assistant|>")) -> list[int]:
    """Ids as the project's script makes them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(janus.tokenizer_json().decode())
    text = f"{roles[0]}: {caption.strip()}\n\n{roles[1]}:{janus.IMAGE}"
    return [tokenizer.token_to_id(janus.BEGIN), *tokenizer.encode(text, add_special_tokens=False).ids]


def logits_of(model: Any, ids: list[int], codes: torch.Tensor) -> torch.Tensor:
    """Logits [N, V] of transformers for one prompt and the codes [N]."""
    with torch.no_grad():
        words = model.get_input_embeddings()(torch.tensor([ids]))
        image = model.prepare_embeddings_for_image_generation(codes[None, :-1])
        states = model.model.language_model(inputs_embeds=torch.cat((words, image), dim=1)).last_hidden_state
        return model.model.generation_head(states[0, len(ids) - 1 :])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_are_those_of_transformers(layout: str, reference: Any, folders: dict[str, Path]) -> None:
    pipe = load(folders[layout])
    captions = ["a red fox", "two cats, 12 dogs in the snow"]
    codes = torch.randint(janus.CODES, (2, janus.ROWS**2), generator=torch.Generator().manual_seed(1))
    text = pipe.text_tokenizer.encode(captions, pipe.model.config.text_length)
    with torch.no_grad():
        found, null = pipe.model(text, codes), pipe.model(pipe.model.null_text(text), codes)
    for row, caption in enumerate(captions):
        ids = prompt(caption)
        wanted = logits_of(reference, ids, codes[row])
        span = wanted.max() - wanted.min()
        assert (found[row] - wanted).abs().max() < 2e-5 * span and span > 1
        pad = pipe.text_tokenizer.pad_id
        blank = logits_of(reference, [ids[0], *[pad] * (len(ids) - 2), ids[-1]], codes[row])
        nats = pipe.model.losses(text[row : row + 1], codes[row : row + 1])["image"]
        torch.testing.assert_close(nats, torch.nn.functional.cross_entropy(wanted, codes[row]))
        assert (null[row] - blank).abs().max() < 2e-5 * span and (blank - wanted).abs().max() > 0.01 * span


def test_greedy_codes_are_those_of_transformers(reference: Any, folders: dict[str, Path]) -> None:
    """Cached, guided, two prompts of different lengths in one batch, the shorter one padded and masked."""
    captions = ["a red fox", "two cats, 12 dogs in the snow"]
    pipe = load(folders["transformers"])
    settings = reference.generation_config
    settings.pad_token_id = pipe.text_tokenizer.pad_id
    settings.bos_token_id, settings.generation_kwargs = (
        pipe.text_tokenizer.begin[0],
        {"boi_token_id": pipe.text_tokenizer.id_of(janus.IMAGE)},
    )
    wanted = torch.cat(
        [
            reference.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
                generation_mode="image", guidance_scale=5, do_sample=False,
            )
            for ids in map(prompt, captions)
        ]
    )  # fmt: skip
    text = pipe.text_tokenizer.encode(captions, pipe.model.config.text_length)
    for engine in (EngineOptions(), EngineOptions(window=5), EngineOptions(batch_size=1)):
        found = generate(pipe.model, text, [[0], [1]], GREEDY, engine)
        assert torch.equal(found.flatten(1), wanted)
    assert len(wanted.unique()) > 4 and not torch.equal(wanted[0], wanted[1])


@pytest.mark.parametrize("layout", ["transformers", "bin"])
def test_images_are_those_of_transformers(layout: str, reference: Any, folders: dict[str, Path]) -> None:
    tokenizer = load(folders[layout]).image_tokenizer
    codes = torch.randint(janus.CODES, (2, janus.ROWS, janus.ROWS), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = reference.model.vqmodel.decode(codes.flatten(1))
    torch.testing.assert_close(tokenizer.decode(codes), (wanted / 2 + 0.5).clamp(0, 1), rtol=0, atol=2e-5)
    alone = dalle.load_image_tokenizer(folders[layout], rows=janus.ROWS)
    images = torch.rand(2, 3, 2 * janus.ROWS, 2 * janus.ROWS, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():  # the project's encoder normalizes both sides; that of transformers does not
        latents = reference.model.vqmodel.quant_conv(reference.model.vqmodel.encoder(2 * images - 1))
        book = torch.nn.functional.normalize(reference.model.vqmodel.quantize.embedding.weight, dim=-1)
        cosines = torch.einsum("bchw,kc->bhwk", torch.nn.functional.normalize(latents, dim=1), book)
    assert torch.equal(alone.encode(images), cosines.argmax(-1)) and len(cosines.argmax(-1).unique()) > 4


def test_text_ids_are_those_of_the_projects_script(folders: dict[str, Path]) -> None:
    tokenizer = read_model(folders["bin"], None, GRID).text_tokenizer
    assert tokenizer is not None
    for text in janus.TEXTS:
        assert tokenizer.encode_ragged([text])[0] == prompt(text), text
    # The project's script makes control tokens of their names in a caption; here they are characters
    named = tokenizer.encode_ragged(["a fox<|User|>: no<begin_of_image>"])[0]
    assert len(named) > len(prompt("a fox<|User|>: no<begin_of_image>"))
    assert [i for i in named if i < 7] == [i for i in prompt("a fox") if i < 7]
    assert tokenizer.decode([named]) == ["a fox<|User|>: no<begin_of_image>"]
    plain = read_model(folders["bin"], None, {**GRID, "roles": "plain"}).text_tokenizer
    assert plain is not None
    assert plain.encode_ragged(["a fox"])[0] == prompt("a fox", ("User", "Assistant"))
    cut, whole = tokenizer.encode(["word " * 300], 64)[0].tolist(), prompt("word " * 300)
    assert len(whole) > 64 and cut == [*whole[: 64 - 5], *whole[-5:]] and tokenizer.decode([cut])[0].startswith("word")
    assert tokenizer.decode([prompt("лиса, 12")]) == ["лиса, 12"]


def test_converted_it_draws_the_same(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = load(folders["shards"])
    assert pipe.sampling == SamplingConfig(guidance=5.0)
    (result,) = pipe("a red fox", n=3, seed=5)
    assert main(["inspect", str(folders["shards"]), "grid=4"]) == 0
    told = capsys.readouterr().out
    parameters = sum(parameter.numel() for parameter in pipe.model.parameters())
    assert "a Janus of DeepSeek" in told and f"- parameters: {parameters:,}, " in told
    assert told.count("tokenizer: in these files") == 2 and "DeepSeek Model License" in told
    assert main(["convert", str(folders["shards"]), str(tmp_path / "ours"), "grid=4"]) == 0
    again = load_ours(tmp_path / "ours")
    assert again.model.config == pipe.model.config and again.sampling == pipe.sampling
    (same,) = again("a red fox", n=3, seed=5)
    assert torch.equal(same.codes, result.codes) and len(result.codes.unique()) > 4
    assert "DeepSeek Model License" in (tmp_path / "ours/README.md").read_text()
    (other,) = again("two cats", n=1, seed=5)
    assert not torch.equal(other.codes[0], result.codes[0])


def test_tuned_on_images_it_goes_on_from_its_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("red", "blue", "green", "black"):
        Image.new("RGB", (8, 8), name).save(tmp_path / "images" / f"{name}.png")
        (tmp_path / "images" / f"{name}.txt").write_text(f"a {name} square")
    content = {
        "stage": "dalle",
        "init_from": str(folders["transformers"]),
        "caption_dropout": 0.5,
        "data": {"kind": "pairs", "path": str(tmp_path / "images"), "validation_share": 0.25},
        "optim": {"lr": 1e-2, "warmup": 1, "ema": None},
        "run": {"dir": str(tmp_path / "run"), "steps": 1, "batch_size": 2, "workers": 0, "tracker": "none"},
    }
    (tmp_path / "finetune.yaml").write_text(json.dumps(content))
    assert train.main([str(tmp_path / "finetune.yaml")]) == 0
    before, after = load(folders["transformers"]), load_ours(tmp_path / "run" / "model")
    assert after.model.config == before.model.config and after.sampling == before.sampling
    old = before.model.state_dict()
    moved = {name for name, value in after.model.state_dict().items() if not torch.equal(value, old[name])}
    assert {"text_embedding.weight", "image_embedding.weight", "head_hidden.0.weight", "image_head.bias"} <= moved
    assert after("a red square")[0].images


def load_ours(folder: Path) -> dalle.TextToImage:
    return dalle.TextToImage.from_pretrained(folder, device="cpu")


def refused(folder: Path, message: str, **given: Any) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        dalle.TextToImage.from_pretrained(folder, device="cpu", **GRID, **given)
    assert "\n" not in str(caught.value)


def test_damaged_and_foreign_files_are_one_line_errors(reference: Any, tmp_path: Path) -> None:
    folder = janus.write_deepseek(reference, tmp_path / "a", "safetensors")
    state = load_file(folder / "model.safetensors")

    def changed(**others: torch.Tensor | None) -> None:
        new = {name: value for name, value in (state | others).items() if value is not None}
        save_file(new, folder / "model.safetensors")

    layer = "language_model.model.layers.1.self_attn"
    changed(**{f"{layer}.q_proj.weight": None})
    refused(folder, f"it has no tensor {layer}.q_proj.weight")
    changed(**{f"{layer}.k_proj.weight": torch.zeros(32, janus.WIDTH)})
    refused(folder, "layer 1 has queries .* which are not whole heads")
    changed(**{"gen_head.vision_head.bias": None})
    refused(folder, "gen_head.vision_head.bias")
    changed(**{"gen_embed.weight": None})
    refused(folder, "it has no tensor gen_embed.weight")
    changed(**{f"{layer}.q_proj.bias": torch.zeros(janus.WIDTH)})
    refused(folder, "unknown tensor names: .*q_proj.bias")
    changed(**{"gen_vision_model.decoder.conv_in.weight": None})
    refused(folder, "decoder.conv_in.weight")
    save_file({n: v for n, v in state.items() if not n.startswith("gen_")}, folder / "model.safetensors")
    refused(folder, "it is a DeepSeek-VL or another model that reads images and draws none")
    changed()
    refused(folder, "roles is 'x'", roles="x")
    (folder / "tokenizer.json").write_bytes(janus.tokenizer_json("<none>"))
    refused(folder, "has no token '<｜▁pad▁｜>'")
    (folder / "tokenizer.json").write_bytes(janus.tokenizer_json()[:-9])
    refused(folder, "are not a tokenizer.json")
    (folder / "tokenizer.json").unlink()
    refused(folder, "has no tokenizer.json")
    (folder / "config.json").write_text('{"language_config": {"rope_scaling": {"type": "linear", "factor": 2}}}')
    (folder / "tokenizer.json").write_bytes(janus.tokenizer_json())
    refused(folder, "rotary positions are scaled", heads=4)
    (folder / "config.json").write_text("{")
    refused(folder, "no config.json that can be read")
    (folder / "config.json").unlink()
    refused(folder, "give heads=NUMBER")
    shards = janus.write_deepseek(reference, tmp_path / "b", "shards")
    (shards / "pytorch_model-00002-of-00002.bin").unlink()
    refused(shards, "pytorch_model-00002-of-00002.bin")


@pytest.mark.parametrize(
    "width, layers, heads, hidden, count", [(2048, 24, 16, 5632, 149), (4096, 30, 32, 11008, 659)], ids=["1B", "7B"]
)
def test_shapes_of_the_published_sizes(
    width: int, layers: int, heads: int, hidden: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1B and 7B in DeepSeek's layout: nothing missing or left over, and as many parameters as drawing needs."""
    with torch.device("meta"):
        names = janus.deepseek_state(janus.model_of(layers=1)).items()
    state: dict[str, torch.Tensor] = {}
    sizes = {janus.WORDS: 102_400, janus.WIDTH: width, 96: hidden, janus.CODES: 16_384, 8: 8}
    for name, value in names:
        if name.startswith(("gen_vision_model.", "vision_model.", "aligner.")):
            continue
        shape = [sizes[side] for side in value.shape]
        for layer in range(layers if ".layers.0.self" in name or ".layers.0.mlp" in name or "layernorm" in name else 1):
            own = name.replace("model.layers.0.", f"model.layers.{layer}.")
            state[own] = torch.empty(shape, device="meta")
    tokenizer = janus.tokenizer_json()
    (tmp_path / "tokenizer.json").write_bytes(tokenizer)
    (tmp_path / "config.json").write_text(json.dumps({"language_config": {"num_hidden_layers": layers}}))
    (tmp_path / "pytorch_model.bin").touch()
    monkeypatch.setattr("dalle.checkpoints.published.models.read_stored_state", lambda file: state)
    found = read_model(tmp_path, "janus").model
    with torch.device("meta"):
        model = DALLE(found.config)
    found.check(model, "published")
    needed = {name: value.numel() for name, value in state.items() if "lm_head" not in name}
    assert round(sum(needed.values()) / 1e7) == count
    folded = sum(size for name, size in needed.items() if name.startswith(("gen_embed", "gen_aligner")))
    assert sum(p.numel() for p in model.parameters()) == sum(needed.values()) - folded + 16_384 * width
    assert (found.config.transformer.heads, found.config.grid, found.config.text_vocab) == (heads, (24, 24), 102_400)
