"""Emu3 in both layouts writes the codes and logits of transformers' Emu3, on random weights."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import dalle
from dalle.__main__ import main
from dalle.checkpoints.published.models import read_model
from dalle.cli.sample_from import read_metadata
from dalle.generation.generate import generate
from dalle.generation.options import SamplingConfig
from dalle.images.read import read_image
from dalle.images.transforms import to_tensor
from dalle.pipelines.request import Request
from support.published.emu3 import CODES, VISION, ids_of, special
from support.published.emu3_models import ROWS, reference, write_project, write_transformers
from support.published.language_models import CAPTIONS, TEXTS

pytest.importorskip("transformers", reason='pip install "dalle[t5]"')
pytest.importorskip("regex")
GRID: dict[str, Any] = {"grid": ROWS}


NEGATIVE = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, "
    "low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."
)


QUALITY = " masterpiece, film grained, best quality."


def prompt(caption: str, quality: str = QUALITY, size: str = f"{ROWS}*{ROWS}") -> list[int]:
    front = [special("<|extra_203|>"), *ids_of(caption + quality), special("<|image start|>")]
    return [*front, *ids_of(size), special("<|image token|>")]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("emu3")
    return {"project": write_project(base / "a"), "transformers": write_transformers(base / "b")}


def next_logits(ids: list[int]) -> Tensor:
    with torch.no_grad():
        states = reference().model.text_model(input_ids=torch.tensor([ids])).last_hidden_state
        return reference().lm_head(states)[0]


def stream(front: list[int], codes: list[int], columns: int = ROWS) -> list[int]:
    """With a row end behind each whole row, as the project forces them."""
    tokens = list(front)
    for count, code in enumerate(codes, 1):
        tokens.append(special("<|visual token 000000|>") + code)
        if count % columns == 0:
            tokens.append(special("<|extra_200|>"))
    return tokens


@pytest.mark.parametrize("layout", ["project", "transformers"])
def test_logits_and_codes_are_those_of_transformers(layout: str, both: dict[str, Path]) -> None:
    found = read_model(both[layout], None, GRID)
    model, words = dalle.load_model(both[layout], **GRID), found.text_tokenizer
    assert words is not None and found.sampling == SamplingConfig(guidance=3.0, top_k=2048)
    assert model.config.row_ends and model.config.rope_base == 1e6 and model.config.transformer.kv_heads == 2
    for text in TEXTS:
        assert words.encode_ragged([text])[0] == prompt(text), text
    null, first = prompt(NEGATIVE, ""), special("<|visual token 000000|>")
    assert model.config.null_ids == tuple(null)
    ids = torch.arange(CODES) + first
    text = words.encode(CAPTIONS, model.config.text_length)
    codes = torch.randint(CODES, (2, ROWS**2), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, blank = model(text, codes), model(model.null_text(text), codes)
    for row, caption in enumerate(CAPTIONS):
        for got, front in ((ours[row], prompt(caption)), (blank[row], null)):
            tokens = stream(front, codes[row, :-1].tolist())
            wanted = next_logits(tokens)[len(front) - 1 :, ids]
            # What is behind the last code of a row predicts a row end, which is forced: behind that is the next code
            places = torch.arange(ROWS**2) + torch.arange(ROWS**2) // ROWS
            wanted = wanted[places]
            span = wanted.max() - wanted.min()
            assert (got - wanted).abs().max() < 2e-5 * span and span > 1
    drawn = generate(model, text, [[0], [1]], SamplingConfig(guidance=3.0, temperature=0.0)).flatten(1)
    for row, caption in enumerate(CAPTIONS):
        greedy: list[int] = []
        for _ in range(ROWS**2):
            conditional, other = (next_logits(stream(front, greedy))[-1, ids] for front in (prompt(caption), null))
            greedy.append(int((other + 3.0 * (conditional - other)).argmax()))
        assert drawn[row].tolist() == greedy and len(set(greedy)) > 2


def likeliest(caption: str, negative: str, rows: int, columns: int) -> list[int]:
    """Codes one after the other, each stream run anew over all its ids."""
    ids, size = torch.arange(CODES) + special("<|visual token 000000|>"), f"{rows}*{columns}"
    fronts = prompt(caption, size=size), prompt(negative, "", size)
    codes: list[int] = []
    for _ in range(rows * columns):
        conditional, other = (next_logits(stream(front, codes, columns))[-1, ids] for front in fronts)
        codes.append(int((other + 3.0 * (conditional - other)).argmax()))
    return codes


@pytest.mark.parametrize("grid", [(2, 5), (6, 3)])
def test_other_sizes_are_drawn_as_transformers_draws_them(grid: tuple[int, int], both: dict[str, Path]) -> None:
    rows, columns = grid
    size = 2 * columns, 2 * rows  # this image tokenizer has codes of 2x2 pixels
    pipe = dalle.TextToImage.from_pretrained(both["transformers"], device="cpu", **GRID)
    options: dict[str, Any] = {"size": size, "temperature": 0.0}
    plain = pipe("a red fox", seed=3)[0].codes
    results = pipe(CAPTIONS, n=1, **options)
    for result, caption in zip(results, CAPTIONS):
        wanted = likeliest(caption, NEGATIVE, rows, columns)
        assert result.codes.tolist() == torch.tensor(wanted).view(1, rows, columns).tolist() and len(set(wanted)) > 2
        assert result.images[0].size == size
    (named,) = pipe(CAPTIONS[0], negative="blurry", **options)
    assert named.codes.flatten().tolist() == likeliest(CAPTIONS[0], "blurry", rows, columns)
    # Guessing ahead, a first row that is known, and what is shown of an image on the way
    drawn = [one.codes.tolist() for one in results]
    for engine in ({"window": 4}, {"batch_size": 1}):
        assert [one.codes.tolist() for one in pipe(CAPTIONS, **options, **engine)] == drawn
    (kept,) = pipe(CAPTIONS[0], image=results[0].images[0], keep_rows=1, **options)
    start = pipe.image_tokenizer.encode(to_tensor(results[0].images[0], *size))[0]
    assert torch.equal(kept.codes[0, :1], start[:1]) and kept.images[0].size == size
    seen: list[tuple[int, int]] = []
    view = pipe.sized(f"{size[0]}x{size[1]}")
    request = Request(CAPTIONS[0], (0,), pipe.sampling.updated(temperature=0.0), size=size)
    assert torch.equal(pipe.draw([request])[0].codes, results[0].codes)
    with pytest.raises(ValueError, match="requests of one batch have one size, these 2"):
        pipe.draw([request, replace(request, size=None)])
    (watched,) = view.draw([request], watch=lambda codes, count: seen.append((codes.shape[1], count)))
    assert torch.equal(watched.codes, results[0].codes)
    assert {length for length, _ in seen} == {rows * columns} and seen[-1][1] == rows * columns
    (many,) = pipe(CAPTIONS[0], n=3, seed=5, size=size, temperature=4.0)
    (one,) = pipe(CAPTIONS[0], seed=7, size=size, temperature=4.0)
    assert torch.equal(one.codes[0], many.codes[2])
    # The pipeline itself still draws its own size
    assert pipe.size == (2 * ROWS, 2 * ROWS) and torch.equal(pipe("a red fox", seed=3)[0].codes, plain)


@pytest.mark.parametrize(
    "size, message",
    [
        ("9x8", "size is 9x8: both sides must be multiples of 2"),
        ("4x20", "the longer side may be at most 4 times the shorter"),
        ("14x8", r"it has more than 100 pixels, about 10x10"),
        ("8 by 8", "give WIDTHxHEIGHT in pixels"),
        ("0x8", "give WIDTHxHEIGHT in pixels"),
    ],
)
def test_sizes_that_are_not_drawn_are_one_line_errors(size: str, message: str, both: dict[str, Path]) -> None:
    pipe = dalle.TextToImage.from_pretrained(both["transformers"], device="cpu", **GRID)
    with pytest.raises(ValueError, match=message) as caught:
        pipe("a fox", size=size)
    assert "\n" not in str(caught.value)


def test_a_negative_prompt_takes_the_place_of_its_own(both: dict[str, Path], tmp_path: Path) -> None:
    pipe = dalle.TextToImage.from_pretrained(both["transformers"], device="cpu", **GRID)
    draw = partial(pipe, CAPTIONS, temperature=0.0)
    plain = [result.codes for result in draw()]
    assert [result.codes.tolist() for result in draw(negative=NEGATIVE)] == [codes.tolist() for codes in plain]
    for result, caption in zip(draw(negative="blurry"), CAPTIONS, strict=True):
        greedy = likeliest(caption, "blurry", ROWS, ROWS)
        assert result.codes.flatten().tolist() == greedy
    # Requests of one batch, one without a negative prompt of its own
    sampling = pipe.sampling.updated(temperature=0.0)
    requests = [Request(CAPTIONS[0], (0,), sampling), Request(CAPTIONS[1], (0,), sampling, negative="blurry")]
    one, two = pipe.draw(requests)
    assert torch.equal(one.codes, plain[0]) and two.codes.flatten().tolist() == greedy
    with pytest.raises(ValueError, match=r"the negative prompt has \d+ tokens, the model reads 256"):
        pipe("a fox", negative="word 12 " * 300)


def test_requests_of_the_server_have_negative_prompts(both: dict[str, Path]) -> None:
    pytest.importorskip("fastapi", reason='pip install "dalle[serve]"')
    from support.server import running

    pipe = dalle.TextToImage.from_pretrained(both["transformers"], device="cpu", **GRID)
    wanted = {text: pipe(CAPTIONS[1], seed=3, negative=text)[0].images[0].tobytes() for text in (None, "blurry")}
    with running(both["transformers"], pipe) as served, served.http() as http:
        assert http.get("/v1/models").json()["data"][0]["negative"] is True
        for negative, image in wanted.items():
            body = {"prompt": CAPTIONS[1], "seed": 3, "negative": negative}
            answer = http.post("/v1/images/generations", json=body).json()
            assert answer["options"].get("negative") == negative
            file = io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))
            assert Image.open(file).convert("RGB").tobytes() == image
        wide = pipe("a fox", seed=4, size="12x4")[0].images[0]
        body = {"prompt": "a fox", "seed": 4, "size": "12x4"}
        answer = http.post("/v1/images/generations", json=body).json()
        assert answer["size"] == answer["options"]["size"] == "12x4" and answer["usage"]["output_tokens"] == 12
        drawn = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))).convert("RGB")
        assert drawn.size == (12, 4) and drawn.tobytes() == wide.tobytes()
        with http.stream("POST", "/v1/images/generations", json=body | {"stream": True, "partial_images": 1}) as events:
            sent = [json.loads(line[6:]) for line in events.iter_lines() if line.startswith("data: {")]
        shown = [Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))).convert("RGB") for one in sent]
        assert [one["size"] for one in sent] == ["12x4"] * 2 and shown[-1].tobytes() == wide.tobytes()
        assert shown[0].crop((0, 0, 12, 1)).tobytes() != shown[0].crop((0, 3, 12, 4)).tobytes()
        # One that it does not draw is resized, as ever
        answer = http.post("/v1/images/generations", json=body | {"size": "9x9"}).json()
        assert answer["size"] == "9x9" and "size" not in answer["options"]
        error = http.post("/v1/images/generations", json={"prompt": "a", "negative": "word 12 " * 300}).json()["error"]
        assert error["param"] == "negative" and "the model reads 256" in error["message"]


def test_the_command_records_negative_prompt_and_size(
    both: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = both["project"]
    source = ["--model", str(folder), "--image-tokenizer", str(folder / "vision"), "--given", "grid=4"]
    few = ["--n", "1", "--no-grid", "--device", "cpu", "--dtype", "int8", "--negative", "blurry", "--size", "12x4"]
    assert main(["sample", "a fox", *source, *few, "--out", str(tmp_path / "a")]) == 0
    (image,) = tmp_path.glob("a/*/*.png")
    assert '"negative": "blurry", "size": "12x4"' in read_metadata(image)["options"]
    assert read_image(image).size == (12, 4)
    assert main(["sample", "--from", str(image), "--no-grid", "--device", "cpu", "--out", str(tmp_path / "b")]) == 0
    (again,) = tmp_path.glob("b/*/*.png")
    assert read_metadata(again)["options"].count('"negative": "blurry"') == 1
    assert read_image(again).tobytes() == read_image(image).tobytes()
    capsys.readouterr()
    assert main(["sample", "a fox", "--negative", "blurry", "--out", str(tmp_path / "c")]) == 2
    assert "this model takes no negative prompt: leave it out" in capsys.readouterr().err
    assert main(["sample", "a fox", "--size", "72x64", "--out", str(tmp_path / "c")]) == 2
    assert "size is 72x64: this model draws images of 64x64 pixels only" in capsys.readouterr().err


def test_converted_it_draws_the_same(both: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, images = both["project"], both["project"] / "vision"
    pipe = dalle.TextToImage.from_pretrained(folder, device="cpu", image_tokenizer=images, **GRID)
    (result,) = pipe("a red fox", n=3, seed=5, temperature=4.0)
    joined = dalle.TextToImage.from_pretrained(both["transformers"], device="cpu", **GRID)
    assert torch.equal(joined("a red fox", n=3, seed=5, temperature=4.0)[0].codes, result.codes)
    assert joined("a red fox", seed=5)[0].images[0].tobytes() == pipe("a red fox", seed=5)[0].images[0].tobytes()
    assert main(["inspect", str(folder), "grid=4"]) == 0
    told = capsys.readouterr().out
    assert "an Emu3" in told and "Apache-2.0" in told and told.count("tokenizer: in these files") == 2
    command = ["convert", str(folder), str(tmp_path / "ours"), "grid=4", "--image-tokenizer", str(images)]
    assert main(command) == 0
    again = dalle.TextToImage.from_pretrained(tmp_path / "ours", device="cpu")
    assert again.model.config == pipe.model.config and again.sampling == pipe.sampling
    (same,) = again("a red fox", n=3, seed=5, temperature=4.0)
    assert torch.equal(same.codes, result.codes) and len(result.codes.unique()) > 4
    wide = [one("a red fox", size="12x4", temperature=0.0)[0].codes for one in (again, pipe)]
    assert torch.equal(*wide) and wide[0].shape == (1, 2, 6)


def test_damaged_and_foreign_files_are_one_line_errors(both: dict[str, Path], tmp_path: Path) -> None:
    folder = write_project(tmp_path / "a")

    def refused(message: str, source: Path = folder) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            dalle.load_model(source, **GRID)
        assert "\n" not in str(caught.value)

    for name, content, message in (
        ("emu3.tiktoken", "no\n", "not a token in base64"),
        ("emu3.tiktoken", "YQ== 3\n", "not all from 0 on"),
        ("emu3_vision_tokens.txt", "<|image token|>\n", "names 0 image codes"),
        ("emu3_vision_tokens.txt", "\n".join(reversed(VISION)), "other tokens behind"),
        ("config.json", json.dumps({"model_type": "qwen2"}), "a language model that draws no images"),
        ("config.json", "no", "has no config.json that can be read"),
    ):
        whole = (folder / name).read_text()
        (folder / name).write_text(content)
        refused(message)
        (folder / name).write_text(whole)
    (folder / "emu3.tiktoken").rename(folder / "away")
    refused("has no emu3.tiktoken")
    (folder / "away").rename(folder / "emu3.tiktoken")
    shard = folder / "model-00002-of-00002.safetensors"
    state = load_file(shard)
    save_file({name: value for name, value in state.items() if "down_proj" not in name}, shard)
    refused("it has no tensor model.layers.*down_proj.weight")
    save_file(state | {"model.layers.0.self_attn.q_norm.weight": torch.ones(16)}, shard)
    refused("perhaps it is another version of an Emu3.5, or incomplete")
    shard.unlink()
    refused("model-00002-of-00002.safetensors")
    refused("an Emu3-Chat", write_project(tmp_path / "Emu3-Chat"))
    damaged = write_transformers(tmp_path / "b")
    (damaged / "tokenizer.json").write_text("{}")
    refused("is not one of a BPE", damaged)
