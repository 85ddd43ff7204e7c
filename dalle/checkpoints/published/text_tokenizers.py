"""Detects the kind of a published text tokenizer from its files, and reads it."""

from __future__ import annotations

import json
from pathlib import Path

from dalle.checkpoints.hub import resolve
from dalle.checkpoints.published.files import reject_unreadable
from dalle.text_tokenizers import (
    CharTokenizer,
    CharTokenizerConfig,
    CLIPTokenizer,
    CLIPTokenizerConfig,
    SigLIPTokenizer,
    SigLIPTokenizerConfig,
    TextTokenizer,
    XLMRobertaTokenizer,
    XLMRobertaTokenizerConfig,
    YTTMTokenizer,
    YTTMTokenizerConfig,
    tokenizer_json,
)

CLIP_SOURCE = "openai/clip-vit-base-patch32/merges.txt"
"""CLIP's text tokenizer on the hub, for models published without it."""
CLIP_WORDS = 49_408  # size of its vocabulary
_CLIP_MERGES = ("merges.txt", "bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt")
_YTTM = "bpe.model"
_SIGLIP = {"spiece.model": 1, "tokenizer.model": 2}  # file name -> version of SigLIP
_XLM_ROBERTA = "sentencepiece.bpe.model"
_INNER = "tokenizer"  # folder of the text tokenizer, of minDALL-E and of diffusers' pipelines
_PIPELINE = "model_index.json"  # in a folder of diffusers with several models
_LANGUAGE_MODELS = (tokenizer_json.MODEL_FILE, "emu3.tiktoken")
_MOST_BYTES = 1 << 26  # largest text tokenizer file; weights are larger
_CHAR = (("bpe-16k-vocab.json", "bpe-16k-merges.txt"), ("vocab.json", "merges.txt"))


def read_text_tokenizer(source: Path, add_special_tokens: bool = True) -> TextTokenizer:
    """Read a published text tokenizer.

    Args:
        source: CLIP's merges, `bpe.model` of YouTokenToMe, a SentencePiece model of SigLIP or XLM-R, or a folder with
            one of these or with the vocabulary and merges of minDALL-E, also in its folder `tokenizer`.
        add_special_tokens: whether to add begin and end tokens, as CLIP and ruDALL-E do; DALLE-pytorch, which uses the
            same files, does not.

    Raises:
        ValueError: it is none of these, or damaged; one line that names the source.
    """
    try:
        return _read(source, add_special_tokens)
    except ValueError as error:
        reason = str(error)
        raise ValueError(reason if str(source) in reason else f"{source} cannot be loaded: {reason}") from error


def find_text_tokenizer(weights: Path, add_special_tokens: bool = True) -> TextTokenizer | None:
    """The text tokenizer in a folder, or beside a weight file; None if there is none.

    Raises:
        ValueError: it is damaged.
    """
    folder = weights if weights.is_dir() else weights.parent
    return read_text_tokenizer(folder, add_special_tokens) if _files(folder) else None


class MissingTokenizer(ValueError):
    """A CLIP has no text tokenizer beside its weights, and none can be fetched."""


def clip_text_tokenizer(weights: Path, towers: str = "clip") -> TextTokenizer:
    """The text tokenizer beside a published CLIP; without one, OpenAI's, which CLIPs with other `towers` do not use.

    Raises:
        MissingTokenizer: there is none beside it, and the hub cannot be reached.
        ValueError: the one beside it is damaged.
    """
    found = find_text_tokenizer(weights)
    if found is not None:
        return found
    # A pipeline of diffusers, such as Karlo, has its tokenizer in a folder beside that of the text tower
    pipeline = (weights if weights.is_dir() else weights.parent).resolve().parent
    if (pipeline / _PIPELINE).is_file() and (pipeline / _INNER).is_dir():
        return read_text_tokenizer(pipeline / _INNER)
    if towers == "siglip":
        raise MissingTokenizer(
            f"{weights} has no text tokenizer beside it: put spiece.model (SigLIP) or tokenizer.model (SigLIP 2) of "
            "its repository there"
        )
    if towers == "xlm_roberta":
        raise MissingTokenizer(f"{weights} has no text tokenizer beside it: put {_XLM_ROBERTA} of its repository there")
    try:
        source = resolve(CLIP_SOURCE)
    except ValueError as error:
        raise MissingTokenizer(
            f"{weights} has no text tokenizer beside it, and {CLIP_SOURCE} cannot be fetched: put merges.txt of that "
            "repository there, or bpe_simple_vocab_16e6.txt.gz of github.com/openai/CLIP"
        ) from error
    return read_text_tokenizer(source)


def find_json(folder: Path, name: str = tokenizer_json.MODEL_FILE) -> bytes:
    """The content of the tokenizer.json in a folder, for a model that knows what prompt it wants.

    Raises:
        ValueError: there is none.
    """
    if not (folder / name).is_file():
        raise ValueError(f"{folder} has no {name}: put that of the model's repository there")
    return _content(folder / name)


def _files(folder: Path) -> list[Path]:
    """The text tokenizer files in a folder: minDALL-E's two, or those of other kinds."""
    for names in _CHAR:
        pair = [folder / name for name in names]
        # GPT-2's and CLIP's vocabularies have the same file names, but no [UNK]
        if all(file.is_file() for file in pair) and b'"[UNK]"' in _content(pair[0]):
            return pair
    kinds = (_XLM_ROBERTA, *_CLIP_MERGES, _YTTM, *_SIGLIP)
    found = [folder / name for name in kinds if (folder / name).is_file()]
    return found if found or not (folder / _INNER).is_dir() else _files(folder / _INNER)


def _read(source: Path, add_special_tokens: bool) -> TextTokenizer:
    if source.is_dir():
        there = _files(source)
        if len(there) == 2 and there[0].suffix == ".json":
            return CharTokenizer(CharTokenizerConfig(), *map(_content, there))
        if not there:
            of_model = next((name for name in _LANGUAGE_MODELS if (source / name).is_file()), None)
            if of_model is not None:
                raise ValueError(_only_with_model(of_model))
            raise ValueError(
                "it has no text tokenizer: expected bpe.model (ruDALL-E), merges.txt or bpe_simple_vocab_16e6.txt.gz "
                "(CLIP), spiece.model or tokenizer.model (SigLIP), sentencepiece.bpe.model (XLM-R), or vocabulary and "
                "merges (minDALL-E)"
            )
        source = there[0]
    if source.name in _LANGUAGE_MODELS:
        raise ValueError(_only_with_model(source.name))
    content = _content(source)
    if source.name in _SIGLIP:
        return SigLIPTokenizer(SigLIPTokenizerConfig(version=1 if _SIGLIP[source.name] == 1 else 2), content)
    if source.name == _XLM_ROBERTA:
        return XLMRobertaTokenizer(XLMRobertaTokenizerConfig(), content)
    # YouTokenToMe's models begin with two counts; CLIP's merges with a version line or a pair of symbols.
    if content[:64].split(None, 1)[:1] and content[:64].split(None, 1)[0].isdigit():
        return YTTMTokenizer(YTTMTokenizerConfig(ends=add_special_tokens), content)
    tokenizer = CLIPTokenizer(CLIPTokenizerConfig(ends=add_special_tokens), content)
    numbers = source.with_name("vocab.json")
    # Others than CLIPs publish a merges.txt too: the numbers tell
    if source.name == "merges.txt" and numbers.is_file():
        _check(tokenizer, numbers)
    return tokenizer


def _only_with_model(name: str) -> str:
    clip = "; of a CLIP give its merges.txt" if name == tokenizer_json.MODEL_FILE else ""
    return f"a {name} is read with its language model, which knows the prompt: leave it out{clip}"


def _check(tokenizer: CLIPTokenizer, vocab: Path) -> None:
    """Check that vocab.json numbers tokens as CLIP does: other models also publish a merges.txt."""
    try:
        numbers = json.loads(_content(vocab))
    except (ValueError, RecursionError):
        raise ValueError(f"{vocab} is not valid JSON: download it again") from None
    if numbers != tokenizer.vocabulary:
        raise ValueError(f"{vocab} numbers its tokens differently from CLIP: give the files of a CLIP")


def _content(file: Path) -> bytes:
    reject_unreadable(file)
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError(
            f"{file} has {file.stat().st_size:,} bytes, too many for a text tokenizer: give the tokenizer's own files"
        )
    return file.read_bytes()
