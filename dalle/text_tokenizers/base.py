"""The contract that every text tokenizer keeps: captions to rows of ids and back. Holds no vocabulary.

Letters of shapes: B captions, T tokens.
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


class TextTokenizer(ABC):
    """Turns captions into token ids and back; picklable, so that data workers can have a copy.

    Attributes:
        config: what is needed beside the files to encode.
        vocab_size: number of token ids.
        pad_id: fills rows up to their length.
        begin: ids in front of every row.
        end: ids behind every row.
        keep_end: whether a row that is cut keeps its last id.
        blank_is_null: whether a blank prompt is drawn as the null caption (padding only), which training has met.
        truncated: number of captions cut by `encode` so far, in this process.
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
            length: length T of the rows; longer captions are cut and counted in `truncated`. None: as long as the
                longest needs.
            dropout: probability of leaving out a merge (BPE dropout; 0.1 in the DALL-E paper), for training only.
            seed: makes dropout repeatable: one seed for the call, or one for each caption, whose tokens are then the
                same whatever the batch around it. None: not repeatable.

        Returns:
            int64 [B, T], on the CPU.

        Raises:
            ValueError: a single string instead of a list, a caption with a lone surrogate, or a length too short.
        """
        if length is not None and length < max(1, len(self.end)):
            raise ValueError(f"the length of encoded captions is at least {max(1, len(self.end))}, got {length}")
        rows = self.rows(texts, dropout=dropout, seed=seed)
        width = max((len(row) for row in rows), default=0) if length is None else length
        for text, row in zip(texts, rows, strict=True):
            if len(row) > width:
                self._count_cut(text, len(row), width)
        return self.padded(rows, width)

    def rows(
        self, texts: Sequence[str], *, dropout: float = 0.0, seed: int | Sequence[int] | None = None
    ) -> list[list[int]]:
        """As `encode`, each row as long as its caption needs.

        Raises:
            ValueError: a single string instead of a list, or a caption with a lone surrogate.
        """
        if isinstance(texts, str):
            raise ValueError(f"encode takes a list of captions, got the string {texts[:40]!r}: put it into a list")
        for text in texts:
            check_characters(text)
        if seed is None or isinstance(seed, int):
            shared = random.Random(seed)
            chances = [shared] * len(texts)
        else:
            chances = [random.Random(own) for own in seed]
        return [[*self.begin, *row, *self.end] for row in self._pieces(texts, dropout, chances)]

    def padded(self, rows: Sequence[Sequence[int]], width: int) -> Tensor:
        """Rows to ids [B, width], cut or padded."""
        ids = torch.full((len(rows), width), self.pad_id, dtype=torch.int64)
        for i, row in enumerate(rows):
            if len(row) > width:
                row = [*row[: width - 1], row[-1]] if self.keep_end else row[:width]
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return ids

    def decode(self, ids: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Token ids [B, T] to B captions; each row is read up to its end, or to the padding that it ends with.

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
                while row and row[-1] == self.pad_id:
                    row = row[:-1]
            if self.begin and row[:1] == list(self.begin):
                row = row[1:]
            captions.append(self._text(row))
        return captions

    def save(self, folder: str | Path) -> None:
        """Write the files of the vocabulary, and a minimal `config.yaml` unless one is there (say, the recipe)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            with atomic_file(folder / name) as part:
                part.write_bytes(content)
        if not (folder / "config.yaml").exists():
            minimal = {"stage": "text_tokenizer", "model": to_dict(self.config)}
            write_text(folder / "config.yaml", yaml.safe_dump(minimal, sort_keys=False))

    @abstractmethod
    def files(self) -> Mapping[str, bytes]:
        """Names and contents of the files that hold the vocabulary."""

    @abstractmethod
    def _pieces(self, texts: Sequence[str], dropout: float, chances: Sequence[random.Random]) -> list[list[int]]:
        """Tokens of each caption, with the random numbers of its dropout."""

    @abstractmethod
    def _text(self, ids: list[int]) -> str:
        """The caption of tokens that are neither padding, begin nor end."""

    def _count_cut(self, text: str, needed: int, width: int) -> None:
        if self.truncated == 0:
            logger.warning(
                "caption of %d tokens cut to %d: %r... (later ones are only counted)", needed, width, text[:60]
            )
        self.truncated += 1


def check_characters(text: str) -> None:
    """Refuse a text that is no sequence of characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the caption {text[:40]!r} holds the lone surrogate {text[error.start]!r} at position {error.start}, "
            "which is no character: repair the encoding of the text it came from"
        ) from None
