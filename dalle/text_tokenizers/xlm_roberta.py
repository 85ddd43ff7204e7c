"""Text tokenizer of XLM-RoBERTa: a published SentencePiece model of 250,000 pieces in a hundred languages.

Conneau et al. 2020, arXiv 1911.02116. Ids are those of fairseq: begin 0, padding 1, end 2, unknown 3, and each piece
one above its place in the SentencePiece model.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal

from dalle.config import config
from dalle.text_tokenizers.base import TextTokenizer
from dalle.text_tokenizers.clip_bpe import mend
from dalle.text_tokenizers.sentencepiece_model import load_processor

MODEL_FILE = "sentencepiece.bpe.model"
_BEGIN, _PAD, _END, _UNKNOWN = range(4)
_SHIFT = 1


@config
class XLMRobertaTokenizerConfig:
    """Config of XLM-RoBERTa's tokenizer."""

    kind: Literal["xlm_roberta"] = "xlm_roberta"
    """The SentencePiece model of XLM-RoBERTa, with fairseq's ids."""


class XLMRobertaTokenizer(TextTokenizer):
    """Rows are a begin token, the caption's tokens, an end token, and padding; a truncated row keeps its end token."""

    config: XLMRobertaTokenizerConfig
    begin, end, pad_id, keep_end = (_BEGIN,), (_END,), _PAD, True

    def __init__(self, config: XLMRobertaTokenizerConfig, model: bytes) -> None:
        """Build from the bytes of sentencepiece.bpe.model.

        Raises:
            ValueError: it is not a SentencePiece model, or not of this kind.
        """
        super().__init__(config)
        self._model = model
        self._processor = load_processor(model)
        first = [self._processor.unk_id(), self._processor.bos_id(), self._processor.eos_id()]
        if first != [0, 1, 2]:
            raise ValueError("this SentencePiece model does not begin with unknown, begin and end, as XLM-R's does")
        self.vocab_size = self._processor.get_piece_size() + _SHIFT + 1  # the last id is the mask

    def __reduce__(self) -> tuple[type[XLMRobertaTokenizer], tuple[XLMRobertaTokenizerConfig, bytes]]:
        return XLMRobertaTokenizer, (self.config, self._model)

    def files(self) -> Mapping[str, bytes]:
        """sentencepiece.bpe.model, unchanged."""
        return {MODEL_FILE: self._model}

    def _tokenize(self, texts: Sequence[str], dropout: float, rngs: Sequence[random.Random]) -> list[list[int]]:
        if dropout:
            raise ValueError("XLM-R's text tokenizer has no BPE dropout: set bpe_dropout=0")
        rows = self._processor.encode([mend(text) for text in texts], num_threads=1)
        # Piece 0 is SentencePiece's unknown
        return [[piece + _SHIFT if piece else _UNKNOWN for piece in row] for row in rows]

    def _detokenize(self, ids: list[int]) -> str:
        # Without special tokens: those before the pieces, and the mask behind them
        text: str = self._processor.decode([i - _SHIFT for i in ids if i > _UNKNOWN and i < self.vocab_size - 1])
        return text
