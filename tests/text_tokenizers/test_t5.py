"""Captions are cleaned as LlamaGen's own code cleans them; features are those of transformers' T5, at the right end.

references/t5_cleaned.json holds captions and what `T5Embedder.text_preprocessing` of LlamaGen's language/t5.py made of
them (commit ce98ec4).
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dalle.files import install_command
from dalle.text_tokenizers.t5 import T5Encoder, clean
from support.published import folders

CLEANED = json.loads((Path(__file__).parent / "references" / "t5_cleaned.json").read_text())


def test_captions_are_cleaned_as_llamagen_does() -> None:
    pytest.importorskip("bs4", reason='pip install "dalle[t5]"')
    wrong = [(text, clean(clean(text)), expected) for text, expected in CLEANED if clean(clean(text)) != expected]
    assert not wrong and len(CLEANED) > 100


def test_features_equal_transformers_padded_on_the_left(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason='pip install "dalle[t5]"')
    pytest.importorskip("bs4")
    folder = folders.t5(tmp_path)
    encoder = T5Encoder.load(folder)
    assert encoder.width == folders.T5_WIDTH
    texts = ["A red FOX", "a red fox in the forest", ""]
    made = encoder.encode(texts, length=6)
    model = transformers.T5EncoderModel.from_pretrained(folder).eval()
    rows = ([3, 5, 4, 1], [3, 5, 4, 6, 7, 1], [1])  # of the words, cut to five and the end
    for row, ids in enumerate(rows):
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(made[row, 6 - len(ids) :], expected, rtol=0, atol=1e-5)
        assert not made[row, : 6 - len(ids)].any()
    assert T5Encoder.load(folder, dtype=torch.bfloat16).encode(texts, 6).dtype == torch.float32


def test_caption_like_a_file_name_gives_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    pytest.importorskip("bs4", reason='pip install "dalle[t5]"')
    assert clean("file.html") == "file. html"
    assert not recwarn.list


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("bs4", "ftfy", "transformers"):
        pytest.importorskip(name, reason='pip install "dalle[t5]"')
    return folders.t5(tmp_path_factory.mktemp("t5") / "tiny")


def test_wrong_captions_are_refused(tiny: Path) -> None:
    encoder = T5Encoder.load(tiny)
    with pytest.raises(ValueError, match="takes a list of captions, got the string 'fox'"):
        encoder.encode("fox")
    with pytest.raises(ValueError, match="length is 0"):
        encoder.encode(["fox"], 0)
    with pytest.raises(ValueError, match="lone surrogate"):
        encoder.encode(["fo\ud800x"])


QUERY = "encoder.block.0.layer.0.SelfAttention.q.weight"


def _without_a_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[QUERY]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _with_a_misshapen_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors") | {QUERY: torch.zeros(3, 5)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _truncated(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _without_a_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def _other_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))


def _fewer_words(folder: Path) -> None:
    table = load_file(folder / "model.safetensors")
    name = "shared.weight"
    save_file(table | {name: table[name][:5].clone()}, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 5}))


@pytest.mark.parametrize(
    "change, message",
    [
        (_without_a_weight, rf"its weights have no {QUERY} \(1 missing\)"),
        (_with_a_misshapen_weight, rf"{QUERY} is \[3, 5\], its config.json says \["),
        (_truncated, "header"),
        (_pickled, "no file named model.safetensors"),
        (_without_a_tokenizer, "it has no tokenizer: expected tokenizer.json or spiece.model"),
        (_other_model, "model_type: 'bert', expected 't5'"),
        (_fewer_words, "its tokenizer has ids up to 8, but its model only 5 embeddings"),
    ],
)
def test_missing_weights_or_tokenizer_are_refused(
    tiny: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    """transformers draws missing weights at random, and makes a tokenizer without words where there is none."""
    source = tmp_path / "changed"
    shutil.copytree(tiny, source)
    change(source)
    with pytest.raises(ValueError, match=message) as caught:
        T5Encoder.load(source)
    assert "\n" not in str(caught.value) and str(source) in str(caught.value)


@pytest.mark.parametrize("kind", ["t5", "theirs"])
def test_no_code_of_a_folder_is_run(kind: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of itself, transformers asks whether to run it."""
    source, ran, asked = tmp_path / "hostile", tmp_path / "ran", []
    shutil.copytree(tiny, source)
    (source / "theirs.py").write_text(f"open({str(ran)!r}, 'w')\nclass Theirs: pass\n")
    for name, classes in (("config.json", "theirs.Theirs"), ("tokenizer_config.json", ["theirs.Theirs"] * 2)):
        content = json.loads((source / name).read_text()) | {"tokenizer_class": "Theirs"}
        if name == "config.json":
            content["model_type"] = kind
        content["auto_map"] = dict.fromkeys(("AutoConfig", "AutoModel", "AutoTokenizer"), classes)
        (source / name).write_text(json.dumps(content))
    monkeypatch.setattr("builtins.input", lambda *prompt: asked.append(prompt) or "y")
    with suppress(ValueError):  # a T5 may be read by the library's own classes instead
        T5Encoder.load(source)
    assert not asked and not ran.exists()


def test_missing_extra_or_folder_gives_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=re.escape(install_command("t5"))):
        T5Encoder.load(tmp_path)
    monkeypatch.undo()
    pytest.importorskip("transformers")
    pytest.importorskip("bs4")
    with pytest.raises(ValueError, match="cannot be loaded as a T5 encoder") as caught:
        T5Encoder.load(tmp_path)
    assert "\n" not in str(caught.value)
