"""Character-level BPE of Hugging Face's CharBPETokenizer, which minDALL-E reads captions with.

That library takes kinds of characters from an old version of Unicode, 8, and lower case from the newest. The first is
done here; lower case is Python's own, which knows no letters that are younger than itself.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Mapping
from typing import Literal

from dalle.config import config
from dalle.text_tokenizers.bpe import BPETokenizer

VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"
_WORD_END, _UNKNOWN, _PADDING = "</w>", "[UNK]", "[PAD]"
_SPECIAL = re.compile(rf"({re.escape(_UNKNOWN)}|{re.escape(_PADDING)})")
# What BERT's normaliser calls Chinese: CJK ideographs, their extensions and compatibility forms.
_IDEOGRAPHS = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F)),
    *((0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)
# Where all marks are younger than Unicode 8, and where all format characters are; two that are no longer marks.
_YOUNG_MARKS = (
    *((0x61D, 0x61D), (0x9FD, 0xA76), (0xC77, 0xC84), (0x1B4E, 0x1B4F), (0x1B7D, 0x1B7F), (0x2E43, 0x2E63)),
    *((0x10D6E, 0x10F89), (0x113D4, 0x1145D), (0x11660, 0x116B9), (0x1183B, 0x11FFF), (0x12FF1, 0x12FF2)),
    *((0x16D6D, 0x16FE2), (0x1E5FF, 0x1E95F)),
)
_YOUNG_FORMATS = ((0x890, 0x8E2), (0x110CD, 0x1343F))
_FORMER_MARKS = "\u166d\U000111c9"


@config
class CharTokenizerConfig:
    kind: Literal["char_bpe"] = "char_bpe"
    """The BPE over characters of minDALL-E."""


class CharTokenizer(BPETokenizer):
    """Rows are the caption's tokens and `[PAD]`s, without begin or end; characters without a token are `[UNK]`."""

    config: CharTokenizerConfig
    keep_end = False

    def __init__(self, config: CharTokenizerConfig, vocab: bytes, merges: bytes) -> None:
        """Build from the contents of vocab.json and merges.txt.

        Raises:
            ValueError: they are other files, or do not belong together.
        """
        super().__init__(config)
        self._vocab, self._merges = vocab, merges
        try:
            numbers = json.loads(vocab)
            lines = merges.decode().replace("\r\n", "\n").split("\n")
        except (ValueError, RecursionError):
            raise ValueError("the vocabulary is no JSON, or the merges are no text: fetch both files again") from None
        if not isinstance(numbers, dict) or not all(type(number) is int for number in numbers.values()):
            raise ValueError("the vocabulary is no JSON of tokens and their numbers")
        if sorted(numbers.values()) != list(range(len(numbers))):
            raise ValueError(
                f"the {len(numbers)} tokens of the vocabulary are not numbered from 0 to {len(numbers) - 1}"
            )
        if _UNKNOWN not in numbers:
            raise ValueError(f"the vocabulary has no {_UNKNOWN}: expected that of minDALL-E")
        self._numbers: dict[str, int] = {_PADDING: len(numbers)} | numbers
        self.vocab_size = len(self._numbers)
        self.pad_id, self._unknown = self._numbers[_PADDING], self._numbers[_UNKNOWN]
        self._tokens = {number: token for token, number in self._numbers.items()}
        self.rules = {}
        pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        for rank, pair in enumerate(pairs):
            if len(pair) != 2 or not {*pair, "".join(pair)} <= set(self._numbers):
                raise ValueError(f"merge {rank + 1} is {' '.join(pair)[:40]!r}, whose tokens the vocabulary has not")
            first, second = (self._numbers[token] for token in pair)
            self.rules[first, second] = (rank, self._numbers["".join(pair)])

    def __reduce__(self) -> tuple[type[CharTokenizer], tuple[CharTokenizerConfig, bytes, bytes]]:
        return CharTokenizer, (self.config, self._vocab, self._merges)

    def files(self) -> Mapping[str, bytes]:
        return {VOCAB_FILE: self._vocab, MERGES_FILE: self._merges}

    def _words(self, text: str) -> list[list[int]]:
        words = []
        for part in _SPECIAL.split(text):  # these two are found before anything else is done
            if part in (_UNKNOWN, _PADDING):
                words.append([self._numbers[part]])
                continue
            for word in split(normalise(part)):
                symbols = [*word[:-1], word[-1] + _WORD_END]
                words.append([self._numbers.get(symbol, self._unknown) for symbol in symbols])
        return words

    def _text(self, ids: list[int]) -> str:
        return "".join(self._tokens.get(i, _UNKNOWN) for i in ids).replace(_WORD_END, " ").strip()


def normalise(text: str) -> str:
    """Without control characters, ideographs between spaces, lower case character by character."""
    kept = []
    for character in text:
        if character in "\t\n\r" or (character.isspace() and unicodedata.category(character) != "Cc"):
            kept.append(" ")
        elif _is_control(character):
            continue
        elif _within(character, _IDEOGRAPHS):
            kept.append(f" {character} ")
        else:
            kept.append(character.lower())
    return "".join(kept)


def split(text: str) -> list[str]:
    """Words between spaces, with each punctuation mark a word of its own."""
    words: list[str] = []
    joins = False
    for character in text:
        if character.isspace():
            joins = False
        elif _is_mark(character):
            words.append(character)
            joins = False
        elif joins:
            words[-1] += character
        else:
            words.append(character)
            joins = True
    return words


def _is_control(character: str) -> bool:
    if character in "\0\ufffd":
        return True
    return unicodedata.category(character) in ("Cc", "Cf", "Co") and not _within(character, _YOUNG_FORMATS)


def _is_mark(character: str) -> bool:
    if character in string.punctuation or character in _FORMER_MARKS:
        return True
    return unicodedata.category(character).startswith("P") and not _within(character, _YOUNG_MARKS)


def _within(character: str, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= ord(character) <= last for first, last in ranges)
