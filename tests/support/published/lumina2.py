"""A small Lumina-mGPT 2.0 with random weights: a Chameleon of transformers, in the layout of its repository."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from support.published.autoencoders import random_state
from support.published.language_models import byte_level, randomize

ROWS, CODES, WIDTH, CELL = 8, 24, 64, 8
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<racm3:break>", "<eoss>", "<reserved08706>"]
SPECIAL += ["<reserved08799>", *(f"<reserved{8800 + number:05d}>" for number in range(30))]


@cache
def tokenizer() -> Any:
    """A byte-level BPE, with what Qwen2.5 and the project add behind it."""
    from tokenizers import AddedToken

    one = byte_level([], 330)
    one.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return one


def first() -> int:
    return tokenizer().get_vocab_size(with_added_tokens=True)


def config_of(vocab_size: int, **changes: Any) -> Any:
    import transformers

    sizes: dict[str, Any] = {
        "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }  # fmt: skip
    return transformers.ChameleonConfig(
        vocab_size=vocab_size, rms_norm_eps=1e-5, **(sizes | changes), vocabulary_map={"<image>": 0, "<eoss>": 1},
        vq_config={"base_channels": 32, "embed_dim": 8, "num_embeddings": CODES, "latent_channels": 8,
                   "resolution": 16, "channel_multiplier": [1, 1], "num_res_blocks": 1},
    )  # fmt: skip


@cache
def reference() -> Any:
    """The model of transformers: a Chameleon."""
    import transformers

    return randomize(transformers.ChameleonForConditionalGeneration(config_of(first() + CODES)), scale=3.0)


def published(model: Any) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if not name.startswith("model.vqmodel.")}


def image_state() -> dict[str, Tensor]:
    return random_state([32, 32, 32, 64], 1, (3,), 4, CODES, 4, modulated=True)


def write(folder: Path) -> Path:
    """As Alpha-VLLM/Lumina-mGPT-2.0 in two shards, with movqgan_270M.ckpt where the project wants it."""
    (folder / "movqgan/270M").mkdir(parents=True)
    torch.save(image_state(), folder / "movqgan/270M/movqgan_270M.ckpt")
    state = {name: value.clone() for name, value in published(reference()).items()}
    places = {}
    for number, part in enumerate((sorted(state)[::2], sorted(state)[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    settings = {"model_type": "chameleon", "num_attention_heads": 4, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
    settings |= {"rope_scaling": None, "hidden_act": "silu", "swin_norm": False, "vocab_size": first() + CODES}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    words = {"bos_token": None, "eos_token": {"content": "<|endoftext|>"}, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    return folder


def id_of(name: str) -> int:
    found: int = tokenizer().token_to_id(name)
    return found


def start(rows: int, columns: int) -> list[int]:
    return [id_of("<racm3:break>"), *(id_of(f"<reserved{8800 + side // 4:05d}>") for side in (rows, columns))]


def prompt(caption: str, rows: int = ROWS, columns: int = ROWS) -> list[int]:
    size = f"{CELL * columns}x{CELL * rows}"  # width first
    text = f"Generate an image of {size} according to the following prompt:\n{caption}"
    words = tokenizer().encode(text, add_special_tokens=False).ids
    return [id_of("<|endoftext|>"), *words, id_of("<reserved08706>"), *start(rows, columns)]
