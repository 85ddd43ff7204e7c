"""A small Emu3.5 with random weights: a Qwen3 of transformers, in the layout of its repositories."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from support.published.autoencoders import random_state
from support.published.emu3 import CODES, EXTRA, VISION, ids_of, image_start, ranks, special, write_words
from support.published.language_models import randomize

ROWS, WIDTH, HEAD = 4, 64, 32


@cache
def reference() -> Any:
    """The model of transformers: a Qwen3."""
    import transformers

    config = transformers.Qwen3Config(
        vocab_size=len(ranks()) + len(EXTRA) + len(VISION), hidden_size=WIDTH, intermediate_size=96,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=HEAD, rms_norm_eps=1e-5,
        tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1e6}, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    return randomize(transformers.Qwen3ForCausalLM(config), scale=3.0)


def image_state() -> dict[str, Tensor]:
    return random_state([32, 64], 1, (1,), 8, CODES, 8)


def write(folder: Path) -> Path:
    """As BAAI/Emu3.5-Image in two shards, with BAAI/Emu3.5-VisionTokenizer in a folder of it."""
    vq = folder / "vision_tokenizer"
    vq.mkdir(parents=True)
    torch.save(image_state(), vq / "model.ckpt")
    (vq / "config.yaml").write_text(yaml.safe_dump({"n_embed": CODES, "embed_dim": 8, "ddconfig": {"ch": 32}}))
    state = {name: value.clone() for name, value in reference().state_dict().items()}
    names = sorted(state)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    settings = {
        "model_type": "Emu3", "architectures": ["Emu3ForCausalLM"], "num_attention_heads": 4, "head_dim": HEAD,
        "num_key_value_heads": 2, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 1000000.0,
        "attention_dropout": 0.1,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings))
    return write_words(folder, CODES)


def prompt(caption: str, rows: int = ROWS, columns: int = ROWS, task: str = " for t2i task") -> list[int]:
    text = f"You are a helpful assistant{task}. USER: {caption} ASSISTANT: "
    return [special("<|extra_203|>"), *ids_of(text), special("<|extra_100|>"), *image_start(rows, columns)]


def null(rows: int = ROWS, columns: int = ROWS) -> list[int]:
    return prompt("", rows, columns, "")
