"""Which kind a published text tokenizer is of, by what its files hold."""

from __future__ import annotations

import json
from pathlib import Path

from dalle.text import (
    CharTokenizer,
    CharTokenizerConfig,
    CLIPTokenizer,
    CLIPTokenizerConfig,
    TextTokenizer,
    YTTMTokenizer,
    YTTMTokenizerConfig,
)

_CLIP_MERGES = ("merges.txt", "bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt")
_YTTM = "bpe.model"
_MOST_BYTES = 1 << 26  # of a file; weights are larger
_CHAR = (("bpe-16k-vocab.json", "bpe-16k-merges.txt"), ("vocab.json", "merges.txt"))


def read_text_tokenizer(source: Path, ends: bool = True) -> TextTokenizer:
    """The text tokenizer in a file or folder that somebody has published.

    Args:
        source: merges of CLIP, `bpe.model` of YouTokenToMe, or a folder with one of these or with the vocabulary and
            merges of minDALL-E.
        ends: whether rows begin and end with tokens, as those of CLIP and ruDALL-E do and those of DALLE-pytorch, which
            uses the same files, do not.

    Raises:
        ValueError: it is none of these, or damaged; one line that names the source.
    """
    try:
        return _read(source, ends)
    except ValueError as error:
        told = str(error)
        raise ValueError(told if str(source) in told else f"{source} cannot be loaded: {told}") from error


def _read(source: Path, ends: bool) -> TextTokenizer:
    folder = source if source.is_dir() else source.parent
    if source.is_dir():
        for vocab, merges in _CHAR:
            files = folder / vocab, folder / merges
            if all(file.is_file() for file in files) and b'"[UNK]"' in _content(files[0]):
                return CharTokenizer(CharTokenizerConfig(), *map(_content, files))
        there = [folder / name for name in (*_CLIP_MERGES, _YTTM) if (folder / name).is_file()]
        if not there:
            raise ValueError(
                "it holds no text tokenizer: expected bpe.model (ruDALL-E), merges.txt or bpe_simple_vocab_16e6.txt.gz "
                "(CLIP), or vocabulary and merges (minDALL-E)"
            )
        source = there[0]
    content = _content(source)
    if content[:64].split(None, 1)[:1] and content[:64].split(None, 1)[0].isdigit():
        return YTTMTokenizer(YTTMTokenizerConfig(ends=ends), content)
    tokenizer = CLIPTokenizer(CLIPTokenizerConfig(ends=ends), content)
    numbers = source.with_name("vocab.json")
    if source.name == "merges.txt" and numbers.is_file():
        _check(tokenizer, numbers)
    return tokenizer


def _check(tokenizer: CLIPTokenizer, vocab: Path) -> None:
    """Refuse merges of a model that numbers its tokens in another way."""
    try:
        numbers = json.loads(_content(vocab))
    except (ValueError, RecursionError):
        raise ValueError(f"{vocab} is no JSON: fetch it again") from None
    if numbers != tokenizer.vocabulary:
        raise ValueError(f"{vocab} numbers other tokens than merges.txt does in CLIP: they are of another model")


def _content(file: Path) -> bytes:
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{file} has {file.stat().st_size:,} bytes, which no text tokenizer has: give its files")
    return file.read_bytes()
