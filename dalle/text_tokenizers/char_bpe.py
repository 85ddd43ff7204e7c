"""Character-level BPE of Hugging Face's CharBPETokenizer, which minDALL-E uses for captions.

The tokenizers library classifies characters by Unicode 8 but lower-cases by the newest Unicode. The tables below
reproduce the former on any Python; lower-casing is Python's own, which only differs for letters newer than itself.
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
# What BERT's normalizer treats as Chinese: CJK ideographs, their extensions and compatibility forms.
_IDEOGRAPHS = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F)),
    *((0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)
# Ranges where all punctuation is newer than Unicode 8, likewise all format characters, and two characters that were
# punctuation in Unicode 8 and no longer are.
_NEW_PUNCTUATION = (
    *((0x61D, 0x61D), (0x9FD, 0xA76), (0xC77, 0xC84), (0x1B4E, 0x1B4F), (0x1B7D, 0x1B7F), (0x2E43, 0x2E63)),
    *((0x10D6E, 0x10F89), (0x113D4, 0x1145D), (0x11660, 0x116B9), (0x1183B, 0x11FFF), (0x12FF1, 0x12FF2)),
    *((0x16D6D, 0x16FE2), (0x1E5FF, 0x1E95F)),
)
_NEW_FORMATS = ((0x890, 0x8E2), (0x110CD, 0x1343F))
_FORMER_PUNCTUATION = "\u166d\U000111c9"


@config
class CharTokenizerConfig:
    """Config of minDALL-E's tokenizer, which has no options."""

    kind: Literal["char_bpe"] = "char_bpe"
    """The BPE over characters of minDALL-E."""


class CharTokenizer(BPETokenizer):
    """Rows are the caption's tokens and `[PAD]`, without begin or end; characters without a token are `[UNK]`."""

    config: CharTokenizerConfig
    keep_end = False

    def __init__(self, config: CharTokenizerConfig, vocab: bytes, merges: bytes) -> None:
        """Build from the contents of vocab.json and merges.txt, as the tokenizers library writes them.

        Raises:
            ValueError: they are other files, or do not belong together.
        """
        super().__init__(config)
        self._vocab, self._merges = vocab, merges
        try:
            numbers = json.loads(vocab)
            lines = merges.decode().replace("\r\n", "\n").split("\n")
        except (ValueError, RecursionError):
            raise ValueError("the vocabulary is not JSON, or the merges are not text: download both again") from None
        if not isinstance(numbers, dict) or not all(type(number) is int for number in numbers.values()):
            raise ValueError("the vocabulary must be a JSON object that maps tokens to integer ids")
        if sorted(numbers.values()) != list(range(len(numbers))):
            raise ValueError(
                f"the {len(numbers)} tokens of the vocabulary are not numbered from 0 to {len(numbers) - 1}"
            )
        if _UNKNOWN not in numbers:
            raise ValueError(f"the vocabulary has no {_UNKNOWN}: expected minDALL-E's vocab.json")
        # minDALL-E adds [PAD] behind a vocabulary that has none.
        self._numbers: dict[str, int] = {_PADDING: len(numbers)} | numbers
        self.vocab_size = len(self._numbers)
        self.pad_id, self._unknown = self._numbers[_PADDING], self._numbers[_UNKNOWN]
        self._tokens = {number: token for token, number in self._numbers.items()}
        self.rules = {}
        pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        for rank, pair in enumerate(pairs):
            if len(pair) != 2 or not {*pair, "".join(pair)} <= set(self._numbers):
                raise ValueError(f"merge {rank + 1} is {' '.join(pair)[:40]!r}, which is not in the vocabulary")
            first, second = (self._numbers[token] for token in pair)
            self.rules[first, second] = (rank, self._numbers["".join(pair)])

    def __reduce__(self) -> tuple[type[CharTokenizer], tuple[CharTokenizerConfig, bytes, bytes]]:
        return CharTokenizer, (self.config, self._vocab, self._merges)

    def files(self) -> Mapping[str, bytes]:
        """vocab.json and merges.txt, unchanged."""
        return {VOCAB_FILE: self._vocab, MERGES_FILE: self._merges}

    def _words(self, text: str) -> list[list[int]]:
        words = []
        for part in _SPECIAL.split(text):  # special tokens are matched before normalization
            if part in (_UNKNOWN, _PADDING):
                words.append([self._numbers[part]])
                continue
            for word in split_words(normalize(part)):
                # The last character of a word is a symbol of its own, so that merges know where words end
                symbols = [*word[:-1], word[-1] + _WORD_END]
                words.append([self._numbers.get(symbol, self._unknown) for symbol in symbols])
        return words

    def _detokenize(self, ids: list[int]) -> str:
        return "".join(self._tokens.get(i, _UNKNOWN) for i in ids).replace(_WORD_END, " ").strip()


def normalize(text: str) -> str:
    """BERT's normalizer: drop control characters, put spaces around CJK ideographs, lower-case each character."""
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


def split_words(text: str) -> list[str]:
    """Split at white space, and make each punctuation mark a word of its own."""
    words: list[str] = []
    joins = False
    for character in text:
        if character.isspace():
            joins = False
        elif _is_punctuation(character):
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
    return unicodedata.category(character) in ("Cc", "Cf", "Co") and not _within(character, _NEW_FORMATS)


def _is_punctuation(character: str) -> bool:
    if character in string.punctuation or character in _FORMER_PUNCTUATION:
        return True
    return unicodedata.category(character).startswith("P") and not _within(character, _NEW_PUNCTUATION)


def _within(character: str, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= ord(character) <= last for first, last in ranges)
