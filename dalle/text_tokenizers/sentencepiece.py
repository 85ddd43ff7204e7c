"""Our own text tokenizer: SentencePiece BPE with byte fallback.

Shapes: B captions, T tokens.

Any string round-trips exactly, up to NFKC normalization (and lower-casing if configured). SentencePiece by itself does
not do that: its normalizer drops control characters and collapses spaces, and it represents a space as U+2581, so that
a real U+2581 would decode to a space. So normalization is done here, SentencePiece runs with the `identity` rule, and
U+2581 is escaped.
"""

from __future__ import annotations

import functools
import io
import logging
import random
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import sentencepiece

from dalle.config import config, from_dict, read_yaml
from dalle.config.ranges import Range
from dalle.text_tokenizers.base import TextTokenizer, check_characters
from dalle.text_tokenizers.bpe import merge
from dalle.text_tokenizers.sentencepiece_model import load_processor

logger = logging.getLogger(__name__)

MODEL_FILE = "bpe.model"
PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3

# U+2581 represents a space inside SentencePiece: in a caption it becomes ESC "s", and ESC itself becomes ESC "e".
_ESCAPES = (("\x1b", "\x1be"), ("\u2581", "\x1bs"))
_WORD = re.compile("\u2581[^\u2581]*")  # every line begins with a space, and no token spans two words
_MAX_LINE_BYTES = 1 << 20  # SentencePiece drops longer training lines; its default limit, 4,192 bytes, is too short


@config
class TextTokenizerConfig:
    """Architecture of a text tokenizer: all that encoding needs besides `bpe.model`."""

    vocab_size: Annotated[int, Range(1, ceiling=2**24)] = 4096
    """Number of tokens, including the four special ones and the 256 bytes of the fallback; fewer where the captions to
    learn from do not fill them."""
    byte_fallback: bool = True
    """Encode characters outside the vocabulary as their UTF-8 bytes, so that any script round-trips."""
    character_coverage: Annotated[float, Range(0.98, 1)] = 1.0
    """Share of the training text's characters that get their own token, from 0.98 to 1."""
    split_digits: bool = True
    """Encode each digit as a separate token."""
    normalization: Literal["nfkc", "none"] = "nfkc"
    """Unicode normalization, applied to captions first."""
    lower_case: bool = False
    """Lower-case captions, as the DALL-E paper does; they decode to lower case."""


class SentencePieceTokenizer(TextTokenizer):
    """SentencePiece BPE over captions (DALL-E paper, section 2.2).

    Attributes:
        config: the architecture.
        vocab_size: number of token ids.
        pad_id: 0, fills rows up to their length.
        unk_id: 1, never produced while `config.byte_fallback` is on.
        bos_id: 2, reserved for models that want it.
        eos_id: 3, ends every row.
    """

    config: TextTokenizerConfig

    pad_id = PAD_ID
    unk_id = UNK_ID
    bos_id = BOS_ID
    eos_id = EOS_ID
    end = (EOS_ID,)
    blank_is_null = True

    def __init__(self, config: TextTokenizerConfig, model: bytes) -> None:
        """Build from a config and the bytes of a SentencePiece model file.

        Raises:
            ValueError: the bytes are not a SentencePiece model, or have another size or other special tokens.
        """
        super().__init__(config)
        self._model = model
        self._processor = load_processor(model)
        self.vocab_size: int = self._processor.get_piece_size()
        if self.vocab_size != config.vocab_size:
            raise ValueError(
                f"the text tokenizer's {MODEL_FILE} has {self.vocab_size} tokens, but its config says vocab_size="
                f"{config.vocab_size}: use two files from the same training run"
            )
        found = tuple(getattr(self._processor, name)() for name in ("pad_id", "unk_id", "bos_id", "eos_id"))
        if found != (PAD_ID, UNK_ID, BOS_ID, EOS_ID):
            raise ValueError(
                f"the text tokenizer's {MODEL_FILE} has pad, unk, bos, eos = {found}, expected "
                f"{(PAD_ID, UNK_ID, BOS_ID, EOS_ID)}: train it with train.py"
            )

    def __reduce__(self) -> tuple[type[SentencePieceTokenizer], tuple[TextTokenizerConfig, bytes]]:
        return SentencePieceTokenizer, (self.config, self._model)

    def normalize(self, text: str) -> str:
        """The form of `text` that `decode(encode([text]))` returns."""
        return _normalize(text, self.config)

    def words(self, text: str) -> list[tuple[str, list[int]]]:
        """The words of a caption, separated by spaces, each with its ids; together these are the caption's."""
        words = _WORD.findall(_prepare(text, self.config).replace(" ", "\u2581"))
        rows = self._processor.encode([word.replace("\u2581", " ") for word in words], num_threads=1)
        return [(_unescape(word[1:]), row) for word, row in zip(words, rows, strict=True)]  # without the space in front

    def files(self) -> Mapping[str, bytes]:
        """bpe.model, a SentencePiece model."""
        return {MODEL_FILE: self._model}

    @classmethod
    def load(cls, folder: str | Path, config: Mapping[str, Any] | None = None) -> SentencePieceTokenizer:
        """Load what `save` wrote: `bpe.model` and the `model:` section of `config.yaml` (`config`, if read already).

        Raises:
            ValueError: a file is missing, damaged, or belongs to another tokenizer.
        """
        folder = Path(folder)
        file = folder / MODEL_FILE
        if not file.is_file():
            raise ValueError(f"no {MODEL_FILE} in {folder}: expected the folder of a trained text tokenizer")
        recipe = folder / "config.yaml"
        config = read_yaml(recipe) if config is None else config
        settings = from_dict(TextTokenizerConfig, config.get("model") or {}, str(recipe))
        try:
            return cls(settings, file.read_bytes())
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    @classmethod
    def train(cls, config: TextTokenizerConfig, captions: Iterable[str]) -> SentencePieceTokenizer:
        """Learn a vocabulary from captions; the same captions in the same order give an identical model file.

        Args:
            config: the tokenizer to train.
            captions: read once; empty ones are skipped.

        Returns:
            The tokenizer. Of few captions it has fewer tokens than `config` asks for, which the log says.

        Raises:
            ValueError: no captions, or a vocabulary size that is too small for them.
        """
        return cls._learn(config, [line for caption in captions if (line := _prepare(caption, config))])

    @classmethod
    def _learn(cls, config: TextTokenizerConfig, lines: list[str]) -> SentencePieceTokenizer:
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=model,
                model_type="bpe",
                vocab_size=config.vocab_size,
                byte_fallback=config.byte_fallback,
                character_coverage=config.character_coverage,
                split_digits=config.split_digits,
                normalization_rule_name="identity",  # see the top of this file
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                max_sentence_length=_MAX_LINE_BYTES,
                pad_id=PAD_ID,
                unk_id=UNK_ID,
                bos_id=BOS_ID,
                eos_id=EOS_ID,
                pad_piece="<pad>",
                num_threads=1,  # the result must not depend on the machine
                minloglevel=2,
            )
        except RuntimeError as error:
            # SentencePiece says how many tokens these captions can fill: train with so many
            most = re.search(r"set it to a value <= (\d+)", str(error))
            if most is None or int(most[1]) >= config.vocab_size:
                raise ValueError(_explain(str(error), config)) from None
            logger.warning("vocab_size is %d; these captions fill only %s tokens", config.vocab_size, most[1])
            return cls._learn(replace(config, vocab_size=int(most[1])), lines)
        return cls(config, model.getvalue())

    def _tokenize(self, texts: Sequence[str], dropout: float, rngs: Sequence[random.Random]) -> list[list[int]]:
        lines = [_prepare(text, self.config) for text in texts]
        if dropout == 0.0:
            rows: list[list[int]] = self._processor.encode(lines, num_threads=1)
            return rows
        # SentencePiece has its own dropout, but with the same seed it differs between processes, so a run could be
        # neither reproduced nor resumed.
        return [
            [
                i
                for word in _WORD.findall(line.replace(" ", "\u2581"))  # all words of a caption share a generator
                for symbol in merge(list(word), self._rule, dropout, rng)
                for i in self._ids(symbol)
            ]
            for line, rng in zip(lines, rngs, strict=True)
        ]

    def _detokenize(self, ids: list[int]) -> str:
        # The space that `_prepare` put in front
        return _unescape(self._processor.decode([i for i in ids if i != PAD_ID]).removeprefix(" "))

    def _rule(self, first: str, second: str) -> tuple[float, str] | None:
        joined = first + second
        return (self._merges[joined], joined) if joined in self._merges else None

    @functools.cached_property
    def _merges(self) -> dict[str, float]:
        """Each token of text, and the rank of its merge, which SentencePiece stores negated as its score."""
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


def _normalize(text: str, config: TextTokenizerConfig) -> str:
    if config.lower_case:
        text = text.lower()
    return unicodedata.normalize("NFKC", text) if config.normalization == "nfkc" else text


def _prepare(text: str, config: TextTokenizerConfig) -> str:
    """Normalize and escape, and put a space in front, so that the first word gets the same token as elsewhere."""
    check_characters(text)
    text = _normalize(text, config)
    for plain, escaped in _ESCAPES:
        text = text.replace(plain, escaped)
    return " " + text if text else ""  # an empty caption is EOS alone


def _unescape(text: str) -> str:
    for plain, escaped in reversed(_ESCAPES):  # in reverse, or an escaped escape would be misread
        text = text.replace(escaped, plain)
    return text


def _explain(error: str, config: TextTokenizerConfig) -> str:
    """SentencePiece's error message about training as one line that says what to do."""
    if match := re.search(r"required_chars\. \d+ vs (\d+)", error):
        return (
            f"vocab_size={config.vocab_size} is too small for the characters of these captions: set model.vocab_size "
            f"to {match[1]} or more, or lower model.character_coverage"
        )
    if "sentences_.empty()" in error:
        return "no captions to train a text tokenizer on: at least one must not be empty"
    return f"SentencePiece cannot train this text tokenizer: {' '.join(error.split())}"
