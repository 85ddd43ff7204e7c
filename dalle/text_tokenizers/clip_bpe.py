"""CLIP's text tokenizer: byte-level BPE over cleaned, lower-cased words. DALLE-pytorch uses it too.

Radford et al. 2021 (arXiv 2103.00020), section 2.4; the exact rules are those of OpenAI's clip/simple_tokenizer.py.
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
from dalle.files import install_command
from dalle.text_tokenizers.bpe import BPETokenizer

MERGES_FILE = "merges.txt"
MERGES = 48_894  # merges that CLIP uses; the published list is longer
_WORD_END = "</w>"
_MAX_MERGES_BYTES = 1 << 24  # OpenAI's file has 3.2 million bytes
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_ENDINGS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
# Bytes in the order of their ids: printable ones first, which the merges file writes as themselves; it writes each of
# the others as a character from U+0100 on (GPT-2's byte-to-unicode table).
_PRINTED = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
_BYTES = (*_PRINTED, *(byte for byte in range(256) if byte not in _PRINTED))
_IDS = {byte: number for number, byte in enumerate(_BYTES)}
_CHARACTERS = [chr(byte) if byte in _PRINTED else chr(256 + i - len(_PRINTED)) for i, byte in enumerate(_BYTES)]


@config
class CLIPTokenizerConfig:
    """Config of a byte-level BPE like CLIP's."""

    kind: Literal["clip_bpe"] = "clip_bpe"
    """The byte-level BPE of CLIP."""
    ends: bool = True
    """Add a start and an end token to each row, as CLIP does; DALLE-pytorch does not."""


class CLIPTokenizer(BPETokenizer):
    """Rows are a start token, the caption's tokens, an end token, and 0s; a truncated row keeps its end token.

    The vocabulary is the 256 bytes, the 256 bytes at the end of a word, one token for each merge, start and end.
    """

    config: CLIPTokenizerConfig
    pad_id = 0

    def __init__(self, config: CLIPTokenizerConfig, merges: bytes) -> None:
        """Build from the merges: merges.txt of a hub repository, or OpenAI's bpe_simple_vocab_16e6.txt(.gz).

        Raises:
            ValueError: it is another file, or damaged.
        """
        super().__init__(config)
        self._merges = _merge_lines(merges)
        vocabulary = [*_CHARACTERS, *(character + _WORD_END for character in _CHARACTERS)]
        numbers = {token: number for number, token in enumerate(vocabulary)}
        self.rules = {}
        for rank, line in enumerate(self._merges.split("\n")):
            pair = line.split()
            if len(pair) != 2 or pair[0] not in numbers or pair[1] not in numbers:
                raise ValueError(f"line {rank + 2} of the merges is {line[:40]!r}; expected two known tokens")
            first, second = numbers[pair[0]], numbers[pair[1]]
            joined = "".join(pair)
            numbers[joined] = len(vocabulary)
            vocabulary.append(joined)
            self.rules[first, second] = (rank, numbers[joined])
        # GPT-2's merges have the same format, but its tokens include the space before a word.
        if any(_CHARACTERS[_IDS[ord(" ")]] in token for token in vocabulary[512:]):
            raise ValueError("these merges contain spaces, unlike CLIP's: they are another model's, such as GPT-2's")
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
        """Tokens, spelled as in vocab.json of a hub repository, and their ids."""
        return {token: number for number, token in enumerate(self._vocabulary)} | self._special

    def files(self) -> Mapping[str, bytes]:
        """merges.txt in the format of a hub repository, with the merges that are used and no others."""
        return {MERGES_FILE: f"#version: 0.2\n{self._merges}\n".encode()}

    def _words(self, text: str) -> list[list[int]]:
        words = []
        for word in split_words(clean(text)):
            if word in self._special:
                words.append([self._special[word]])
            else:
                ids = [_IDS[byte] for byte in word.encode()]
                words.append([*ids[:-1], ids[-1] + 256])  # the last byte of a word has an id of its own
        return words

    def _detokenize(self, ids: list[int]) -> str:
        tokens = "".join(self._vocabulary[i] for i in ids if i < len(self._vocabulary))
        numbers = dict(zip(_CHARACTERS, _BYTES, strict=True))
        words = (bytes(numbers[c] for c in word).decode(errors="replace") for word in tokens.split(_WORD_END))
        return " ".join(words).strip()


def clean(text: str) -> str:
    """`mend`, then lower-case."""
    return mend(text).lower()


def mend(text: str) -> str:
    """Fix mojibake, unescape HTML entities, collapse white space.

    Raises:
        ValueError: the text is not plain ASCII and ftfy, which fixes mojibake, is not installed.
    """
    # Plain ASCII comes through ftfy and html.unescape unchanged, and so needs no ftfy.
    if not (text.isascii() and text.replace("\n", "").replace("\t", "").isprintable() and "&" not in text):
        try:
            import ftfy
        except ImportError:
            raise ValueError(f"CLIP's text tokenizer needs ftfy for {text[:40]!r}: {install_command('clip')}") from None
        text = html.unescape(html.unescape(ftfy.fix_text(text)))  # twice, as CLIP does
    return " ".join(text.split())


def split_words(text: str) -> list[str]:
    r"""Runs of letters, single digits, contractions such as 's, and runs of anything else but spaces.

    Does by hand what CLIP's pattern, `<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|
    [^\s\p{L}\p{N}]+`, does with the third-party package `regex`, ignoring case.
    """
    words = []
    start = 0
    while start < len(text):
        kind = _kind(text[start])
        # Before runs of letters and of other characters, as in the pattern
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
    return text.replace("\u017f", "s")  # the long s, which equals s when case is ignored


def _kind(character: str) -> str:
    if character == "\u0345":  # a mark whose upper case is a letter: ignoring case, it is neither in CLIP's pattern
        return "space"
    category = unicodedata.category(character)[0]
    return "space" if character.isspace() else {"L": "letter", "N": "number"}.get(category, "other")


def _merge_lines(merges: bytes) -> str:
    """The merges that CLIP uses, without the header and the unused rest of the list."""
    if merges.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(io.BytesIO(merges)) as unpacked:
                # A little more than allowed, so that a small .gz cannot fill the memory
                merges = unpacked.read(_MAX_MERGES_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"the merges are a damaged .gz ({error}): download them again") from None
    if len(merges) > _MAX_MERGES_BYTES:
        raise ValueError(
            f"the merges have over {_MAX_MERGES_BYTES:,} bytes: expected merges.txt or bpe_simple_vocab_16e6.txt.gz"
        )
    try:
        lines = merges.decode().replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError:
        raise ValueError("the merges are not text: expected merges.txt or bpe_simple_vocab_16e6.txt.gz") from None
    kept = lines[1 : 1 + MERGES]  # the first line is a header
    while kept and not kept[-1]:
        kept.pop()
    if not kept:
        raise ValueError("the merges file is empty: expected merges.txt or bpe_simple_vocab_16e6.txt.gz")
    return "\n".join(kept)
