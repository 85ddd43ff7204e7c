"""Which kind a published text tokenizer is of, by what its files hold."""

from __future__ import annotations

import json
from pathlib import Path

from dalle.checkpoints.hub import resolve
from dalle.text_tokenizers import (
    CharTokenizer,
    CharTokenizerConfig,
    CLIPTokenizer,
    CLIPTokenizerConfig,
    SigLIPTokenizer,
    SigLIPTokenizerConfig,
    TextTokenizer,
    YTTMTokenizer,
    YTTMTokenizerConfig,
)

CLIP_SOURCE = "openai/clip-vit-base-patch32/merges.txt"
"""Where CLIP's text tokenizer is on the hub, for files that were published without it."""
CLIP_WORDS = 49_408
_CLIP_MERGES = ("merges.txt", "bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt")
_YTTM = "bpe.model"
_SIGLIP = {"spiece.model": 1, "tokenizer.model": 2}  # and which version of SigLIP has it
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


def text_tokenizer_beside(weights: Path, ends: bool = True) -> TextTokenizer | None:
    """The text tokenizer in a folder, or beside a file; None where there is none.

    Raises:
        ValueError: it is damaged.
    """
    folder = weights if weights.is_dir() else weights.parent
    return read_text_tokenizer(folder, ends) if _files(folder) else None


def clip_text_tokenizer(weights: Path, towers: str = "clip") -> TextTokenizer:
    """The text tokenizer beside a published CLIP, or the one that all of them have, SigLIPs (`towers`) excepted.

    Raises:
        ValueError: there is none beside it, and the hub cannot be reached.
    """
    found = text_tokenizer_beside(weights)
    if found is not None:
        return found
    if towers == "siglip":
        raise ValueError(
            f"{weights} has no text tokenizer beside it: put spiece.model (SigLIP) or tokenizer.model (SigLIP 2) of "
            "its repository there"
        )
    try:
        return read_text_tokenizer(resolve(CLIP_SOURCE))
    except ValueError as error:
        raise ValueError(
            f"{weights} has no text tokenizer beside it, and {CLIP_SOURCE} cannot be had: put merges.txt of that "
            "repository there, or bpe_simple_vocab_16e6.txt.gz of github.com/openai/CLIP"
        ) from error


def _files(folder: Path) -> list[Path]:
    """Files of text tokenizers in a folder: the two of minDALL-E's, or those of others."""
    for names in _CHAR:
        pair = [folder / name for name in names]
        if all(file.is_file() for file in pair) and b'"[UNK]"' in _content(pair[0]):
            return pair
    return [folder / name for name in (*_CLIP_MERGES, _YTTM, *_SIGLIP) if (folder / name).is_file()]


def _read(source: Path, ends: bool) -> TextTokenizer:
    if source.is_dir():
        there = _files(source)
        if len(there) == 2 and there[0].suffix == ".json":
            return CharTokenizer(CharTokenizerConfig(), *map(_content, there))
        if not there:
            raise ValueError(
                "it holds no text tokenizer: expected bpe.model (ruDALL-E), merges.txt or bpe_simple_vocab_16e6.txt.gz "
                "(CLIP), spiece.model or tokenizer.model (SigLIP), or vocabulary and merges (minDALL-E)"
            )
        source = there[0]
    content = _content(source)
    if source.name in _SIGLIP:
        return SigLIPTokenizer(SigLIPTokenizerConfig(version=1 if _SIGLIP[source.name] == 1 else 2), content)
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
