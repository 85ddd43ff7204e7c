"""YouTokenToMe's BPE (github.com/VKCOM/YouTokenToMe), which ruDALL-E uses for captions, in pure Python.

Its model file is text: the numbers n of characters and m of rules; n lines "code point, id"; m lines "left, right,
merged"; the ids of unknown, padding, begin and end (-1: none).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from dalle.config import config
from dalle.text_tokenizers.bpe import BPETokenizer

MODEL_FILE = "bpe.model"
_SPACE = 0x2581  # precedes every word
_MAX_TOKEN_CHARACTERS = 4096
_SPACES = frozenset(" \t\n\v\f\r▁")


@config
class YTTMTokenizerConfig:
    """Config of a YouTokenToMe model."""

    kind: Literal["yttm"] = "yttm"
    """The BPE of YouTokenToMe."""
    ends: bool = True
    """Lower-case captions and add begin and end tokens, as ruDALL-E does; DALLE-pytorch does neither."""


class YTTMTokenizer(BPETokenizer):
    """Rows are a begin token, the caption's tokens, an end token, and 0s; a truncated row loses its end token."""

    config: YTTMTokenizerConfig
    keep_end = False

    def __init__(self, config: YTTMTokenizerConfig, model: bytes) -> None:
        """Build from the contents of a model file.

        Raises:
            ValueError: it is another file, or damaged.
        """
        super().__init__(config)
        self._model = model
        try:
            numbers = [int(number) for number in model.decode("ascii").split()]
            characters, rules = numbers[:2]
        except ValueError:
            raise ValueError("it is not a YouTokenToMe model: expected a text file of numbers") from None
        if min(characters, rules) < 0 or len(numbers) != 2 + 2 * characters + 3 * rules + 4:
            raise ValueError(
                f"it should have {2 + 2 * characters + 3 * rules + 4} numbers for {characters} characters and {rules} "
                f"rules, but has {len(numbers)}: the file is damaged, or not a YouTokenToMe model"
            )
        own = numbers[2 : 2 + 2 * characters]
        self._characters = dict(zip(own[::2], own[1::2], strict=True))
        triples = numbers[2 + 2 * characters : -4]
        self._unknown, pad, begin, end = numbers[-4:]
        self.vocab_size = characters + rules + sum(number >= 0 for number in numbers[-4:])
        if not all(0 <= code < 0x110000 and not 0xD800 <= code < 0xE000 for code in self._characters):
            raise ValueError("it has ids for code points that Unicode does not have: the file is damaged")
        ids = (*own[1::2], *triples, *(number for number in numbers[-4:] if number != -1))
        if _SPACE not in self._characters or not all(0 <= i < self.vocab_size for i in ids):
            raise ValueError(f"its ids are not all between 0 and {self.vocab_size - 1}, or the space has none")
        if self._unknown < 0 or pad < 0 or (config.ends and min(begin, end) < 0):
            raise ValueError("it has no ids for unknown, padding, begin or end: expected the file of ruDALL-E")
        pairs = zip(triples[::3], triples[1::3], triples[2::3], strict=True)
        self.rules = {(left, right): (rank, joined) for rank, (left, right, joined) in enumerate(pairs)}
        self.pad_id = pad
        if config.ends:
            self.begin, self.end = (begin,), (end,)
        self._strings = {number: chr(code) for code, number in self._characters.items()}
        for (left, right), (_, joined) in self.rules.items():
            # Rules come in order, so both parts are known already
            self._strings[joined] = self._strings.get(left, "") + self._strings.get(right, "")
            # A damaged file could make tokens that double in length with each rule.
            if len(self._strings[joined]) > _MAX_TOKEN_CHARACTERS:
                raise ValueError(f"its token {joined} has over {_MAX_TOKEN_CHARACTERS} characters: the file is damaged")

    def __reduce__(self) -> tuple[type[YTTMTokenizer], tuple[YTTMTokenizerConfig, bytes]]:
        return YTTMTokenizer, (self.config, self._model)

    def files(self) -> Mapping[str, bytes]:
        """bpe.model, unchanged."""
        return {MODEL_FILE: self._model}

    def _words(self, text: str) -> list[list[int]]:
        if self.config.ends:
            text = text.lower().strip()
        words = []
        for word in _split(text):
            ids = [self._characters[_SPACE]]
            known = True
            for character in word:
                number = self._characters.get(ord(character))
                if number is not None:
                    ids.append(number)
                elif known:  # a run of unknown characters is one unknown token
                    ids.append(self._unknown)
                known = number is not None
            words.append(ids)
        return words

    def _detokenize(self, ids: list[int]) -> str:
        return "".join(self._strings.get(i, "") for i in ids).replace("▁", " ").strip()


def _split(text: str) -> list[str]:
    words = [""]
    for character in text:
        if character in _SPACES:
            words.append("")
        else:
            words[-1] += character
    return [word for word in words if word]
