"""Text tokenizers of others are told apart by what their files hold."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from dalle.checkpoints.load import load_text_tokenizer
from dalle.checkpoints.published import text_tokenizers
from dalle.checkpoints.published.files import weights_file
from dalle.checkpoints.published.text_tokenizers import read_text_tokenizer
from dalle.text_tokenizers import CharTokenizer, CLIPTokenizer, TextTokenizer, YTTMTokenizer
from support.published import folders
from support.tiny_model import make_tiny_model

MERGES = "#version: 0.2\na b\nab c</w>\n"
NUMBERS = {"[UNK]": 0, "a": 1, "b": 2, "b</w>": 3, "ab</w>": 4}


def clip(folder: Path, name: str = "merges.txt") -> Path:
    content = MERGES.encode()
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder / name


def char(folder: Path, prefix: str) -> Path:
    (folder / f"{prefix}vocab.json").write_text(json.dumps(NUMBERS))
    (folder / f"{prefix}merges.txt").write_text("#version: 0.2\na b</w>\n")
    return folder


def yttm(folder: Path, name: str = "bpe.model") -> Path:
    (folder / name).write_text(folders.YTTM)
    return folder / name


@pytest.mark.parametrize("name", ["merges.txt", "bpe_simple_vocab_16e6.txt", "bpe_simple_vocab_16e6.txt.gz"])
@pytest.mark.parametrize("whole", [True, False])
def test_clip_merges_are_recognized(name: str, whole: bool, tmp_path: Path) -> None:
    file = clip(tmp_path, name)
    tokenizer = read_text_tokenizer(tmp_path if whole else file)
    assert isinstance(tokenizer, CLIPTokenizer) and tokenizer.vocab_size == 516
    merged = tokenizer.vocabulary["abc</w>"]
    assert merged == 513 and tokenizer.encode_ragged(["ABC"]) == [[514, merged, 515]]
    assert read_text_tokenizer(file, add_special_tokens=False).encode_ragged(["abc"]) == [[merged]]


def test_clip_vocabulary_file_must_match_the_merges(tmp_path: Path) -> None:
    tokenizer = read_text_tokenizer(clip(tmp_path))
    assert isinstance(tokenizer, CLIPTokenizer)
    (tmp_path / "vocab.json").write_text(json.dumps(tokenizer.vocabulary))
    assert isinstance(read_text_tokenizer(tmp_path), CLIPTokenizer)
    swapped = tokenizer.vocabulary | {"a": tokenizer.vocabulary["b"], "b": tokenizer.vocabulary["a"]}
    (tmp_path / "vocab.json").write_text(json.dumps(swapped))
    refused(tmp_path, "numbers its tokens differently from CLIP")
    (tmp_path / "vocab.json").write_text("{")
    refused(tmp_path, "is not valid JSON")


@pytest.mark.parametrize("prefix", ["bpe-16k-", ""])
def test_mindalle_tokenizer_is_recognized(prefix: str, tmp_path: Path) -> None:
    tokenizer = read_text_tokenizer(char(tmp_path, prefix))
    assert isinstance(tokenizer, CharTokenizer) and tokenizer.pad_id == 5 and tokenizer.vocab_size == 6
    assert tokenizer.encode(["AB q"], 4).tolist() == [[4, 0, 5, 5]]


def test_rudalle_tokenizer_is_recognized_under_any_name(tmp_path: Path) -> None:
    for source in (yttm(tmp_path), tmp_path, yttm(tmp_path, "russian.txt")):
        assert isinstance(read_text_tokenizer(source), YTTMTokenizer)
    assert read_text_tokenizer(tmp_path).encode_ragged([""]) == [[2, 3]]
    assert read_text_tokenizer(tmp_path, add_special_tokens=False).encode_ragged([""]) == [[]]


@pytest.mark.parametrize("make", [clip, lambda folder: char(folder, "bpe-16k-"), yttm])
def test_loaded_tokenizers_survive_saving(make: object, tmp_path: Path) -> None:
    theirs = load_text_tokenizer(make(tmp_path), add_special_tokens=False)  # type: ignore[operator]
    theirs.save(tmp_path / "ours")
    again: TextTokenizer = load_text_tokenizer(tmp_path / "ours")
    assert type(again) is type(theirs) and again.config == theirs.config
    assert again.encode(["ab abc"]).tolist() == theirs.encode(["ab abc"]).tolist()


def refused(source: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_text_tokenizer(source)
    assert "\n" not in str(caught.value) and str(source) in str(caught.value)


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(tmp_path, "it has no text tokenizer: expected bpe.model")
    for name in ("tokenizer.json", "emu3.tiktoken"):
        other = tmp_path / "language model" / name
        other.parent.mkdir(exist_ok=True)
        other.write_text("{}")
        for source in (other, other.parent):
            refused(source, f"a {name} is read with its language model, which knows the prompt: leave it out")
        other.unlink()
    file = tmp_path / "file"
    for content, message in (
        (b"", "the merges file is empty"),
        (b"\x89PNG\r\n\x1a\n\x00", "are not text"),
        (b"# A card\n\nOf a model.\n", "expected two known tokens"),
        (b"12 monkeys", "not a YouTokenToMe model"),
    ):
        file.write_bytes(content)
        refused(file, message)
    monkeypatch.setattr(text_tokenizers, "_MOST_BYTES", 100)
    file.write_bytes(bytes(101))
    refused(file, "has 101 bytes, too many for a text tokenizer")


def test_text_tokenizer_of_a_model_folder_loads(tmp_path: Path) -> None:
    source = folders.mindalle(tmp_path / "theirs")
    inner = load_text_tokenizer(source)
    assert inner.encode_ragged(["ab c"]) == load_text_tokenizer(source / "tokenizer").encode_ragged(["ab c"])
    model = make_tiny_model(tmp_path / "ours")
    for folder in (model, model.parent / "clip"):
        found, part = load_text_tokenizer(folder), load_text_tokenizer(folder / "text_tokenizer")
        assert found.encode_ragged(["a red heart"]) == part.encode_ragged(["a red heart"])
    with pytest.raises(ValueError, match="holds an image tokenizer, expected a text tokenizer"):
        load_text_tokenizer(model / "image_tokenizer")


def test_folders_with_several_weights_are_named(tmp_path: Path) -> None:
    for name in ("unet", "vae", "text_encoder", "safety"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ValueError) as caught:
        weights_file(tmp_path)
    shown = "safety/weights.safetensors, text_encoder/weights.safetensors, unet/weights.safetensors, ..."
    assert f"it has 4 weight files ({shown})" in str(caught.value)
