"""Lumina-mGPT 2.0 (arXiv 2507.17801): Chameleon's transformer with Qwen2.5's words and the codes of a MoVQGAN."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from dalle.checkpoints.published import chameleon, llama
from dalle.checkpoints.published.files import read_json
from dalle.checkpoints.published.image_tokenizers import without_weights
from dalle.checkpoints.published.text_tokenizers import find_json
from dalle.generation.options import SamplingConfig
from dalle.image_tokenizers import ImageCodes
from dalle.text_tokenizers import JSONTokenizer, JSONTokenizerConfig, tokenizer_json

FAMILY = "a Lumina-mGPT 2.0 (Chameleon)"
LICENSE = "Apache-2.0 (huggingface.co/Alpha-VLLM/Lumina-mGPT-2.0)"
SAMPLING = SamplingConfig(guidance=4.0, top_k=4096)  # of the project's scripts/sample.sh
CODES = ImageCodes(
    network="movqgan", quantizer="euclidean", codes=16_384, channels=4, factor=8,
    source="ai-forever/MoVQGAN/movqgan_270M.ckpt",
)  # fmt: skip
_ROWS, _CELL = 96, 8  # 768 pixels
_FIRST_CODE = 155_000  # id of the first image code of the published model
_BEGIN = "<|endoftext|>"
# No token of its prompts. Not Qwen's own padding: that is the begin token, which must be looked at
_PAD = "<eoss>"
_OTHERS = b'"IMGIMGAZ"'  # code 0 in the vocabulary of the models before


def is_of(folder: Path) -> bool:
    """Whether a model of Chameleon's tensors is of this family: by its size, or by words without the names of codes."""
    count = llama.read_settings(folder / llama.SETTINGS).get("vocab_size")
    if isinstance(count, int) and count > _FIRST_CODE:
        return True
    file = folder / tokenizer_json.MODEL_FILE
    content = file.read_bytes() if file.is_file() else b""
    return _OTHERS not in content and f'"{chameleon.IMAGE}"'.encode() in content


def load(files: llama.Files) -> llama.LanguageModel:
    """Read a Lumina-mGPT 2.0 with its text tokenizer, and its image tokenizer if that is in the same folder.

    Raises:
        ValueError: it is of something else, or incomplete.
    """
    count = llama.word_count(files.tensors)
    content = find_json(files.folder)
    images = chameleon.find_images(files.folder, "movqgan_270M.ckpt")
    names = JSONTokenizer(JSONTokenizerConfig(vocab_size=count, pad=_PAD), content).vocabulary
    # The published one leaves ids free between its words and its codes; of a smaller one the codes are the last ids
    first = _FIRST_CODE
    if count <= _FIRST_CODE:
        first = max(names.values()) + 1 if images is None else count - without_weights(images).codebook_size
    codes = torch.arange(first, max(first, min(count, first + CODES.codes)))
    if first < 1 or not len(codes):
        raise ValueError(f"it has {count:,} ids for {len(names):,} words and none for image codes: it draws no images")
    rows = llama.grid_rows(files.given, _ROWS)
    config = JSONTokenizerConfig(
        vocab_size=first, pad=_PAD, begin=_begin(files.folder), end=(chameleon.TURN, chameleon.IMAGE)
    )
    words = JSONTokenizer(chameleon.with_size(config, rows, _CELL), _only_words(content, first))
    kind = chameleon.Kind(FAMILY, LICENSE, words, codes, rows, chameleon.NUMBERED // _CELL, text_vocab=first)
    model = chameleon.read(files.tensors, files.settings, kind, files.given)
    return llama.LanguageModel(model, words, SAMPLING, CODES, images)


def _only_words(content: bytes, first: int) -> bytes:
    """A tokenizer.json without names of image codes, whose ids are `first` and those behind it."""
    tree = json.loads(content)
    vocabulary, entries = tree["model"]["vocab"], tree.get("added_tokens") or []
    words = {name: number for name, number in vocabulary.items() if number < first}
    added = [entry for entry in entries if entry["id"] < first]
    if len(words) == len(vocabulary) and len(added) == len(entries):
        return content
    tree["model"]["vocab"], tree["added_tokens"] = words, added
    return json.dumps(tree, ensure_ascii=False).encode()


def _begin(folder: Path) -> str:
    """The begin token: that of tokenizer_config.json, which has none, so that its end token takes its place."""
    file = folder / "tokenizer_config.json"
    settings = read_json(file) if file.is_file() else {}
    for name in ("bos_token", "eos_token"):
        token = settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            return token
    return _BEGIN
