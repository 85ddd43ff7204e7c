"""`interpolate`: weights of models that read other tokens are not mixed. Its values are tested by `dalle export`."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from dalle.checkpoints import model_folder
from dalle.checkpoints.interpolate import interpolate
from dalle.checkpoints.model_folder import ModelFolder
from dalle.text_tokenizers import SentencePieceTokenizer, TextTokenizerConfig
from support.tiny_model import CAPTIONS, make_tiny_model


def with_part(model: Path, folder: Path, name: str, part: Path) -> Path:
    """The same weights with another component."""
    own = ModelFolder(model)
    parts = {other: model / other for other in own.components} | {name: part}
    config = {key: own.config[key] for key in ("stage", "model")}
    model_folder.save(folder, config, own.tensors(), parts=parts)
    return folder


def test_models_of_other_tokens_are_not_mixed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make_tiny_model(tmp_path / "one")
    words = SentencePieceTokenizer.train(TextTokenizerConfig(vocab_size=300), ["a cat on a mat", *CAPTIONS])
    words.save(tmp_path / "words")
    other = with_part(model, tmp_path / "other", "text_tokenizer", tmp_path / "words")
    with pytest.raises(ValueError, match="has another text_tokenizer than"):
        interpolate(model, ModelFolder(model).tensors(), str(other), 0.5)
    images = make_tiny_model(tmp_path / "two", seed=1).parent / "image_tokenizer"
    other = with_part(model, tmp_path / "third", "image_tokenizer", images)
    with caplog.at_level(logging.WARNING):
        interpolate(model, ModelFolder(model).tensors(), str(model), 0.5)
        assert not caplog.messages
        interpolate(model, ModelFolder(model).tensors(), str(other), 0.5)
    assert "has another image_tokenizer than" in caplog.text and "unless their codes are the same" in caplog.text
