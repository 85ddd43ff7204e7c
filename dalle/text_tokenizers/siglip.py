"""Text tokenizers of SigLIP and SigLIP 2: published SentencePiece models over lower-cased text, padded to full length.

SigLIP (arXiv 2303.15343) uses the 32,000 unigram tokens of C4, with punctuation removed, as big_vision does; SigLIP 2
(arXiv 2502.14786, section 2.1) uses Gemma's 256,000.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Mapping, Sequence
from typing import Literal

from dalle.config import config
from dalle.text_tokenizers.base import TextTokenizer
from dalle.text_tokenizers.sentencepiece_model import load_processor

MODEL_FILE = "spiece.model"
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@config
class SigLIPTokenizerConfig:
    """Config of SigLIP's tokenizers."""

    kind: Literal["siglip"] = "siglip"
    """A SentencePiece model of SigLIP."""
    version: Literal[1, 2] = 1
    """1: remove ASCII punctuation and pad with the end token. 2: keep punctuation and pad with a padding token."""


class SigLIPTokenizer(TextTokenizer):
    """Rows are the caption's tokens, an end token, and padding; a truncated row keeps its end token."""

    config: SigLIPTokenizerConfig

    def __init__(self, config: SigLIPTokenizerConfig, model: bytes) -> None:
        """Build from the bytes of a SentencePiece model.

        Raises:
            ValueError: it is not a SentencePiece model, or has no end token.
        """
        super().__init__(config)
        self._model = model
        self._processor = load_processor(model)
        self.vocab_size = self._processor.get_piece_size()
        # Version 1 has no padding token: big_vision pads with EOS
        end, pad = self._processor.eos_id(), self._processor.pad_id()
        if end < 0 or (config.version == 2 and pad < 0):
            raise ValueError("this SentencePiece model has no end or padding token, as SigLIP's has: it is another one")
        self.end, self.pad_id = (end,), end if config.version == 1 else pad

    def __reduce__(self) -> tuple[type[SigLIPTokenizer], tuple[SigLIPTokenizerConfig, bytes]]:
        return SigLIPTokenizer, (self.config, self._model)

    def files(self) -> Mapping[str, bytes]:
        """spiece.model, unchanged."""
        return {MODEL_FILE: self._model}

    def _tokenize(self, texts: Sequence[str], dropout: float, rngs: Sequence[random.Random]) -> list[list[int]]:
        if dropout:
            raise ValueError("SigLIP's text tokenizer has no BPE dropout: set bpe_dropout=0")
        rows: list[list[int]] = self._processor.encode([self._clean(text) for text in texts], num_threads=1)
        return rows

    def _clean(self, text: str) -> str:
        text = text.lower()
        if self.config.version == 1:
            text = re.sub(r"\s+", " ", text.translate(_PUNCTUATION)).strip()
        return text

    def _detokenize(self, ids: list[int]) -> str:
        text: str = self._processor.decode(ids)
        return text
