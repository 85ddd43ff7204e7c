"""Text tokenizers behind one interface: captions to ids [B, T] and back. We train SentencePiece; others are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dalle.config import from_dict, read_yaml
from dalle.text_tokenizers import char_bpe, clip_bpe, siglip, tokenizer_json, xlm_roberta, yttm
from dalle.text_tokenizers.base import TextTokenizer
from dalle.text_tokenizers.char_bpe import CharTokenizer, CharTokenizerConfig
from dalle.text_tokenizers.classes import ClassTokenizer, ClassTokenizerConfig
from dalle.text_tokenizers.clip_bpe import CLIPTokenizer, CLIPTokenizerConfig
from dalle.text_tokenizers.sentencepiece import EOS_ID, PAD_ID, SentencePieceTokenizer, TextTokenizerConfig
from dalle.text_tokenizers.siglip import SigLIPTokenizer, SigLIPTokenizerConfig
from dalle.text_tokenizers.tokenizer_json import JSONTokenizer, JSONTokenizerConfig
from dalle.text_tokenizers.xlm_roberta import XLMRobertaTokenizer, XLMRobertaTokenizerConfig
from dalle.text_tokenizers.yttm import YTTMTokenizer, YTTMTokenizerConfig

__all__ = [
    "EOS_ID",
    "PAD_ID",
    "CLIPTokenizer",
    "CLIPTokenizerConfig",
    "CharTokenizer",
    "CharTokenizerConfig",
    "ClassTokenizer",
    "ClassTokenizerConfig",
    "JSONTokenizer",
    "JSONTokenizerConfig",
    "SentencePieceTokenizer",
    "SigLIPTokenizer",
    "SigLIPTokenizerConfig",
    "TextTokenizer",
    "TextTokenizerConfig",
    "XLMRobertaTokenizer",
    "XLMRobertaTokenizerConfig",
    "YTTMTokenizer",
    "YTTMTokenizerConfig",
    "load",
]


def load(folder: Path, config: Mapping[str, Any] | None = None) -> TextTokenizer:
    """Load the text tokenizer in a folder that `TextTokenizer.save` wrote.

    Args:
        folder: the tokenizer's folder.
        config: the contents of its config.yaml, if they have been read already.

    Raises:
        ValueError: a file is missing, damaged, or belongs to another tokenizer.
    """
    recipe = folder / "config.yaml"
    config = read_yaml(recipe) if config is None else config
    model = config.get("model") or {}
    kind = model.get("kind") if isinstance(model, dict) else None
    if kind is None:
        return SentencePieceTokenizer.load(folder, config)  # recipes of our own have no kind

    def content(name: str) -> bytes:
        if not (folder / name).is_file():
            raise ValueError(f"no {name} in {folder}: a text tokenizer of kind {kind} needs this file")
        return (folder / name).read_bytes()

    where = str(recipe)
    try:
        if kind == "clip_bpe":
            return CLIPTokenizer(from_dict(CLIPTokenizerConfig, model, where), content(clip_bpe.MERGES_FILE))
        if kind == "char_bpe":
            files = content(char_bpe.VOCAB_FILE), content(char_bpe.MERGES_FILE)
            return CharTokenizer(from_dict(CharTokenizerConfig, model, where), *files)
        if kind == "yttm":
            return YTTMTokenizer(from_dict(YTTMTokenizerConfig, model, where), content(yttm.MODEL_FILE))
        if kind == "siglip":
            return SigLIPTokenizer(from_dict(SigLIPTokenizerConfig, model, where), content(siglip.MODEL_FILE))
        if kind == "xlm_roberta":
            return XLMRobertaTokenizer(
                from_dict(XLMRobertaTokenizerConfig, model, where), content(xlm_roberta.MODEL_FILE)
            )
        if kind == "tokenizer_json":
            return JSONTokenizer(from_dict(JSONTokenizerConfig, model, where), content(tokenizer_json.MODEL_FILE))
        if kind == "classes":
            return ClassTokenizer(from_dict(ClassTokenizerConfig, model, where))
    except ValueError as error:
        raise ValueError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from None
    raise ValueError(
        f"{where}: model.kind is {kind!r}, expected clip_bpe, char_bpe, yttm, siglip, tokenizer_json, "
        "xlm_roberta, classes, or none (SentencePiece)"
    )
