"""Reads the bytes of a SentencePiece model file."""

from __future__ import annotations

import sentencepiece


def load_processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    """Build SentencePiece's processor from the bytes of a model file.

    Raises:
        ValueError: they are none.
    """
    try:
        if not model:  # which SentencePiece takes for a processor without a model, and logs so at each call
            raise RuntimeError
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        raise ValueError(
            f"these {len(model)} bytes are not a SentencePiece model: the file is truncated or of another kind"
        ) from None
