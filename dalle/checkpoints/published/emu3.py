"""Emu3 of BAAI (arXiv 2409.18869): a Llama with grouped heads over one vocabulary of words and image codes.

Two layouts: that of its project, with the image tokenizer in a repository of its own, and that of transformers, with
both in one. The prompt has the image's size in it, and a token stands behind each row of codes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.published import emu3_tokenizer, llama, tiktoken
from dalle.checkpoints.published.state import Published, derived, rename_tensors
from dalle.checkpoints.published.text_tokenizers import find_json
from dalle.generation.options import SamplingConfig
from dalle.image_tokenizers import ImageCodes
from dalle.models.dalle_config import DALLEConfig, GridsConfig
from dalle.text_tokenizers import JSONTokenizer, JSONTokenizerConfig

FAMILY = "an Emu3"
LICENSE = "Apache-2.0 (huggingface.co/BAAI/Emu3-Gen)"
SAMPLING = SamplingConfig(guidance=3.0, top_k=2048)
CODES = ImageCodes(
    network="emu3", quantizer="euclidean", codes=32_768, channels=4, factor=8, source="BAAI/Emu3-VisionTokenizer"
)
MODEL_TYPES = ("Emu3", "emu3")
NEGATIVE = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, "
    "low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."
)
"""The project's negative prompt."""
_ROWS = 90  # 720 pixels
_TIKTOKEN, _VISION = "emu3.tiktoken", "emu3_vision_tokens.txt"
# Begin of text and end of line of Emu3Tokenizer
PAD, BEGIN, _ROW_END = "<|endoftext|>", "<|extra_203|>", "<|extra_200|>"
_SPECIAL = (PAD, "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))
_CODE = re.compile(r"<\|visual token (\d{6})\|>")
_QUALITY = " masterpiece, film grained, best quality."  # POSITIVE_PROMPT of its image_generation.py
SIZE = "<|image start|>{rows}*{columns}<|image token|>"
"""Behind the caption in a prompt: the grid of the image, whose codes follow."""
_CELL = 8  # pixels of a code
_LAYOUTS = (  # pattern of what is in front of the blocks, pattern of the head
    ("model", "lm_head"),
    (r"text_model\.model", r"text_model\.lm_head"),
    (r"model\.text_model", "lm_head"),
)
_DROPPED = r"(model\.)?vqmodel\..+|.+\.rotary_emb\.inv_freq"


def is_of(names: Iterable[str]) -> bool:
    """Whether tensors, by their published names, are of this family in transformers' layout."""
    return any(re.fullmatch(r"(text_model\.model|model\.text_model)\.embed_tokens\.weight", name) for name in names)


@dataclass(frozen=True)
class Words:
    """The text tokenizer's file without the names of image codes.

    Attributes:
        content: a tokenizer.json.
        codes: ids of the image codes in their order, int64 [V].
    """

    content: bytes
    codes: Tensor


def load(files: llama.Files) -> llama.LanguageModel:
    """Read an Emu3 with its text tokenizer, and its image tokenizer if that is in the same files.

    Raises:
        ValueError: it is of something else, incomplete, or made to read images.
    """
    if "emu3-chat" in str(files.source).lower():
        raise ValueError("it is an Emu3-Chat, which reads images and draws none: give BAAI/Emu3-Gen or Emu3-Stage1")
    rows = llama.grid_rows(files.given, _ROWS)
    found = read_words(files.folder)
    tokenizer = text_tokenizer(found, rows)
    # Its project rounds both sides of a ratio, which may be a few codes more than those of the square
    grids = GridsConfig(most=(rows + 1) ** 2)
    model = read(files, found, tokenizer, grids)
    images = emu3_tokenizer.of_model(files.tensors, rows) or emu3_tokenizer.find(files.folder, rows)
    return llama.LanguageModel(model, tokenizer, SAMPLING, CODES, images)


def read(
    files: llama.Files,
    words: Words,
    tokenizer: JSONTokenizer,
    grids: GridsConfig,
    family: str = FAMILY,
    terms: str = LICENSE,
) -> Published:
    """Convert the tensors of a checkpoint, of an Emu3 or of an Emu3.5, which also norms queries and keys.

    Args:
        files: the checkpoint.
        words: which ids are image codes.
        tokenizer: the text tokenizer, with the prompt for the grid that is its config's.
        grids: which other grids it draws.
        family: its name in messages.
        terms: license of the weights.

    Raises:
        ValueError: they are of something else, or incomplete.
    """
    published = files.tensors
    # The patterns are of literal names, so without backslashes they are the names
    front, end = next(
        (layout for layout in _LAYOUTS if layout[0].replace("\\", "") + ".embed_tokens.weight" in published),
        _LAYOUTS[0],
    )
    norms = (rf"{front}\.layers\.(\d+)\.self_attn\.([qk]_norm)\.weight", r"transformer.blocks.\1.attention.\2.weight")
    rules = (*llama.rules(front), norms, (rf"{end}\.weight", "head"))
    tensors, dropped = rename_tensors(published, rules, _DROPPED, recognized=True)
    blocks = llama.Blocks(rules, eps=1e-5, rope_base=1e6)
    # transformers nests the language model's part
    own = llama.section(files.settings, "text_config") or files.settings
    state, transformer, base = llama.fuse(tensors, own, files.given, blocks)
    normed = any(name.endswith("attention.q_norm.weight") for name in tensors)
    grid = tokenizer.config.grid
    assert grid is not None  # its prompt says it
    table, head = tensors["text_embedding.weight"], llama.take(tensors, "head", rules)
    del state["head"]
    if int(words.codes.max()) >= min(len(table), len(head)):
        raise ValueError(
            f"its tables have {len(table)} and {len(head)} rows, its text tokenizer codes up to id "
            f"{words.codes.max()}: that is of another model"
        )
    count = tokenizer.vocab_size
    inputs = torch.cat((words.codes, torch.tensor([tokenizer.id_of(_ROW_END)])))
    # Rows of image codes are in a table of their own, and no prompt has their ids
    state["text_embedding.weight"] = table[:count]
    state["image_embedding.weight"], state["image_head.weight"] = _rows(table, inputs), _rows(head, words.codes)
    config = DALLEConfig(
        transformer=replace(transformer, qk_norm=True, qk_norm_kind="rms") if normed else transformer,
        text_vocab=count,
        text_length=llama.TEXT_LENGTH,
        image_vocab=len(words.codes),
        grid=grid,
        grids=grids,
        row_ends=True,
        positions="rope_1d",
        rope_base=base,
        pad_id=tokenizer.pad_id,
        padding="left",
        null_ids=tokenizer.null_ids(),
        # Emu3FeatureDataset of the project's training: no caption, and none of the prompt's words of quality
        dropped_ids=tuple(tokenizer.encode_negative("")),
        text_head=False,
        head_bias=False,
    )
    return Published(family, terms, config, state, dropped, rules)


def text_tokenizer(words: Words, rows: int) -> JSONTokenizer:
    """The text tokenizer with the prompt of the project's own script, for square images of `rows` rows of codes.

    Raises:
        ValueError: it is another tokenizer.
    """
    # Codes come last: a prompt's ids are below them
    config = JSONTokenizerConfig(
        vocab_size=int(words.codes.min()),
        pad=PAD,
        begin=BEGIN,
        template="{}" + _QUALITY + SIZE,
        negative_template="{}" + SIZE,
        grid=(rows, rows),
        cell=_CELL,
        negative=NEGATIVE,
    )
    return JSONTokenizer(config, words.content)


def read_words(folder: Path) -> Words:
    """The text tokenizer in a folder of either layout.

    transformers' tokenizer.json cuts texts as GPT-2 does, while the model was trained with Qwen's cut, which replaces
    it.

    Raises:
        ValueError: a file is missing or damaged, or names no image codes.
    """
    if (folder / _TIKTOKEN).is_file() or (folder / _VISION).is_file():
        vision = find_json(folder, _VISION).decode(errors="replace").split("\n")
        names = [*_SPECIAL, *(line.strip("\r") for line in vision if line.strip())]
        kept = [name for name in names if not _CODE.fullmatch(name)]
        # Codes must be the last ids, as the words' table is cut before them
        if names[: len(kept)] != kept:
            raise ValueError(f"{folder / _VISION} has other tokens behind those of image codes: fetch it again")
        content = tiktoken.to_json(find_json(folder, _TIKTOKEN), kept)
        first = len(json.loads(content)["model"]["vocab"])
        return Words(content, _code_ids({name: first + number for number, name in enumerate(names)}))
    try:
        tree = json.loads(find_json(folder))
        vocabulary, entries = tree["model"]["vocab"], tree.get("added_tokens") or []
        ids = vocabulary | {entry["content"]: entry["id"] for entry in entries}
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{folder / 'tokenizer.json'} is not one of a BPE: fetch it again") from None
    tree["model"]["vocab"] = {name: number for name, number in vocabulary.items() if not _CODE.fullmatch(name)}
    tree["added_tokens"] = [entry for entry in entries if not _CODE.fullmatch(entry["content"])]
    tree |= {"normalizer": tiktoken.NORMALIZER, "pre_tokenizer": tiktoken.PRE_TOKENIZER}
    return Words(json.dumps(tree, ensure_ascii=False).encode(), _code_ids(ids))


def _code_ids(ids: Mapping[str, int]) -> Tensor:
    found = {int(match[1]): number for name, number in ids.items() if (match := _CODE.fullmatch(name))}
    if not found or sorted(found) != list(range(len(found))):
        raise ValueError(
            f"its text tokenizer names {len(found)} image codes (<|visual token 000000|>), not all from 0 on"
        )
    return torch.tensor([found[code] for code in range(len(found))])


def _rows(table: Tensor, rows: Tensor) -> LazyTensor:
    return derived([table], torch.Size((len(rows), *table.shape[1:])), lambda: table[rows])
