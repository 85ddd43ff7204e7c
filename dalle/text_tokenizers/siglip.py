"""Text tokenizers of SigLIP and SigLIP 2: published SentencePiece models over lower-cased text, padded to full rows.

SigLIP (arXiv 2303.15343) reads the 32,000 unigram pieces of C4 without punctuation, as big_vision does; SigLIP 2
(arXiv 2502.14786, section 2.1) the 256,000 of Gemma.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Mapping, Sequence
from typing import Literal

import sentencepiece

from dalle.config import config
from dalle.text_tokenizers.base import TextTokenizer

MODEL_FILE = "spiece.model"
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@config
class SigLIPTokenizerConfig:
    kind: Literal["siglip"] = "siglip"
    """A SentencePiece model of SigLIP."""
    version: Literal[1, 2] = 1
    """1 leaves out ASCII's punctuation and fills rows with the end token; 2 does neither, and has a padding token."""


class SigLIPTokenizer(TextTokenizer):
    """Rows are the caption's tokens, an end token, and padding; a row that is cut keeps its end token."""

    config: SigLIPTokenizerConfig

    def __init__(self, config: SigLIPTokenizerConfig, model: bytes) -> None:
        """Build from the bytes of a SentencePiece model.

        Raises:
            ValueError: they are none, or one without an end token.
        """
        super().__init__(config)
        self._model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise ValueError(f"these {len(model)} bytes are no SentencePiece model: truncated or foreign") from None
        self.vocab_size = self._processor.get_piece_size()
        end, pad = self._processor.eos_id(), self._processor.pad_id()
        if end < 0 or (config.version == 2 and pad < 0):
            raise ValueError("its SentencePiece model has no token for the end or for padding, as those of SigLIP have")
        self.end, self.pad_id = (end,), end if config.version == 1 else pad

    def __reduce__(self) -> tuple[type[SigLIPTokenizer], tuple[SigLIPTokenizerConfig, bytes]]:
        return SigLIPTokenizer, (self.config, self._model)

    def files(self) -> Mapping[str, bytes]:
        return {MODEL_FILE: self._model}

    def _pieces(self, texts: Sequence[str], dropout: float, chances: Sequence[random.Random]) -> list[list[int]]:
        if dropout:
            raise ValueError("SigLIP's text tokenizer drops no merges: set bpe_dropout=0")
        rows: list[list[int]] = self._processor.encode([self._cleaned(text) for text in texts], num_threads=1)
        return rows

    def _cleaned(self, text: str) -> str:
        text = text.lower()
        if self.config.version == 1:
            text = re.sub(r"\s+", " ", text.translate(_PUNCTUATION)).strip()
        return text

    def _text(self, ids: list[int]) -> str:
        text: str = self._processor.decode(ids)
        return text
