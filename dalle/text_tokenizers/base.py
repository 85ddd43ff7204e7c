"""The interface of every text tokenizer: captions to rows of ids and back. Holds no vocabulary.

Shapes: B captions, T tokens.
"""

from __future__ import annotations

import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from dalle.config import to_dict
from dalle.files import atomic_file, write_text

logger = logging.getLogger(__name__)

_REMEMBERED = 10_000  # texts
_reported: set[int] = set()  # hashes of texts of which it was said that they are cut


class TextTokenizer(ABC):
    """Turns captions into token ids and back; picklable, so that each data worker can have a copy.

    Attributes:
        config: everything besides the vocabulary files that encoding depends on.
        vocab_size: number of token ids.
        pad_id: the id that fills rows up to their length.
        begin: ids at the start of every row.
        end: ids at the end of every row.
        keep_end: whether a truncated row keeps its last id (normally the end token).
        blank_is_null: whether a blank prompt is encoded as the null caption (padding only), which the model has seen
            in training.
        truncated: number of captions truncated by `encode` so far, in this process.
    """

    config: Any
    vocab_size: int
    pad_id: int
    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    keep_end = True
    blank_is_null = False

    def __init__(self, config: Any) -> None:
        self.config = config
        self.truncated = 0

    def encode(
        self,
        texts: Sequence[str],
        length: int | None = None,
        *,
        dropout: float = 0.0,
        seed: int | Sequence[int] | None = None,
    ) -> Tensor:
        """Captions to token ids: each row is `begin`, its tokens, `end`, and padding.

        Args:
            texts: B captions.
            length: length T of the rows; longer captions are truncated and counted in `truncated`. None: the length of
                the longest row.
            dropout: probability of skipping a merge (BPE dropout; 0.1 in the DALL-E paper), for training only.
            seed: makes dropout reproducible. One seed for the whole call, or one per caption, whose tokens then do not
                depend on the other captions of the batch. None: not reproducible.

        Returns:
            int64 [B, T], on the CPU.

        Raises:
            ValueError: a single string instead of a list, a caption with a lone surrogate, or too small a length.
        """
        if length is not None and length < max(1, len(self.end)):
            raise ValueError(f"length is {length}; encoded captions need at least {max(1, len(self.end))} tokens")
        rows = self.encode_ragged(texts, dropout=dropout, seed=seed)
        width = max((len(row) for row in rows), default=0) if length is None else length
        for text, row in zip(texts, rows, strict=True):
            if len(row) > width:
                self._count_truncated(text, len(row), width)
        return self.pad(rows, width)

    def encode_ragged(
        self, texts: Sequence[str], *, dropout: float = 0.0, seed: int | Sequence[int] | None = None
    ) -> list[list[int]]:
        """Like `encode`, but without padding or truncation: each row is as long as its caption.

        Raises:
            ValueError: a single string instead of a list, or a caption with a lone surrogate.
        """
        if isinstance(texts, str):
            raise ValueError(f"encode takes a list of captions, got the string {texts[:40]!r}: put it in a list")
        for text in texts:
            check_characters(text)
        if seed is None or isinstance(seed, int):
            # One generator for all captions: the tokens of a caption then depend on those before it.
            shared = random.Random(seed)
            rngs = [shared] * len(texts)
        else:
            rngs = [random.Random(own) for own in seed]
        return [[*self.begin, *row, *self.end] for row in self._tokenize(texts, dropout, rngs)]

    def pad(self, rows: Sequence[Sequence[int]], width: int) -> Tensor:
        """Pad or truncate rows of ids to int64 [B, width]."""
        ids = torch.full((len(rows), width), self.pad_id, dtype=torch.int64)
        for i, row in enumerate(rows):
            if len(row) > width:
                row = [*row[: width - 1], row[-1]] if self.keep_end else row[:width]  # the end token stays
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return ids

    def decode(self, ids: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Turn token ids [B, T] into B captions; each row is read up to its end token or its trailing padding.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        rows: list[list[int]] = ids.tolist() if isinstance(ids, Tensor) else [list(row) for row in ids]
        captions = []
        for row in rows:
            if row and not 0 <= min(row) <= max(row) < self.vocab_size:
                wrong = min(row) if min(row) < 0 else max(row)
                raise ValueError(f"token id {wrong} is outside the text vocabulary of 0 to {self.vocab_size - 1}")
            if self.end and self.end[0] in row:
                row = row[: row.index(self.end[0])]
            else:
                # Only trailing padding goes: pad_id may be the id of a real token, and then it may occur inside a row.
                while row and row[-1] == self.pad_id:
                    row = row[:-1]
            if self.begin and row[:1] == list(self.begin):
                row = row[1:]
            captions.append(self._detokenize(row))
        return captions

    def save(self, folder: str | Path) -> None:
        """Write the vocabulary files, and a minimal `config.yaml` unless the folder has one (such as the recipe's)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            with atomic_file(folder / name) as part:
                part.write_bytes(content)
        # A recipe that is there says more than the minimum, and has to stay
        if not (folder / "config.yaml").exists():
            minimal = {"stage": "text_tokenizer", "model": to_dict(self.config)}
            write_text(folder / "config.yaml", yaml.safe_dump(minimal, sort_keys=False))

    @abstractmethod
    def files(self) -> Mapping[str, bytes]:
        """Names and contents of the vocabulary files."""

    @abstractmethod
    def _tokenize(self, texts: Sequence[str], dropout: float, rngs: Sequence[random.Random]) -> list[list[int]]:
        """Token ids of each caption; `rngs` has the generator of each caption's dropout."""

    @abstractmethod
    def _detokenize(self, ids: list[int]) -> str:
        """The caption of ids that are neither padding, begin nor end."""

    def _count_truncated(self, text: str, needed: int, width: int) -> None:
        if self.truncated == 0 and first_report(text):
            logger.warning(
                "caption of %d tokens truncated to %d: %r... (reported once, then only counted)",
                needed,
                width,
                text[:60],
            )
        self.truncated += 1


def first_report(text: str) -> bool:
    """Whether nobody has been told yet that this text is cut; notes that it is told now.

    A prompt is read by the model and by the CLIP that scores its images, and again for each group of candidates.
    """
    key = hash(text)  # a prompt may have megabytes
    if key in _reported:
        return False
    if len(_reported) >= _REMEMBERED:
        _reported.clear()
    _reported.add(key)
    return True


def check_characters(text: str) -> None:
    """Raise a ValueError for text with lone surrogates, which no encoding can represent."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the caption {text[:40]!r} has the lone surrogate {text[error.start]!r} at position {error.start}, "
            "which is not a character: fix the encoding of the text it came from"
        ) from None
