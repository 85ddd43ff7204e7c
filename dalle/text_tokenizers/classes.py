"""Class numbers as captions, for models that draw a class and read no text (LlamaGen's c2i)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from dalle.config import config
from dalle.ranges import Range
from dalle.text_tokenizers.base import TextTokenizer


@config
class ClassTokenizerConfig:
    kind: Literal["classes"] = "classes"
    """Numbers of classes."""
    classes: Annotated[int, Range(1, ceiling=2**24)] = 1000
    """How many there are; those of ImageNet are numbered from 0 in the order of their WordNet ids."""


class ClassTokenizer(TextTokenizer):
    """A row is one id, the class; the last id stands for no class, and a blank caption gives it."""

    config: ClassTokenizerConfig
    keep_end = False

    def __init__(self, config: ClassTokenizerConfig) -> None:
        super().__init__(config)
        self.vocab_size = config.classes + 1
        self.pad_id = config.classes

    def files(self) -> Mapping[str, bytes]:
        return {}

    def _pieces(self, texts: Sequence[str], dropout: float, chances: Sequence[random.Random]) -> list[list[int]]:
        return [[self._class(text.strip())] for text in texts]

    def _class(self, text: str) -> int:
        if not text:
            return self.pad_id
        digits = text.lstrip("0")
        if not (text.isascii() and text.isdigit() and len(digits) < 10 and int(text) < self.config.classes):
            last = self.config.classes - 1
            raise ValueError(f"this model draws classes: give a number from 0 to {last} as prompt, not {text[:40]!r}")
        return int(text)

    def _text(self, ids: list[int]) -> str:
        return " ".join(str(i) for i in ids)
