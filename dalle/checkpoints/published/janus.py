"""Janus and Janus-Pro of DeepSeek (arXiv 2410.13848, 2501.17811): a Llama that writes the codes of LlamaGen's VQ-16.

Two layouts: that of DeepSeek's repositories and that of transformers. An image token is embedded by a table and an MLP,
which fold into one table; the image head is an MLP.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.mapped_files import drop_pages
from dalle.checkpoints.published import llama, vqgan
from dalle.checkpoints.published.state import Published, rename_tensors, shape
from dalle.checkpoints.published.text_tokenizers import find_json
from dalle.generation.options import SamplingConfig
from dalle.image_tokenizers import ImageCodes
from dalle.models.dalle_config import DALLEConfig
from dalle.text_tokenizers import JSONTokenizer, JSONTokenizerConfig

FAMILY = "a Janus of DeepSeek"
LICENSE = "weights DeepSeek Model License, code MIT (github.com/deepseek-ai/Janus, LICENSE-MODEL and LICENSE-CODE)"
SAMPLING = SamplingConfig(guidance=5.0)  # cfg_weight of the project's generation_inference.py
CODES = ImageCodes(network="vqgan", quantizer="cosine", codes=16_384, channels=8, factor=16)
MODEL_TYPES = ("multi_modality", "janus")
_ROWS = 24  # 384 pixels
_BEGIN, _PAD, _IMAGE = "<｜begin▁of▁sentence｜>", "<｜▁pad▁｜>", "<begin_of_image>"  # noqa: RUF001
_FOLDED = ("image.codes", "image.up.weight", "image.up.bias", "image.down.weight", "image.down.bias")
_ENDS = (
    (r"gen_embed\.weight", "image.codes"),
    (r"gen_aligner\.layers\.0\.(weight|bias)", r"image.up.\1"),
    (r"gen_aligner\.layers\.2\.(weight|bias)", r"image.down.\1"),
    (r"gen_head\.output_mlp_projector\.(weight|bias)", r"head_hidden.0.\1"),
    (r"gen_head\.vision_head\.(weight|bias)", r"image_head.\1"),
)
_ENDS_HF = (
    (r"model\.generation_embeddings\.weight", "image.codes"),
    (r"model\.generation_aligner\.fc1\.(weight|bias)", r"image.up.\1"),
    (r"model\.generation_aligner\.hidden_layers\.0\.(weight|bias)", r"image.down.\1"),
    (r"model\.generation_head\.proj_out\.(weight|bias)", r"head_hidden.0.\1"),
    (r"model\.generation_head\.vision_head\.(weight|bias)", r"image_head.\1"),
)
_RULES = (*llama.rules(r"language_model\.model"), *_ENDS)
_RULES_HF = (*llama.rules(r"model\.language_model"), *_ENDS_HF)
# What only reading images and writing text needs; the image tokenizer is read apart
_DROPPED = r"(model\.)?(vision_model|aligner|gen_vision_model|vqmodel)\..+|(language_model\.)?lm_head\.weight"
_DROPPED += r"|language_model\.model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
_VQ = ("gen_vision_model.", "model.vqmodel.")
_VQ_HF = (  # transformers' names to LlamaGen's
    (r"(encoder)\.down\.(\d+)\.block\.", r"\1.conv_blocks.\2.res."),
    (r"(decoder)\.up\.(\d+)\.block\.", r"\1.conv_blocks.\2.res."),
    (r"(encoder|decoder)\.(?:down|up)\.(\d+)\.", r"\1.conv_blocks.\2."),
    (r"mid\.block_1\.", "mid.0."),
    (r"mid\.attn_1\.", "mid.1."),
    (r"mid\.block_2\.", "mid.2."),
)


def is_of(names: Iterable[str]) -> bool:
    """Whether tensors, by their published names, are of this family; a DeepSeek-VL has no parts for drawing."""
    return any(name.startswith(("gen_", "model.generation_")) for name in names)


def load(files: llama.Files) -> llama.LanguageModel:
    """Read the parts of a Janus that drawing needs.

    Raises:
        ValueError: as `read`, `image_tokenizer` and `text_tokenizer`.
    """
    plain = plain_roles(files.source, files.given)
    words = text_tokenizer(find_json(files.folder), llama.word_count(files.tensors), plain)
    model = read(files.tensors, files.settings, words.pad_id, files.given)
    images = image_tokenizer(files.tensors, model.config.grid[0])
    return llama.LanguageModel(model, words, SAMPLING, CODES, images)


def read(published: dict[str, Tensor], settings: Mapping[str, Any], pad_id: int, given: Mapping[str, Any]) -> Published:
    """Convert the tensors of a checkpoint that drawing needs.

    Args:
        published: tensors by their published names.
        settings: content of config.json; {} if there is none.
        pad_id: the text tokenizer's padding id, of which the null prompt consists.
        given: the user's options: `heads`, `grid`.

    Raises:
        ValueError: they are of something else, incomplete, or an option has to be given.
    """
    rules = _RULES if any(name.startswith("gen_") for name in published) else _RULES_HF
    tensors, dropped = rename_tensors(published, rules, _DROPPED, recognized=True)
    own = llama.section(settings, "language_config", "text_config")
    state, transformer, base = llama.fuse(tensors, own, given, llama.Blocks(rules))
    llama.take(tensors, "image_head.weight", rules)
    state["image_embedding.weight"] = _folded(*(llama.take(tensors, name, rules) for name in _FOLDED))
    for name in _FOLDED:
        del state[name]
    words, codes = (shape(tensors, f"{part}.weight", 2)[0] for part in ("text_embedding", "image_head"))
    rows = llama.grid_rows(given, llama.section(settings, "vq_config").get("num_patches", _ROWS))
    config = DALLEConfig(
        transformer=transformer,
        text_vocab=words,
        text_length=llama.TEXT_LENGTH,
        image_vocab=codes,
        grid=(rows, rows),
        positions="rope_1d",
        rope_base=base,
        pad_id=pad_id,
        padding="left",
        null_keeps_ends=True,
        text_head=False,
        head_hidden=True,
    )
    # The image tokenizer is read apart, so it is not left out
    kept = [name for name in dropped if not re.fullmatch(r"(gen_vision_model|model\.vqmodel)\..+", name)]
    return Published(FAMILY, LICENSE, config, state, kept, rules)


def image_tokenizer(published: Mapping[str, Tensor], rows: int | None = None) -> Published | None:
    """The image tokenizer in the same files; None if there is none.

    Args:
        published: tensors by their published names.
        rows: rows of codes of an image; None: those of 384 pixels.

    Raises:
        ValueError: it is incomplete.
    """
    own = {
        name.removeprefix(prefix): tensor
        for prefix in _VQ
        for name, tensor in published.items()
        if name.startswith(prefix)
    }
    if not own:
        return None
    # transformers' names of the same network
    if not any(".conv_blocks." in name for name in own):
        for pattern, replacement in _VQ_HF:
            own = {re.sub(pattern, replacement, name): tensor for name, tensor in own.items()}
    levels = len({match[1] for name in own if (match := re.match(r"encoder\.conv_blocks\.(\d+)\.", name))})
    # In pixels: each level but the last halves the side
    found = vqgan.read(own, (_ROWS if rows is None else rows) * 2 ** max(levels - 1, 0))
    return replace(found, family="the image tokenizer of a Janus", license=LICENSE)


def text_tokenizer(content: bytes, words: int, plain: bool) -> JSONTokenizer:
    """The text tokenizer with the prompt of the project's own script.

    Args:
        content: tokenizer.json.
        words: size of the model's text embedding.
        plain: whether the roles are written without bars, as Janus-1.3B's script does; Janus-Pro's has them.

    Raises:
        ValueError: it is another tokenizer, or an early one without a padding token, which guidance needs.
    """
    user, assistant = ("User", "Assistant") if plain else ("<|User|>", "<|Assistant|>")
    config = JSONTokenizerConfig(
        vocab_size=words,
        pad=_PAD,
        begin=_BEGIN,
        template=f"{user}: {{}}\n\n{assistant}:{_IMAGE}",
        strip=True,
    )
    tokenizer = JSONTokenizer(config, content)
    # Refuses a tokenizer that does not know it
    tokenizer.id_of(_IMAGE)
    return tokenizer


def plain_roles(source: Path, given: Mapping[str, Any]) -> bool:
    """Whether the prompt has roles without bars: as given, else of Janus-1.3B, which only its name tells from a Pro.

    Raises:
        ValueError: the option is another.
    """
    roles = given.get("roles", "plain" if "janus-1.3b" in str(source).lower() else "bars")
    if roles not in ("plain", "bars"):
        raise ValueError(f"roles is {roles!r}; give roles=plain (Janus-1.3B) or roles=bars (Janus-Pro)")
    return bool(roles == "plain")


def _folded(codes: Tensor, *layers: Tensor) -> LazyTensor:
    """The embedding of every code: table, linear layer, GELU, linear layer; in float32, whatever they are stored in."""
    size = torch.Size((codes.shape[0], layers[2].shape[0]))

    def make() -> Tensor:
        up, up_bias, down, down_bias = (layer.float() for layer in layers)
        made = F.linear(F.gelu(F.linear(codes.float(), up, up_bias)), down, down_bias)
        for tensor in (codes, *layers):
            drop_pages(tensor)  # what is mapped is not read again
        return made

    return LazyTensor(size, torch.float32, make)
