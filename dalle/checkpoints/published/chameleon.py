"""Anole (arXiv 2407.06135) and Lumina-mGPT (arXiv 2408.02657): Chameleon's transformer (arXiv 2405.09818), that draws.

A Llama with LayerNorm on queries and keys, over one vocabulary of words and image codes, whose rows are taken apart
here. Two layouts: that of transformers, and Meta's, where rotary positions turn neighboring channels together.
Lumina-mGPT has the image's size in the prompt, and a new-line token behind each row of codes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.published import llama
from dalle.checkpoints.published.heads import deinterleave
from dalle.checkpoints.published.image_tokenizers import read_image_tokenizer
from dalle.checkpoints.published.state import Published, derived, rename_tensors
from dalle.checkpoints.published.text_tokenizers import find_json
from dalle.generation.options import SamplingConfig
from dalle.image_tokenizers import ImageCodes
from dalle.models.dalle_config import DALLEConfig, GridsConfig
from dalle.text_tokenizers import JSONTokenizer, JSONTokenizerConfig

_FAMILIES = {False: "an Anole (Chameleon)", True: "a Lumina-mGPT (Chameleon)"}
LICENSE = "Chameleon Research License, not for commercial use (huggingface.co/facebook/chameleon-7b)"
SAMPLING = SamplingConfig(guidance=3.0, temperature=0.7, top_p=0.9)
LUMINA_SAMPLING = SamplingConfig(guidance=4.0, top_k=2000)
CODES = ImageCodes(
    network="vqgan", quantizer="euclidean", codes=8192, channels=256, factor=16,
    source="GAIR/Anole-7b-v0.1/tokenizer/vqgan.ckpt",
)  # fmt: skip
MODEL_TYPE = "chameleon"
_ROWS, _LUMINA_ROWS = 32, 48  # 512 and 768 pixels
_CELL = 16  # pixels of a code
# End of turn and begin of image go by these names in its vocabulary (chameleon/inference/vocab.py)
_BEGIN, _PAD, TURN, IMAGE = "<s>", "<pad>", "<reserved08706>", "<racm3:break>"
NEW_LINE, _NUMBERS = "<reserved08799>", 8800  # the number n is called <reserved0880n>
NUMBERED = 32
"""Pixels of a cell whose rows and columns a Lumina-mGPT counts."""
_LUMINA_TEMPLATE = "Generate an image of {width}x{height} according to the following prompt:\n{}"
_LUMINA_SIZE = ("<reserved{row_number:05d}>", "<reserved{column_number:05d}>")  # height first
_LAYER = r"layers\.(\d+)\."
_BLOCK = r"transformer.blocks.\1."
_RULES = (
    *llama.rules("model"),
    (rf"model\.{_LAYER}self_attn\.([qk]_norm)\.(weight|bias)", _BLOCK + r"attention.\2.\3"),
    (r"lm_head\.weight", "head"),
)
_RULES_META = (
    (r"tok_embeddings\.weight", "text_embedding.weight"),
    (rf"{_LAYER}attention\.w([qkv])\.weight", _BLOCK + r"attention.\2"),
    (rf"{_LAYER}attention\.wo\.weight", _BLOCK + "attention.out.weight"),
    (rf"{_LAYER}attention\.([qk])_normalization\.(weight|bias)", _BLOCK + r"attention.\2_norm.\3"),
    (rf"{_LAYER}feed_forward\.w1\.weight", _BLOCK + "feed_forward.gate"),
    (rf"{_LAYER}feed_forward\.w2\.weight", _BLOCK + "feed_forward.down"),
    (rf"{_LAYER}feed_forward\.w3\.weight", _BLOCK + "feed_forward.up"),
    (rf"{_LAYER}attention_norm\.weight", _BLOCK + "attention_norm.weight"),
    (rf"{_LAYER}ffn_norm\.weight", _BLOCK + "feed_forward_norm.weight"),
    (r"norm\.weight", "transformer.norm.weight"),
    (r"output\.weight", "head"),
)
# Image tokenizer, rotary frequencies
_DROPPED = r"model\.vqmodel\..+|rope\.freqs|(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq"


def is_of(names: Iterable[str]) -> bool:
    """Whether tensors, by their published names, are of this family."""
    wanted = r"model\.layers\.0\.self_attn\.q_norm\.bias|layers\.0\.attention\.q_normalization\.(weight|bias)"
    return any(re.fullmatch(wanted, name) for name in names)


def consolidated(folder: Path) -> Path | None:
    """The weight file in a folder of Meta's layout; None if it has another."""
    found = sorted(folder.glob("models/*/consolidated.pth"))
    return found[0] if len(found) == 1 else None


def load(files: llama.Files) -> llama.LanguageModel:
    """Read an Anole as `load_lumina` reads a Lumina-mGPT."""
    return _load(files, lumina=False)


def load_lumina(files: llama.Files) -> llama.LanguageModel:
    """Read a Lumina-mGPT with its text tokenizer, and its image tokenizer if that is in the same folder.

    Raises:
        ValueError: it is of something else, incomplete, or cannot draw.
    """
    return _load(files, lumina=True)


def _load(files: llama.Files, lumina: bool) -> llama.LanguageModel:
    meta = "tok_embeddings.weight" in files.tensors
    folder, settings = files.folder, files.settings
    if meta:  # models/7b/consolidated.pth beside params.json, tokenizer/text_tokenizer.json
        folder = next((place for place in files.folder.parents if (place / "tokenizer").is_dir()), files.folder)
        settings = llama.read_settings(files.folder / "params.json")
    rows = llama.grid_rows(files.given, _lumina_rows(files.source) if lumina else _ROWS)
    words = text_tokenizer(
        find_json(folder / "tokenizer", "text_tokenizer.json") if meta else find_json(folder),
        llama.word_count(files.tensors),
        rows if lumina else None,
    )
    kind = Kind(
        _FAMILIES[lumina], LICENSE, words, code_ids(words.vocabulary), rows, NUMBERED // _CELL if lumina else None
    )
    model = read(files.tensors, settings, kind, files.given)
    images = find_images(folder)  # others are fetched
    return llama.LanguageModel(model, words, LUMINA_SAMPLING if lumina else SAMPLING, CODES, images)


def find_images(folder: Path, name: str = "vqgan.ckpt") -> Published | None:
    """The image tokenizer in a file of that name in a folder or below it, the nearest; None if there is none."""
    found = sorted(folder.rglob(name), key=lambda file: (len(file.parts), file))
    return read_image_tokenizer(found[0]) if found else None


@dataclass(frozen=True)
class Kind:
    """What models of this transformer differ in.

    Attributes:
        family: name in messages.
        license: license of the weights.
        words: the text tokenizer, with the prompt.
        codes: ids of the image codes in their order, int64 [V].
        rows: rows of image codes.
        multiple: of a model that reads row ends and draws other grids too, what their sides are multiples of; None: it
            has one grid, and no row ends.
        text_vocab: rows of the text embedding; None: as many as there are.
    """

    family: str
    license: str
    words: JSONTokenizer
    codes: Tensor
    rows: int
    multiple: int | None = None
    text_vocab: int | None = None


def read(published: dict[str, Tensor], settings: Mapping[str, Any], kind: Kind, given: Mapping[str, Any]) -> Published:
    """Convert the tensors of a checkpoint.

    Args:
        published: tensors by their published names.
        settings: content of config.json or params.json; {} if there is none.
        kind: which of the models it is.
        given: the user's options: `heads`.

    Raises:
        ValueError: they are of something else, incomplete, or without a head for image codes.
    """
    meta = "tok_embeddings.weight" in published
    rules = _RULES_META if meta else _RULES
    if settings.get("swin_norm"):
        raise ValueError("its norms stand behind attention and feed-forward (a Chameleon 30B), which is not supported")
    tensors, dropped = rename_tensors(published, rules, _DROPPED, recognized=True)
    state, transformer, base = llama.fuse(tensors, settings, given, llama.Blocks(rules, interleaved=meta, eps=1e-5))
    for layer in range(transformer.depth):
        for part, heads in (("q", transformer.heads), ("k", transformer.key_heads)):
            for name in (f"transformer.blocks.{layer}.attention.{part}_norm.{kind}" for kind in ("weight", "bias")):
                state[name] = _per_head(llama.take(tensors, name, rules), heads, transformer.head_width, meta)
    codes, words = kind.codes, kind.words
    # Both have rows for words and codes. Prompts read the first, images the codes' rows of either
    table, head = tensors["text_embedding.weight"], llama.take(tensors, "head", rules)
    del state["head"]
    if int(codes.max()) >= min(len(table), len(head)):
        raise ValueError(
            f"its tables have {len(table)} and {len(head)} rows, its text tokenizer codes up to id {codes.max()}: that "
            "is of another model"
        )
    # Meta set these rows to zero before publishing; without the check every code would be equally likely
    if not head[codes[0]].any():
        raise ValueError("its head for image codes is zero (a Chameleon as Meta published it): it draws no images")
    # Row ends are read and never predicted here, so they have an embedding and no row in the head
    inputs = codes if kind.multiple is None else torch.cat((codes, torch.tensor([words.id_of(NEW_LINE)])))
    if kind.text_vocab is not None:  # rows of image codes are in a table of their own, and no prompt has their ids
        state["text_embedding.weight"] = table[: kind.text_vocab]
    state["image_embedding.weight"], state["image_head.weight"] = _rows(table, inputs), _rows(head, codes)
    config = DALLEConfig(
        transformer=replace(transformer, qk_norm=True, qk_norm_kind="own"),
        text_vocab=len(table) if kind.text_vocab is None else kind.text_vocab,
        text_length=llama.TEXT_LENGTH,
        image_vocab=len(codes),
        grid=(kind.rows, kind.rows),
        grids=None if kind.multiple is None else GridsConfig(most=kind.rows**2, multiple=kind.multiple),
        row_ends=kind.multiple is not None,
        positions="rope_1d",
        rope_base=base,
        pad_id=words.pad_id,
        padding="left",
        # Lumina-mGPT: begin of image and its size. Anole: begin of text and begin of image
        null_ids=words.null_ids() or (words.id_of(_BEGIN), words.id_of(IMAGE)),
        text_head=False,
        head_bias=False,
    )
    return Published(kind.family, kind.license, config, state, dropped, rules)


def text_tokenizer(content: bytes, words: int, lumina_rows: int | None = None) -> JSONTokenizer:
    """The text tokenizer with the prompt of the project's own script.

    Args:
        content: tokenizer.json or text_tokenizer.json.
        words: size of the model's text embedding.
        lumina_rows: of a Lumina-mGPT, rows of codes: its prompt has the size of the image in it.

    Raises:
        ValueError: it is another tokenizer, or a Lumina-mGPT has an odd number of rows.
    """
    config = JSONTokenizerConfig(vocab_size=words, pad=_PAD, begin=_BEGIN, end=(TURN, IMAGE))
    return JSONTokenizer(config if lumina_rows is None else with_size(config, lumina_rows, _CELL), content)


def with_size(config: JSONTokenizerConfig, rows: int, cell: int) -> JSONTokenizerConfig:
    """The prompt of a Lumina-mGPT, which says the image's size in pixels and in cells of 32 pixels.

    Args:
        config: with the prompt's last tokens.
        rows: rows of codes of a square image.
        cell: pixels of a code's side.

    Raises:
        ValueError: these are no whole cells.
    """
    numbered = NUMBERED // cell
    if rows % numbered:
        raise ValueError(f"grid is {rows}; this Lumina-mGPT draws rows of image tokens in multiples of {numbered}")
    return replace(
        config,
        template=_LUMINA_TEMPLATE,
        end=(*config.end, *_LUMINA_SIZE),
        null_tokens=(IMAGE, *_LUMINA_SIZE),
        grid=(rows, rows),
        cell=cell,
        first_number=_NUMBERS,
        rows_per_number=numbered,
    )


def _lumina_rows(source: Path) -> int:
    """Rows of codes by the size in the name of a repository."""
    size = re.search(r"lumina-mgpt.*?-(512|768|1024)(?!\d)", str(source).lower())
    return int(size[1]) // _CELL if size else _LUMINA_ROWS


def code_ids(vocabulary: Mapping[str, int]) -> Tensor:
    """The ids of the image codes in their order, int64 [V]: code 10 is called IMGIMGBAZ, its digits as letters.

    Raises:
        ValueError: there are none, or not all up to the last.
    """
    found = {}
    for name, number in vocabulary.items():
        if match := re.fullmatch(r"IMGIMG([A-J]{1,9})Z", name):
            found[int("".join(str(ord(letter) - ord("A")) for letter in match[1]))] = number
    if not found or sorted(found) != list(range(len(found))):
        raise ValueError(f"its text tokenizer names {len(found)} image codes (IMGIMG...Z), not all from 0 on")
    return torch.tensor([found[code] for code in range(len(found))])


def _rows(table: Tensor, rows: Tensor) -> LazyTensor:
    return derived([table], torch.Size((len(rows), *table.shape[1:])), lambda: table[rows])


def _per_head(norm: Tensor, heads: int, width: int, interleaved: bool) -> LazyTensor:
    """Weights or biases of a norm, [D] or [H, D], as [H, 1, D] in the order of our rotary channels."""

    def make() -> Tensor:
        # The norm stands before the rotation, so its channels move with those of queries and keys
        own = norm[..., deinterleave(width)] if interleaved else norm
        return own.expand(heads, width)[:, None].clone()

    if tuple(norm.shape) not in ((width,), (heads, width)):
        raise ValueError(f"its norms on queries and keys are {list(norm.shape)}, expected {[heads, width]}")
    return derived([norm], torch.Size((heads, 1, width)), make)
