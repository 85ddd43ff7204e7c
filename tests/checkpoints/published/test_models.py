"""Published models as a user meets them: whole folders are drawn with, converted, inspected, refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dalle
import sample
from dalle.__main__ import main
from dalle.checkpoints.published.models import read_model
from dalle.models.dalle import DALLE
from dalle.text_tokenizers import clip_bpe
from support.published import folders
from support.published.references.transformers import CASES, CODES, ROWS, features, inputs, pixels
from support.published.transformers import reference
from support.tiny_model import make_tiny_model

GIVEN: dict[str, dict[str, Any]] = {
    "mindalle": {},
    "rudalle": {"heads": 2, "convention": "v3"},
    "dalle_pytorch": {},
    "llamagen": {"heads": 2},
}
PROMPTS = {"mindalle": "ab c", "rudalle": "лиса", "dalle_pytorch": "лиса", "llamagen": "7"}


def made(family: str, folder: Path) -> Path:
    if family == "llamagen":
        return folders.llamagen(folder, "c2i")
    folder = getattr(folders, family)(folder)
    return folder / "dalle.pt" if family == "dalle_pytorch" else folder


@pytest.fixture(params=GIVEN)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_converted_models_sample_the_same_images(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = made(family, tmp_path / "theirs")
    pipe = dalle.TextToImage.from_pretrained(source, device="cpu", **GIVEN[family])
    (result,) = pipe(PROMPTS[family], n=3, seed=5)
    assert [image.size for image in result.images] == [(2 * ROWS, 2 * ROWS)] * 3
    assert len(pipe.model_hash) == 64 and len(result.codes.unique()) > 2 and int(result.codes.max()) < CODES
    (other,) = pipe("b" if family == "mindalle" else "3" if family == "llamagen" else "сала", n=3, seed=5)
    assert not torch.equal(result.codes, other.codes)  # the prompt counts
    given = [f"{name}={value}" for name, value in GIVEN[family].items()]
    out = tmp_path / "ours"
    assert main(["convert", str(source), str(out), *given]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"{out}: ") and "license" in told
    again = dalle.TextToImage.from_pretrained(out, device="cpu")
    assert again.sampling == pipe.sampling and again.model.config == pipe.model.config
    (same,) = again(PROMPTS[family], n=3, seed=5)
    assert torch.equal(same.codes, result.codes)
    assert [list(a.getdata()) for a in same.images] == [list(b.getdata()) for b in result.images]
    card = (out / "README.md").read_text()
    assert "- license: " in card and "- parameters: " in card and str(tmp_path) not in card
    assert main(["convert", str(source), str(out), *given]) == 2
    assert "exists: give a new folder" in capsys.readouterr().err


def test_inspect_prints_parameters_codes_and_components(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = made(family, tmp_path / "theirs")
    given = [f"{name}={value}" for name, value in GIVEN[family].items()]
    assert main(["inspect", str(source), *given]) == 0
    told = capsys.readouterr().out
    model = dalle.load_model(source, **GIVEN[family])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert f"- parameters: {parameters:,}, " in told and f"{ROWS}x{ROWS} codes of {CODES}\n" in told
    assert told.count("tokenizer: in these files") == 2
    assert f"{model.config.transformer.depth} layers, width {model.config.transformer.width}, 2 heads" in told


def test_inspect_prints_the_parameters_of_a_model_folder(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny_model)]) == 0
    parameters = sum(parameter.numel() for parameter in dalle.load_model(tiny_model).parameters())
    assert f"- parameters: {parameters:,}, " in capsys.readouterr().out


def test_sample_py_takes_a_published_folder(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = made(family, tmp_path / "theirs")
    arguments = [PROMPTS[family], "--model", str(source), "--n", "2", "--out", str(tmp_path / "out"), "--device", "cpu"]
    for name, value in GIVEN[family].items():
        arguments += ["--given", f"{name}={value}"]
    assert sample.main(arguments) == 0
    (folder,) = (tmp_path / "out").iterdir()
    scores = json.loads((folder / "scores.json").read_text())
    assert len(scores["images"]) == 2 and len(scores["model"]) == 64
    expected = read_model(source, None, GIVEN[family]).sampling
    assert (scores["options"]["top_k"], scores["options"]["guidance"]) == (expected.top_k, expected.guidance)


def test_half_precision_files_load_in_the_requested_dtype(tmp_path: Path) -> None:
    source = folders.rudalle(tmp_path / "theirs")
    whole = dalle.load_model(source, **GIVEN["rudalle"])
    half = dalle.load_model(source, dtype=torch.bfloat16, **GIVEN["rudalle"])
    assert {p.dtype for p in whole.parameters()} == {torch.float32}
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    logits = whole(torch.tensor([[5, 6]]), torch.zeros(1, 16, dtype=torch.int64))
    coarse = half(torch.tensor([[5, 6]]), torch.zeros(1, 16, dtype=torch.int64)).float()
    assert (logits - coarse).abs().max() < 0.1 * logits.abs().max()


def test_rotary_angles_stay_float32_in_half_precision(tmp_path: Path) -> None:
    source = folders.llamagen(tmp_path / "theirs", "c2i")
    whole, half = (dalle.load_model(source, dtype=dtype, heads=2) for dtype in (None, torch.bfloat16))
    assert main(["convert", str(source), str(tmp_path / "ours"), "heads=2", "--dtype", "bfloat16"]) == 0
    stored = dalle.load_model(tmp_path / "ours", dtype=torch.bfloat16)
    for model in (half, stored, whole.to(torch.bfloat16)):
        assert model.rope_cos.dtype == torch.float32 and model.image_head.weight.dtype == torch.bfloat16
        assert torch.equal(model.rope_cos, whole.rope_cos)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("dalle-pytorch")])
def test_image_tokenizer_inside_a_dalle_pytorch_file_is_used(case: str, tmp_path: Path) -> None:
    source = folders.dalle_pytorch(tmp_path / "theirs", case.removeprefix("dalle-pytorch-")) / "dalle.pt"
    tokenizer = dalle.TextToImage.from_pretrained(source, device="cpu").image_tokenizer
    _, expected = reference(case)
    codes = tokenizer.encode(pixels())
    assert torch.equal(codes.flatten(1), expected["codes"]) and len(codes.unique()) > 2
    images = tokenizer.decode(inputs()[1].view(2, ROWS, ROWS))
    torch.testing.assert_close(images, ((expected["pictures"] + 1) / 2).clamp(0, 1), rtol=0, atol=2e-5)


def test_missing_image_tokenizer_can_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A DALLE-pytorch model whose file holds no tokenizer's weights, as old ones and those without DeepSpeed do."""
    source = folders.dalle_pytorch(tmp_path / "theirs") / "dalle.pt"
    state, _ = reference("dalle-pytorch-1.6.6")
    own = {name: value for name, value in state.items() if not name.startswith("vae.")}
    hparams = folders.CASES["dalle-pytorch-1.6.6"]
    torch.save({"hparams": hparams, "vae_params": None, "weights": own, "version": "1.6.6"}, source)
    with pytest.raises(
        ValueError, match=r"dalle\.pt does not contain its image tokenizer: give the one it was trained with"
    ):
        dalle.TextToImage.from_pretrained(source, device="cpu")
    tokenizer = folders.mindalle(tmp_path / "other") / "stage1_last.ckpt"
    pipe = dalle.TextToImage.from_pretrained(source, device="cpu", image_tokenizer=tokenizer)
    assert pipe.image_size == 2 * ROWS  # brought to the model's grid
    assert main(["convert", str(source), str(tmp_path / "ours"), "--image-tokenizer", str(tokenizer)]) == 0
    (one,), (other,) = pipe("лиса"), dalle.TextToImage.from_pretrained(tmp_path / "ours", device="cpu")("лиса")
    assert torch.equal(one.codes, other.codes)
    (source.parent / "bpe.model").unlink()
    with pytest.raises(ValueError, match=r"give it \(text_tokenizer\)"):
        dalle.TextToImage.from_pretrained(source, device="cpu", image_tokenizer=tokenizer)


def test_missing_components_are_downloaded_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders.rudalle(tmp_path / "theirs")
    elsewhere = {"ai-forever/rudalle-utils": "vqgan.gumbelf8-sber.model.ckpt", "shonenkov/rudalle-utils": "bpe.model"}
    (tmp_path / "hub").mkdir()
    for name in elsewhere.values():
        (folder / name).rename(tmp_path / "hub" / name)

    def download(repository: str, file: str) -> str:
        assert elsewhere[repository] == file
        return str(tmp_path / "hub" / file)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.model_info", lambda repository, timeout: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    pipe = dalle.TextToImage.from_pretrained(folder, device="cpu", **GIVEN["rudalle"])
    assert pipe("лиса")[0].images


class Encoder:
    """A text encoder that gives the features of the reference."""

    width = folders.T5_WIDTH


def test_text_features_of_t5_condition_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dalle.text_tokenizers.t5 import T5Encoder

    folder = folders.llamagen(tmp_path / "theirs", "t2i")
    encoder = T5Encoder.__new__(T5Encoder)
    encoder.width = folders.T5_WIDTH
    monkeypatch.setattr("dalle.checkpoints.hub._fetch", lambda repository, file, weights: tmp_path)
    monkeypatch.setattr(T5Encoder, "load", classmethod(lambda *arguments: encoder))
    monkeypatch.setattr(T5Encoder, "encode", lambda self, texts, length: features()[: len(texts)])
    pipe = dalle.TextToImage.from_pretrained(folder, device="cpu", text_encoder="some/t5", heads=2)
    results = pipe(["a", "b"], temperature=0, guidance=3.0)
    drawn = torch.cat([result.codes for result in results]).flatten(1)
    assert torch.equal(drawn, reference("llamagen-t2i")[1]["guided"])
    assert main(["convert", str(folder), str(tmp_path / "ours"), "heads=2"]) == 0
    again = dalle.TextToImage.from_pretrained(tmp_path / "ours", device="cpu")
    assert torch.equal(torch.cat([r.codes for r in again(["a", "b"], temperature=0, guidance=3.0)]).flatten(1), drawn)
    encoder.width = 7
    with pytest.raises(ValueError, match="reads features of 24 channels, the text encoder gives features of 7"):
        dalle.TextToImage.from_pretrained(folder, device="cpu", text_encoder="some/t5", heads=2)


def wrong(call: Any) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wrong_files_give_a_one_line_error_that_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    state: dict[str, Tensor] = reference("rudalle-v3")[0]

    def told(tree: Any, **given: Any) -> str:
        torch.save(tree, file)
        message = wrong(lambda: dalle.load_model(file, **given))
        assert str(file) in message
        return message

    given = GIVEN["rudalle"]
    assert "its number of attention heads is not recorded (width 32): give heads=NUMBER" in told(state, convention="v3")
    assert "its convention is not recorded" in told({k: v for k, v in state.items() if "conv" not in k}, heads=2)
    assert "heads is 3; give a whole number that divides" in told(state, convention="v3", heads=3)
    assert "convention is 'v4'" in told(state, convention="v4", heads=2)
    assert "unknown tensor names: extra.weight" in told(state | {"extra.weight": torch.zeros(2)}, **given)
    less = {k: v for k, v in state.items() if k != "transformer.layers.1.mlp.dense_h_to_4h.bias"}
    missing = told(less, **given)
    assert "missing: transformer.layers.1.mlp.dense_h_to_4h.bias [128]; " in missing
    bent = state | {"image_row_embeddings.weight": torch.zeros(4, 9)}
    assert "image_row_embeddings.weight is [4, 1, 9], expected [4, 1, 32]; perhaps" in told(bent, **given)
    assert "it is not a known text-to-image model" in told({"head.weight": torch.zeros(2)})
    assert "it holds no named tensors" in told({"epoch": 3})
    assert "family is 'dall-e'; expected one of mindalle" in wrong(lambda: dalle.load_model(file, family="dall-e"))
    assert "unknown option nonsense: expected one of heads" in wrong(lambda: dalle.load_model(file, nonsense=1))
    llama = reference("llamagen-c2i")[0]
    assert "its image size is not recorded: give grid=16" in told({"model": llama}, heads=2)
    torch.save({"model": llama}, file)
    assert dalle.load_model(file, heads=2, grid=4).config.grid == (4, 4)
    tree = {"hparams": folders.CASES["dalle-pytorch-1.6.6"], "vae_params": None}
    tree["weights"] = reference("dalle-pytorch-1.6.6")[0]
    sparse = {**tree, "hparams": tree["hparams"] | {"attn_types": ["full", "sparse"]}}
    assert "its attn_types include 'sparse'" in told(sparse)
    assert "zero_to_fp32.py" in told({**tree, "weights": "see the other files"})
    assert "no integer dim" in told({**tree, "hparams": {"text_seq_len": 5, "depth": 4}})
    ours = make_tiny_model(tmp_path / "ours")
    assert "heads is not to be given: the config.yaml of" in wrong(lambda: dalle.load_model(ours, heads=2))
    assert "is not to be given" in wrong(lambda: dalle.TextToImage.from_pretrained(ours, "cpu", grid=2))
    assert "feed_forward is not to be" in wrong(lambda: dalle.load_clip(ours / "clip", feed_forward="gelu"))
    bare = tmp_path / "bare"
    folders.mindalle(bare)
    (bare / "tokenizer" / "bpe-16k-vocab.json").unlink()
    assert "it has no text tokenizer" in wrong(lambda: dalle.load_model(bare))


def test_wrong_tokenizers_are_refused(tmp_path: Path) -> None:
    source = folders.dalle_pytorch(tmp_path / "theirs") / "dalle.pt"
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    message = wrong(lambda: dalle.TextToImage.from_pretrained(source, "cpu", text_tokenizer=tmp_path / "merges.txt"))
    assert "the model reads 11 text tokens, its text tokenizer has 515" in message
    assert clip_bpe.MERGES == 48_894


def damaged(state: dict[str, Tensor], chance: random.Random) -> dict[str, Tensor]:
    """A state with a few tensors gone, of another shape or type, or of other names."""
    state = dict(state)
    for name in chance.sample(sorted(state), chance.randint(1, 3)):
        kind = chance.randrange(6)
        if kind == 0:
            del state[name]
        elif kind == 1:
            state[name] = torch.zeros([chance.choice([0, 1, 2, 3, 7, 32]) for _ in range(chance.randrange(5))])
        elif kind == 2:
            state[name] = state[name][..., :-1] if state[name].ndim else torch.zeros(2)
        elif kind == 3:
            state[name.replace("0", chance.choice(["1", "99999999999", "x"]), 1)] = state.pop(name)
        elif kind == 4:
            state[name] = state[name].to(chance.choice([torch.int64, torch.bool]))
        else:
            state[name] = state[name].unsqueeze(0)
    return state


@pytest.mark.parametrize("case", CASES)
def test_damaged_files_give_a_one_line_error(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = reference(case)
    chance, refusals = random.Random(0), []
    held: dict[str, Any] = {}
    (tmp_path / "a.pt").write_bytes(b"x")
    source = folders.mindalle(tmp_path / "theirs") if case == "mindalle" else tmp_path / "a.pt"
    for module in ("models", "mindalle"):
        monkeypatch.setattr(f"dalle.checkpoints.published.{module}.read_pickled", lambda file: held["tree"])
    monkeypatch.setattr("dalle.checkpoints.published.models.vqgan.read", lambda *_: None)
    for _ in range(25):
        state = damaged(whole, chance)
        given: dict[str, Any] = {"heads": 2}
        held["tree"] = {"state_dict": state}
        if case.startswith("dalle-pytorch"):
            given = {}
            held["tree"] = {"hparams": CASES[case], "vae_params": {}, "weights": state, "version": "1.6.6"}
        elif case.startswith("llamagen"):
            given["grid"] = ROWS
        elif case.startswith("rudalle"):
            given["convention"] = case[-2:]
        try:
            found = read_model(source, None, given).model
            found.check(DALLE(found.config), str(source))
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > 8 and all("\n" not in told and str(source) in told for told in refusals)
