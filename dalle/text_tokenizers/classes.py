"""Class indices as captions, for class-conditional models, which read no text (LlamaGen's c2i)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from dalle.config import config
from dalle.config.ranges import Range
from dalle.text_tokenizers.base import TextTokenizer


@config
class ClassTokenizerConfig:
    """Config of a class-conditional model's "text" side."""

    kind: Literal["classes"] = "classes"
    """Class indices."""
    classes: Annotated[int, Range(1, ceiling=2**24)] = 1000
    """Number of classes; ImageNet's are numbered from 0 in the order of their WordNet ids."""


class ClassTokenizer(TextTokenizer):
    """A row is one id, the class; the last id is the null class of classifier-free guidance, as is a blank caption."""

    config: ClassTokenizerConfig
    keep_end = False

    def __init__(self, config: ClassTokenizerConfig) -> None:
        super().__init__(config)
        self.vocab_size = config.classes + 1
        self.pad_id = config.classes

    def files(self) -> Mapping[str, bytes]:
        """No files: the config is all there is."""
        return {}

    def _tokenize(self, texts: Sequence[str], dropout: float, rngs: Sequence[random.Random]) -> list[list[int]]:
        return [[self._class(text.strip())] for text in texts]

    def _class(self, text: str) -> int:
        if not text:
            return self.pad_id
        digits = text.lstrip("0")
        # The length is checked first, as int() of a very long string of digits is slow and then an error of its own.
        if not (text.isascii() and text.isdigit() and len(digits) < 10 and int(text) < self.config.classes):
            last = self.config.classes - 1
            raise ValueError(
                f"this model is class-conditional: give a class from 0 to {last} as the prompt, not {text[:40]!r}"
            )
        return int(text)

    def _detokenize(self, ids: list[int]) -> str:
        return " ".join(str(i) for i in ids)
