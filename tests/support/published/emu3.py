"""Emu3's text tokenizer and the names of its image tokenizer, as its project publishes them."""

from __future__ import annotations

import base64
import re
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from support.published.language_models import byte_level

CUT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
EXTRA = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]


def vision(codes: int) -> list[str]:
    """Lines of emu3_vision_tokens.txt."""
    names = (f"<|visual token {i:06d}|>" for i in range(codes))
    return ["<|image token|>", "<|image start|>", "<|image end|>", *names]


@cache
def ranks() -> dict[bytes, int]:
    """Tokens of a small byte-level BPE: 256 bytes, then what was merged, in its order."""
    from tokenizers import decoders

    vocabulary = byte_level([], 330).get_vocab()
    table = decoders.ByteLevel()
    printed = {chr(b): b for b in (*range(33, 127), *range(161, 173), *range(174, 256))}
    rest = [b for b in range(256) if b not in printed.values()]
    printed |= {chr(256 + i): b for i, b in enumerate(rest)}
    assert table.decode(["Ġa"]) == " a" and printed["Ġ"] == 32
    names = sorted(vocabulary, key=lambda name: vocabulary[name])
    return {bytes(printed[c] for c in name): i for i, name in enumerate(names)}


def ids_of(text: str) -> list[int]:
    """As tiktoken: of each piece the two neighbors whose bytes have the lowest rank are joined, again and again."""
    import regex

    found = []
    for piece in regex.findall(CUT, unicodedata.normalize("NFC", text)):
        parts = [bytes([byte]) for byte in piece.encode()]
        while True:
            pairs = [(ranks()[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks()]
            if not pairs:
                break
            _, at = min(pairs)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        found += [ranks()[part] for part in parts]
    return found


CODES = 24
VISION = vision(CODES)


def special(name: str) -> int:
    """The id of a token that no text has."""
    return len(ranks()) + [*EXTRA, *VISION].index(name)


def image_start(rows: int, columns: int) -> list[int]:
    """The size of an image, which its codes follow."""
    return [special("<|image start|>"), *ids_of(f"{rows}*{columns}"), special("<|image token|>")]


def write_words(folder: Path, codes: int) -> Path:
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks().items()]
    (folder / "emu3.tiktoken").write_text("\n".join(lines) + "\n")
    (folder / "emu3_vision_tokens.txt").write_text("\n".join(vision(codes)) + "\n")
    return folder


def project_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """In the layout of BAAI/Emu3-VisionTokenizer, where attention projects by kernels of one pixel."""
    names = (
        (r"encoder\.down_block\.down\.", "encoder.down."),
        (r"decoder\.up_block\.up\.", "decoder.up."),
        (r"\.middle_block\.attn_norm\.", ".mid.attn_1.norm."),
        (r"\.middle_block\.", ".mid."),
        (r"\.attn_norms\.(\d+)\.", r".attn.\1.norm."),
        (r"\.([qkv])_proj\.", r".\1."),
        (r"\.out_proj\.", ".proj_out."),
    )
    found = {}
    for name, value in state.items():
        if re.search(r"_proj\.weight", name):
            value = value[..., None, None]
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        found[name] = value.contiguous()
    return found
