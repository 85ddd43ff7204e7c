"""Byte-level BPEs in tiktoken's format, lines of a token in base64 and its rank, as Qwen's models have them."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any

CUT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Where Qwen's tokenizers cut a text before they merge; no tiktoken file has it in it."""
NORMALIZER: dict[str, Any] = {"type": "NFC"}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
PRE_TOKENIZER: dict[str, Any] = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": CUT}, "behavior": "Isolated", "invert": False},
        _BYTE_LEVEL,
    ],
}


def to_json(content: bytes, special: Sequence[str]) -> bytes:
    """A tokenizer.json that gives the ids of a tiktoken file with Qwen's cut.

    tiktoken joins any two neighbors whose bytes are a token, the lowest rank first: so each way to split a token in two
    tokens is a merge of its rank.

    Args:
        content: the file.
        special: names of the tokens that follow those of the file.

    Raises:
        ValueError: it is no such file.
    """
    ranks = read_ranks(content)
    merges: list[tuple[int, int, int]] = []
    names = {rank: _printed(token) for token, rank in ranks.items()}
    # See the docstring: all ways to split a token in two
    for token, rank in ranks.items():
        for at in range(1, len(token)):
            left, right = ranks.get(token[:at]), ranks.get(token[at:])
            if left is not None and right is not None:
                merges.append((rank, left, right))
    made = {
        "version": "1.0",
        "added_tokens": [added(len(ranks) + number, name) for number, name in enumerate(special)],
        "normalizer": NORMALIZER,
        "pre_tokenizer": PRE_TOKENIZER,
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "ignore_merges": True,  # a whole piece that is a token is not merged
            "vocab": {name: rank for rank, name in names.items()},
            "merges": [(names[left], names[right]) for _, left, right in sorted(merges)],
        },
    }
    return json.dumps(made, ensure_ascii=False).encode()


def added(number: int, name: str) -> dict[str, Any]:
    """The entry of a special token in a tokenizer.json."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": name, **flags, "special": True}


def read_ranks(content: bytes) -> dict[bytes, int]:
    """The tokens of a tiktoken file with their ranks, which are their ids.

    Raises:
        ValueError: it is no such file, or its ranks are not all from 0 on.
    """
    try:
        pairs = [line.split() for line in content.splitlines() if line.strip()]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except (ValueError, binascii.Error):
        raise ValueError("its .tiktoken file has lines that are not a token in base64 and a rank") from None
    if not ranks or sorted(ranks.values()) != list(range(len(pairs))):  # a token that is there twice is found too
        raise ValueError(f"its .tiktoken file has {len(ranks)} tokens whose ranks are not all from 0 on")
    return ranks


def _printed(token: bytes) -> str:
    return "".join(_CHARACTERS[byte] for byte in token)


def _characters() -> list[str]:
    """A printable character for each byte, GPT-2's table."""
    # Bytes that print stand for themselves, the others for characters from 256 on
    printed = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printed else next(others)) for byte in range(256)]


_CHARACTERS = _characters()
