"""Text tokenizer: captions to token ids and back, by SentencePiece BPE with byte fallback. Knows nothing of models.

Letters of shapes: B captions, T tokens.

Any string comes back exactly, up to the NFKC normal form (and lower case where that is asked for). SentencePiece alone
does not do that: its own normaliser drops control characters and folds spaces, and it writes a space as U+2581, so
that a real U+2581 would come back as a space. Therefore normalisation is done here, SentencePiece gets `identity`,
and U+2581 is escaped.
"""

from __future__ import annotations

import functools
import heapq
import io
import logging
import os
import random
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import sentencepiece
import torch
import yaml
from torch import Tensor

from dalle.config import config, from_dict, read_yaml, to_dict

logger = logging.getLogger(__name__)

MODEL_FILE = "bpe.model"
PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3

# U+2581 stands for a space inside SentencePiece: in a caption it becomes ESC "s", and ESC itself becomes ESC "e".
_ESCAPES = (("\x1b", "\x1be"), ("\u2581", "\x1bs"))
_MAX_LINE_BYTES = 1 << 20  # SentencePiece leaves out longer training lines; its own limit of 4,192 bytes is too short


@config
class TextTokenizerConfig:
    """Architecture of a text tokenizer: all that is needed beside `bpe.model` to encode."""

    vocab_size: int = 4096
    """Number of tokens, the four special ones and the 256 bytes of the fallback among them."""
    byte_fallback: bool = True
    """Write characters outside the vocabulary as their UTF-8 bytes, so that any script round-trips."""
    character_coverage: float = 1.0
    """Share of the training text's characters that get a token of their own."""
    split_digits: bool = True
    """Make each digit a token."""
    normalization: Literal["nfkc", "none"] = "nfkc"
    """Unicode normal form given to captions before anything else."""
    lower_case: bool = False
    """Lower-case captions, as the DALL-E paper does (they come back in lower case)."""

    def __post_init__(self) -> None:
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size is {self.vocab_size}; it must be at least 1")
        if not 0.98 <= self.character_coverage <= 1:
            raise ValueError(f"character_coverage is {self.character_coverage}; it must be from 0.98 to 1")


class TextTokenizer:
    """SentencePiece BPE over captions (DALL-E paper, section 2.2); picklable, so that data workers can have a copy.

    Attributes:
        config: The architecture.
        vocab_size: Number of token ids.
        pad_id: 0, fills rows up to their length.
        unk_id: 1, never made as long as `config.byte_fallback` is on.
        bos_id: 2, kept free for models that want it.
        eos_id: 3, ends every row.
        truncated: Number of captions cut by `encode` so far, in this process.
    """

    pad_id = PAD_ID
    unk_id = UNK_ID
    bos_id = BOS_ID
    eos_id = EOS_ID

    def __init__(self, config: TextTokenizerConfig, model: bytes) -> None:
        """Build from a config and the bytes of a SentencePiece model file.

        Raises:
            ValueError: The bytes are no SentencePiece model, or one of another size or with other special tokens.
        """
        self.config = config
        self.truncated = 0
        self._model = model
        self._processor = _processor(model)
        self.vocab_size: int = self._processor.get_piece_size()
        if self.vocab_size != config.vocab_size:
            raise ValueError(
                f"the text tokenizer's {MODEL_FILE} holds {self.vocab_size} tokens, but its config says vocab_size="
                f"{config.vocab_size}: use the two files of one training run"
            )
        found = tuple(getattr(self._processor, name)() for name in ("pad_id", "unk_id", "bos_id", "eos_id"))
        if found != (PAD_ID, UNK_ID, BOS_ID, EOS_ID):
            raise ValueError(
                f"the text tokenizer's {MODEL_FILE} has pad, unk, bos, eos = {found}, expected "
                f"{(PAD_ID, UNK_ID, BOS_ID, EOS_ID)}: train it with train.py"
            )

    def __reduce__(self) -> tuple[type[TextTokenizer], tuple[TextTokenizerConfig, bytes]]:
        return TextTokenizer, (self.config, self._model)

    def normalize(self, text: str) -> str:
        """The form of `text` that `decode(encode([text]))` gives back."""
        return _normalize(text, self.config)

    def encode(
        self,
        texts: Sequence[str],
        length: int | None = None,
        *,
        dropout: float = 0.0,
        seed: int | Sequence[int] | None = None,
    ) -> Tensor:
        """Captions to token ids: each row is its tokens, then EOS, then padding.

        Args:
            texts: B captions.
            length: Length T of the rows; longer captions are cut, with EOS kept, and counted in `truncated`.
                None: as long as the longest needs.
            dropout: Probability of leaving out a merge (BPE dropout; 0.1 in the DALL-E paper), for training only.
            seed: Makes dropout repeatable: one seed for the call, or one for each caption, whose tokens are then the
                same whatever the batch around it. None: not repeatable.

        Returns:
            int64 [B, T], on the CPU.

        Raises:
            ValueError: A single string instead of a list, a caption with a lone surrogate, or a length below 1.
        """
        if isinstance(texts, str):
            raise ValueError(f"encode takes a list of captions, got the string {texts[:40]!r}: put it into a list")
        if length is not None and length < 1:
            raise ValueError(f"the length of encoded captions is at least 1 (EOS), got {length}")
        rows = [[*row, EOS_ID] for row in self._pieces([_prepare(text, self.config) for text in texts], dropout, seed)]
        width = max((len(row) for row in rows), default=0) if length is None else length
        ids = torch.full((len(rows), width), PAD_ID, dtype=torch.int64)  # [B, T]
        for i, row in enumerate(rows):
            if len(row) > width:
                self._count_cut(texts[i], len(row), width)
                row = [*row[: width - 1], EOS_ID]
            ids[i, : len(row)] = torch.tensor(row)
        return ids

    def decode(self, ids: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Token ids [B, T] to B captions; each row is read up to its first EOS, padding is skipped.

        Raises:
            ValueError: An id outside the vocabulary.
        """
        rows: list[list[int]] = ids.tolist() if isinstance(ids, Tensor) else [list(row) for row in ids]
        captions = []
        for row in rows:
            if row and not 0 <= min(row) <= max(row) < self.vocab_size:
                wrong = min(row) if min(row) < 0 else max(row)
                raise ValueError(f"token id {wrong} is outside the text vocabulary of 0 to {self.vocab_size - 1}")
            end = row.index(EOS_ID) if EOS_ID in row else len(row)
            pieces = [i for i in row[:end] if i != PAD_ID]
            captions.append(_unescape(self._processor.decode(pieces).removeprefix(" ")))
        return captions

    def save(self, folder: str | Path) -> None:
        """Write `bpe.model` into `folder`, and a minimal `config.yaml` unless one is there (say, the recipe)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / MODEL_FILE, self._model)
        if not (folder / "config.yaml").exists():
            content = {"stage": "text_tokenizer", "model": to_dict(self.config)}
            _write(folder / "config.yaml", yaml.safe_dump(content, sort_keys=False).encode())

    @classmethod
    def load(cls, folder: str | Path) -> TextTokenizer:
        """Read what `save` wrote: `bpe.model`, and the `model:` part of `config.yaml`.

        Raises:
            ValueError: A file is missing, broken, or belongs to another tokenizer.
        """
        folder = Path(folder)
        file = folder / MODEL_FILE
        if not file.is_file():
            raise ValueError(f"no {MODEL_FILE} in {folder}: expected the folder of a trained text tokenizer")
        recipe = folder / "config.yaml"
        settings = from_dict(TextTokenizerConfig, read_yaml(recipe).get("model") or {}, str(recipe))
        try:
            return cls(settings, file.read_bytes())
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    @classmethod
    def train(cls, config: TextTokenizerConfig, captions: Iterable[str]) -> TextTokenizer:
        """Learn a vocabulary from captions; the same captions in the same order give the same bytes.

        Args:
            config: The wanted tokenizer.
            captions: Read once; empty ones are left out.

        Raises:
            ValueError: No captions, or a vocabulary size that does not fit them.
        """
        lines = (line for caption in captions if (line := _prepare(caption, config)))
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=lines,
                model_writer=model,
                model_type="bpe",
                vocab_size=config.vocab_size,
                byte_fallback=config.byte_fallback,
                character_coverage=config.character_coverage,
                split_digits=config.split_digits,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                max_sentence_length=_MAX_LINE_BYTES,
                pad_id=PAD_ID,
                unk_id=UNK_ID,
                bos_id=BOS_ID,
                eos_id=EOS_ID,
                pad_piece="<pad>",
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(_explain(str(error), config)) from None
        return cls(config, model.getvalue())

    def _pieces(self, lines: list[str], dropout: float, seed: int | Sequence[int] | None) -> list[list[int]]:
        if dropout == 0.0:
            rows: list[list[int]] = self._processor.encode(lines, num_threads=1)
            return rows
        if seed is None or isinstance(seed, int):
            shared = random.Random(seed)
            return [self._merge(line, dropout, shared) for line in lines]
        return [self._merge(line, dropout, random.Random(own)) for line, own in zip(lines, seed, strict=True)]

    def _merge(self, line: str, dropout: float, rng: random.Random) -> list[int]:
        """Implements algorithm 1 of Provilkov et al. (2020), BPE-dropout.

        Each possible merge is left out of a step with probability `dropout`, the best of the others is made, and a
        step that leaves out all is the last. SentencePiece has its own dropout, but its seed means something else in
        every process, so that no run could be repeated or resumed with it.
        """
        pieces = self._merges
        symbols = list(line.replace(" ", "\u2581"))  # the symbol that starts at i; "" once merged into one before it
        end = len(symbols)
        after, before = list(range(1, end + 1)), list(range(-1, end - 1))
        heap: list[tuple[float, int, str]] = []

        def offer(left: int) -> None:
            if left >= 0 and after[left] < end and (joined := symbols[left] + symbols[after[left]]) in pieces:
                heapq.heappush(heap, (pieces[joined], left, joined))

        for left in range(end):
            offer(left)
        left_out = []
        while heap:
            merge = heapq.heappop(heap)
            _, left, joined = merge
            if not symbols[left] or after[left] == end or symbols[left] + symbols[after[left]] != joined:
                continue  # an earlier merge took one of the two
            if rng.random() < dropout:
                left_out.append(merge)
                continue
            right = after[left]
            symbols[left], symbols[right] = joined, ""
            after[left] = after[right]
            if after[left] < end:
                before[after[left]] = left
            for other in left_out:
                heapq.heappush(heap, other)
            left_out = []
            offer(before[left])
            offer(left)
        return [i for symbol in symbols if symbol for i in self._ids(symbol)]

    @functools.cached_property
    def _merges(self) -> dict[str, float]:
        """Every piece that text can be made of, and its place in the order of merges, first the smallest."""
        sp = self._processor
        special = (sp.is_control, sp.is_unknown, sp.is_byte)
        ids = (i for i in range(self.vocab_size) if not any(is_kind(i) for is_kind in special))
        return {sp.id_to_piece(i): -sp.get_score(i) for i in ids}

    def _ids(self, symbol: str) -> list[int]:
        if symbol in self._merges:
            return [self._processor.piece_to_id(symbol)]
        if not self.config.byte_fallback:
            return [UNK_ID]
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in symbol.encode()]

    def _count_cut(self, text: str, needed: int, width: int) -> None:
        if self.truncated == 0:
            logger.warning(
                "caption of %d tokens cut to %d: %r... (later ones are only counted)", needed, width, text[:60]
            )
        self.truncated += 1


def _normalize(text: str, config: TextTokenizerConfig) -> str:
    if config.lower_case:
        text = text.lower()
    return unicodedata.normalize("NFKC", text) if config.normalization == "nfkc" else text


def _prepare(text: str, config: TextTokenizerConfig) -> str:
    """Normalised, escaped, and with a space in front, so that a word has the same token wherever it stands."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the caption {text[:40]!r} holds the lone surrogate {text[error.start]!r} at position {error.start}, "
            "which is no character: repair the encoding of the text it came from"
        ) from None
    text = _normalize(text, config)
    for plain, escaped in _ESCAPES:
        text = text.replace(plain, escaped)
    return " " + text if text else ""  # the empty caption is EOS alone


def _processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        raise ValueError(
            f"these {len(model)} bytes are no SentencePiece model: the file is truncated or foreign"
        ) from None


def _unescape(text: str) -> str:
    for plain, escaped in reversed(_ESCAPES):
        text = text.replace(escaped, plain)
    return text


def _explain(error: str, config: TextTokenizerConfig) -> str:
    """SentencePiece's complaint about training as one line that says what to do."""
    if match := re.search(r"set it to a value <= (\d+)", error):
        return (
            f"vocab_size={config.vocab_size} is more than these captions can fill: set model.vocab_size to "
            f"{match[1]} or less, or train on more text"
        )
    if match := re.search(r"required_chars\. \d+ vs (\d+)", error):
        return (
            f"vocab_size={config.vocab_size} is too small for the characters of these captions: set model.vocab_size "
            f"to {match[1]} or more, or lower model.character_coverage"
        )
    if "sentences_.empty()" in error:
        return "no captions to train a text tokenizer on: expected at least one that is not empty"
    return f"SentencePiece cannot train this text tokenizer: {' '.join(error.split())}"


def _write(file: Path, content: bytes) -> None:
    """Write all or nothing: into a neighbour first, then renamed."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_bytes(content)
    part.replace(file)
