"""CLIP's text tokenizer: byte-level BPE over cleaned, lower-cased words. DALLE-pytorch uses it too.

Radford et al. 2021 (arXiv 2103.00020), section 2.4; what exactly it does stands in clip/simple_tokenizer.py of OpenAI.
"""

from __future__ import annotations

import gzip
import html
import io
import unicodedata
import zlib
from collections.abc import Mapping
from typing import Literal

from dalle.config import config
from dalle.text_tokenizers.bpe import BPETokenizer

MERGES_FILE = "merges.txt"
MERGES = 48_894  # of CLIP; its published list goes on behind them
_WORD_END = "</w>"
_MOST_BYTES = 1 << 24  # of a list of merges; OpenAI's has 3.2 million
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_ENDINGS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
# The bytes in the order of their ids: first those that stand for themselves in the file of merges.
_PRINTED = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
_BYTES = (*_PRINTED, *(byte for byte in range(256) if byte not in _PRINTED))
_IDS = {byte: number for number, byte in enumerate(_BYTES)}
_CHARACTERS = [chr(byte) if byte in _PRINTED else chr(256 + i - len(_PRINTED)) for i, byte in enumerate(_BYTES)]


@config
class CLIPTokenizerConfig:
    kind: Literal["clip_bpe"] = "clip_bpe"
    """The byte-level BPE of CLIP."""
    ends: bool = True
    """Rows begin and end with a token, as CLIP's do; DALLE-pytorch's do not."""


class CLIPTokenizer(BPETokenizer):
    """Rows are a start token, the caption's, an end token, and 0s; a row that is cut keeps its end token.

    The vocabulary is the 256 bytes, these at the end of a word, one token for each merge, start and end.
    """

    config: CLIPTokenizerConfig
    pad_id = 0

    def __init__(self, config: CLIPTokenizerConfig, merges: bytes) -> None:
        """Build from the file of merges: merges.txt of a hub repository, or OpenAI's bpe_simple_vocab_16e6.txt(.gz).

        Raises:
            ValueError: it is another file, or damaged.
        """
        super().__init__(config)
        self._merges = _text(merges)
        vocabulary = [*_CHARACTERS, *(character + _WORD_END for character in _CHARACTERS)]
        numbers = {token: number for number, token in enumerate(vocabulary)}
        self.rules = {}
        for rank, line in enumerate(self._merges.split("\n")):
            pair = line.split()
            if len(pair) != 2 or pair[0] not in numbers or pair[1] not in numbers:
                raise ValueError(f"line {rank + 2} of the merges is {line[:40]!r}; expected two tokens that are known")
            first, second = numbers[pair[0]], numbers[pair[1]]
            joined = "".join(pair)
            numbers[joined] = len(vocabulary)
            vocabulary.append(joined)
            self.rules[first, second] = (rank, numbers[joined])
        if any(_CHARACTERS[_IDS[ord(" ")]] in token for token in vocabulary[512:]):
            raise ValueError(
                "there are spaces in its tokens, which CLIP's do not have: it is of another model, as GPT-2"
            )
        self.vocab_size = len(vocabulary) + 2
        self._special = dict(zip(_SPECIAL, (self.vocab_size - 2, self.vocab_size - 1), strict=True))
        self._vocabulary = vocabulary
        if config.ends:
            self.begin, self.end = (self.vocab_size - 2,), (self.vocab_size - 1,)
        self.keep_end = config.ends

    def __reduce__(self) -> tuple[type[CLIPTokenizer], tuple[CLIPTokenizerConfig, bytes]]:
        return CLIPTokenizer, (self.config, self.files()[MERGES_FILE])

    @property
    def vocabulary(self) -> dict[str, int]:
        """Tokens as vocab.json of a hub repository spells them, and their ids."""
        return {token: number for number, token in enumerate(self._vocabulary)} | self._special

    def files(self) -> Mapping[str, bytes]:
        return {MERGES_FILE: f"#version: 0.2\n{self._merges}\n".encode()}

    def _words(self, text: str) -> list[list[int]]:
        words = []
        for word in split(clean(text)):
            if word in self._special:
                words.append([self._special[word]])
            else:
                ids = [_IDS[byte] for byte in word.encode()]
                words.append([*ids[:-1], ids[-1] + 256])
        return words

    def _text(self, ids: list[int]) -> str:
        tokens = "".join(self._vocabulary[i] for i in ids if i < len(self._vocabulary))
        numbers = dict(zip(_CHARACTERS, _BYTES, strict=True))
        words = (bytes(numbers[c] for c in word).decode(errors="replace") for word in tokens.split(_WORD_END))
        return " ".join(words).strip()


def clean(text: str) -> str:
    """Mended encoding, HTML entities as characters, single spaces, lower case.

    Raises:
        ValueError: the text is not plain ASCII and `ftfy`, which mends encodings, is not installed.
    """
    if not (text.isascii() and text.replace("\n", "").replace("\t", "").isprintable() and "&" not in text):
        try:
            import ftfy
        except ImportError:
            raise ValueError(
                f'CLIP\'s text tokenizer needs ftfy for {text[:40]!r}: pip install "dalle[clip]" (or ftfy)'
            ) from None
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def split(text: str) -> list[str]:
    """Runs of letters, single digits, endings such as 's, and runs of all else but spaces."""
    words = []
    start = 0
    while start < len(text):
        kind = _kind(text[start])
        ending = next((e for e in (*_SPECIAL, *_ENDINGS) if _plain(text[start : start + len(e)]) == e), None)
        stop = start + 1
        if ending is not None:
            stop = start + len(ending)
        elif kind in ("letter", "other"):
            while stop < len(text) and _kind(text[stop]) == kind:
                stop += 1
        if kind != "space":
            words.append(text[start:stop])
        start = stop
    return words


def _plain(text: str) -> str:
    return text.replace("\u017f", "s")  # the long s, which is an s where case does not count


def _kind(character: str) -> str:
    if character == "\u0345":  # a mark whose capital is a letter: where case does not count, neither of the two fits
        return "space"
    category = unicodedata.category(character)[0]
    return "space" if character.isspace() else {"L": "letter", "N": "number"}.get(category, "other")


def _text(merges: bytes) -> str:
    """The lines of merges, without header and what stands behind them."""
    if merges.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(io.BytesIO(merges)) as unpacked:
                merges = unpacked.read(_MOST_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"the merges are a damaged .gz ({error}): fetch them again") from None
    if len(merges) > _MOST_BYTES:
        raise ValueError(
            f"the merges have over {_MOST_BYTES:,} bytes: expected merges.txt or bpe_simple_vocab_16e6.txt.gz"
        )
    try:
        lines = merges.decode().replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError:
        raise ValueError("the merges are not text: expected merges.txt or bpe_simple_vocab_16e6.txt.gz") from None
    kept = lines[1 : 1 + MERGES]
    while kept and not kept[-1]:
        kept.pop()
    if not kept:
        raise ValueError("the file of merges is empty: expected merges.txt or bpe_simple_vocab_16e6.txt.gz")
    return "\n".join(kept)
