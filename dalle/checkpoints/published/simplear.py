"""SimpleAR (arXiv 2504.11455): a Qwen2.5 whose vocabulary goes on with the 64,000 codes of Cosmos' image tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.published import cosmos, llama, tiktoken
from dalle.checkpoints.published.files import read_json
from dalle.checkpoints.published.state import Published, derived, rename_tensors
from dalle.checkpoints.published.text_tokenizers import find_json
from dalle.generation.options import SamplingConfig
from dalle.image_tokenizers import ImageCodes
from dalle.models.dalle_config import DALLEConfig, GridsConfig
from dalle.text_tokenizers import JSONTokenizer, JSONTokenizerConfig, tokenizer_json

FAMILY = "a SimpleAR (Qwen2.5)"
LICENSE = "code MIT (github.com/wdrink/SimpleAR), from Qwen2.5, Apache-2.0; image tokenizer NVIDIA Open Model License"
SAMPLING = SamplingConfig(guidance=6.0)
CODES = ImageCodes(
    network="cosmos", quantizer="fsq", codes=64_000, channels=6, factor=16,
    source="nvidia/Cosmos-1.0-Tokenizer-DV8x16x16",
)  # fmt: skip
MODEL_TYPE = "qwen2"
NEGATIVE = (
    "aerial view, overexposed, low quality, deformation, a poor composition, bad hands, bad teeth, bad eyes, "
    "bad limbs, distortion"
)
"""The negative prompt of the project's generate.py."""
_ROWS = 64  # 1024 pixels
_PAD, _START, _IMAGE = "<|endoftext|>", "<|t2i|>", "<|soi|>"
_TEMPLATE = f"{_START}A highly realistic image of {{}}{_IMAGE}"
_NEGATIVE_TEMPLATE = f"{_START}An image of {{}}{_IMAGE}"
_RULES = (*llama.rules("model", biases=True), (r"lm_head\.weight", "head"))
_DROPPED = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
_VOCABULARY = "vocab.json"


def is_of(names: Iterable[str]) -> bool:
    """Whether tensors, by their published names, are of a Qwen2: only these have biases on queries, keys and values."""
    return "model.layers.0.self_attn.q_proj.bias" in set(names)


def load(files: llama.Files) -> llama.LanguageModel:
    """Read a SimpleAR with its text tokenizer, and its image tokenizer if that is in the same folder.

    Raises:
        ValueError: it is of something else, incomplete, or a Qwen2 without image codes.
    """
    rows = llama.word_count(files.tensors)
    content = read_words(files.folder)
    words = JSONTokenizer(JSONTokenizerConfig(vocab_size=rows, pad=_PAD), content)
    count = len(words.vocabulary)
    if not {_START, _IMAGE} <= set(words.vocabulary) or count == rows:
        raise ValueError(
            f"it is a Qwen2 with {rows:,} rows for {count:,} words and no image codes (SimpleAR's words end with "
            f"{_START} and {_IMAGE}): it is a language model that draws no images"
        )
    config = replace(words.config, vocab_size=count, template=_TEMPLATE, negative_template=_NEGATIVE_TEMPLATE)
    words = JSONTokenizer(config, content)
    model = read(files.tensors, files.settings, words, files.given)
    place = cosmos.find(files.folder)
    images = None if place is None else cosmos.read(place, model.config.grid[0])
    return llama.LanguageModel(model, words, SAMPLING, CODES, images)


def read(
    published: dict[str, Tensor], settings: Mapping[str, Any], words: JSONTokenizer, given: Mapping[str, Any]
) -> Published:
    """Convert the tensors of a checkpoint.

    Args:
        published: tensors by their published names.
        settings: content of config.json.
        words: the text tokenizer; image codes follow its last id.
        given: the user's options: `heads`, `grid`.

    Raises:
        ValueError: they are of something else, or incomplete.
    """
    if settings.get("use_sliding_window"):
        raise ValueError("its attention sees a sliding window of tokens only, which is not supported")
    tensors, dropped = rename_tensors(published, _RULES, _DROPPED, recognized=True)
    state, transformer, base = llama.fuse(tensors, settings, given, llama.Blocks(_RULES, rope_base=1e6))
    table = tensors["text_embedding.weight"]
    tied = "head" not in tensors and settings.get("tie_word_embeddings", True)
    head = table if tied else llama.take(tensors, "head", _RULES)
    if head.shape != table.shape:
        raise ValueError(
            f"its head is {list(head.shape)}, its text embedding {list(table.shape)}: they are of two models"
        )
    state.pop("head", None)
    rows, count = llama.grid_rows(given, _ROWS), words.vocab_size
    state["text_embedding.weight"] = _rows(table, 0, count)
    state["image_embedding.weight"] = _rows(table, count, len(table))
    state["image_head.weight"] = _rows(head, count, len(table))
    config = DALLEConfig(
        transformer=transformer,
        text_vocab=count,
        text_length=llama.TEXT_LENGTH,
        image_vocab=len(table) - count,
        grid=(rows, rows),
        grids=GridsConfig(most=max(rows, _ROWS) ** 2, ratio=1),
        positions="rope_1d",
        rope_base=base,
        pad_id=words.pad_id,
        padding="left",
        null_ids=tuple(words.encode_negative(NEGATIVE)),
        dropped_ids=(words.id_of(_START), words.id_of(_IMAGE)),  # preprocess_t2i of the project's training
        text_head=False,
        head_bias=False,
    )
    return Published(FAMILY, LICENSE, config, state, dropped, _RULES)


def read_words(folder: Path) -> bytes:
    """The tokenizer.json in a folder, or what its vocabulary, merges and added tokens make as one.

    Raises:
        ValueError: there is neither, or a file is damaged.
    """
    if (folder / tokenizer_json.MODEL_FILE).is_file() or not (folder / _VOCABULARY).is_file():
        return find_json(folder)
    lines = find_json(folder, "merges.txt").decode(errors="replace").split("\n")
    made = {
        "version": "1.0",
        "added_tokens": [
            tiktoken.added(number, name)
            for name, number in sorted(read_json(folder / "added_tokens.json").items(), key=lambda item: item[1])
        ],
        "normalizer": tiktoken.NORMALIZER,
        "pre_tokenizer": tiktoken.PRE_TOKENIZER,
        "decoder": tiktoken.PRE_TOKENIZER["pretokenizers"][-1],
        "model": {
            "type": "BPE",
            "vocab": read_json(folder / _VOCABULARY),
            "merges": [line for line in lines if line.strip() and not line.startswith("#version")],
        },
    }
    return json.dumps(made, ensure_ascii=False).encode()


def _rows(table: Tensor, start: int, stop: int) -> LazyTensor:
    """Some rows of a table, copied: its pages are dropped behind them."""
    return derived([table], torch.Size((stop - start, *table.shape[1:])), lambda: table[start:stop].clone())
