"""Liquid (arXiv 2412.04332): a Gemma whose vocabulary goes on with the codes of Chameleon's image tokenizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.published import chameleon, llama
from dalle.checkpoints.published.state import Published, derived, rename_tensors
from dalle.checkpoints.published.text_tokenizers import find_json
from dalle.generation.options import SamplingConfig
from dalle.models.dalle_config import DALLEConfig
from dalle.models.transformer_config import FeedForwardKind
from dalle.text_tokenizers import JSONTokenizer, JSONTokenizerConfig

FAMILY = "a Liquid (Gemma)"
LICENSE = "MIT and Gemma Terms of Use (huggingface.co/Junfeng5/Liquid_V1_7B); its image tokenizer Chameleon's"
SAMPLING = SamplingConfig(guidance=7.0, temperature=0.99, top_k=4096, top_p=0.96)
MODEL_TYPE = "gemma"
_ROWS = 32  # 512 pixels
_BEGIN, _PAD, _IMAGE, _NULL = "<bos>", "<pad>", "<boi>", "<unconditional>"
_TEMPLATE = "{} Generate an image based on this description."
_RULES = llama.rules("model")
_DROPPED = r"lm_head\.weight|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"  # the head is the text embedding
# Gemma's files say "gelu" and mean the tanh approximation that it was trained with
_ACTIVATIONS: dict[Any, FeedForwardKind] = dict.fromkeys(("gelu", "gelu_pytorch_tanh", None), "geglu_tanh")


def load(files: llama.Files) -> llama.LanguageModel:
    """Read a Liquid with its text tokenizer, and its image tokenizer if that is in the same folder.

    Raises:
        ValueError: it is of something else, incomplete, or a Gemma without image codes.
    """
    rows = llama.word_count(files.tensors)
    # First with all rows, as only the tokenizer's own vocabulary tells where the words end
    words = JSONTokenizer(
        JSONTokenizerConfig(vocab_size=rows, pad=_PAD, begin=_BEGIN, template=_TEMPLATE, end=(_IMAGE,)),
        find_json(files.folder),
    )
    count = len(words.vocabulary)
    if count == rows:
        raise ValueError(f"it is a Gemma with {rows:,} words and no image codes: it draws no images")
    words = JSONTokenizer(replace(words.config, vocab_size=count), find_json(files.folder))
    model = read(files.tensors, files.settings, words, files.given)
    images = chameleon.find_images(files.folder)
    # Those of Chameleon, whose image tokenizer the project keeps in its demonstration
    return llama.LanguageModel(model, words, SAMPLING, chameleon.CODES, images)


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
    tensors, dropped = rename_tensors(published, _RULES, _DROPPED, recognized=True)
    blocks = llama.Blocks(_RULES, _ACTIVATIONS, head_width=256)
    state, transformer, base = llama.fuse(tensors, settings, given, blocks)
    for name, value in tensors.items():
        if name.endswith("norm.weight"):
            state[name] = _added(value)
    table = tensors["text_embedding.weight"]
    rows, count = llama.grid_rows(given, _ROWS), words.vocab_size
    # Gemma multiplies embeddings by sqrt(width), here once and for all; its head has the same table without the factor
    scale = math.sqrt(transformer.width)
    state["text_embedding.weight"] = _part(table, slice(0, count), scale)
    state["image_embedding.weight"] = _part(table, slice(count, len(table)), scale)
    state["image_head.weight"] = _part(table, slice(count, len(table)), 1.0)
    config = DALLEConfig(
        transformer=transformer,
        text_vocab=count,
        text_length=llama.TEXT_LENGTH,
        image_vocab=len(table) - count,
        grid=(rows, rows),
        positions="rope_1d",
        rope_base=base,
        pad_id=words.pad_id,
        padding="left",
        null_ids=tuple(map(words.id_of, (_BEGIN, _NULL, _IMAGE))),
        text_head=False,
        head_bias=False,
    )
    return Published(FAMILY, LICENSE, config, state, dropped, _RULES)


def _part(table: Tensor, rows: slice, scale: float) -> LazyTensor:
    """Some rows of a table, scaled as Gemma scales its embeddings; in float32, as the factor is no power of two."""
    shape = torch.Size((rows.stop - rows.start, table.shape[1]))
    if scale == 1:
        return derived([table], shape, lambda: table[rows].clone())
    return LazyTensor(shape, torch.float32, derived([table], shape, lambda: table[rows].float() * scale).make)


def _added(weight: Tensor) -> LazyTensor:
    """The weights of a norm, which Gemma stores without the 1 that they are added to."""
    return LazyTensor(weight.shape, torch.float32, lambda: weight.float() + 1)
