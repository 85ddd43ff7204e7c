"""A small Emu3 of transformers with random weights, its files in both published layouts; needs transformers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from support.published.emu3 import CODES, EXTRA, VISION, project_names, ranks, special, write_words
from support.published.language_models import byte_level, randomize

ROWS, WIDTH = 4, 64


@cache
def reference() -> Any:
    """The model of transformers."""
    import transformers

    text = {
        "vocab_size": len(ranks()) + len(EXTRA) + len(VISION), "hidden_size": WIDTH, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "pad_token_id": special("<|endoftext|>"), "bos_token_id": special("<|extra_203|>"),
        "eos_token_id": special("<|extra_204|>"),
    }  # fmt: skip
    images = {
        "codebook_size": CODES, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1,
        "attn_resolutions": [1], "hidden_size": 32,
    }  # fmt: skip
    names = {name: special(name) for name in [*EXTRA, *VISION]} | {"<image>": special("<|extra_0|>")}
    config = transformers.Emu3Config(text_config=text, vq_config=images, vocabulary_map=names)
    return randomize(transformers.Emu3ForConditionalGeneration(config), scale=3.0)


def write_project(folder: Path) -> Path:
    """As BAAI/Emu3-Gen, with the repository of its image tokenizer in a folder `vision`."""
    (folder / "vision").mkdir(parents=True)
    text, images = {}, {}
    for name, value in reference().state_dict().items():
        if name.startswith("model.vqmodel."):
            images[name.removeprefix("model.vqmodel.")] = value
        else:
            text[name.replace("model.text_model.", "model.")] = value.clone()
    save_file(project_names(images), folder / "vision/model.safetensors")
    (folder / "vision/config.json").write_text(json.dumps({"model_type": "Emu3VisionVQ"}))
    half = len(text) // 2
    names = [list(text)[:half], list(text)[half:]]
    for number, part in enumerate(names, 1):
        save_file({name: text[name] for name in part}, folder / f"model-{number:05d}-of-00002.safetensors")
    places = {name: f"model-{number:05d}-of-00002.safetensors" for number, part in enumerate(names, 1) for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    settings = {
        "model_type": "Emu3", "architectures": ["Emu3ForCausalLM"], "image_area": 518400, "num_attention_heads": 4,
        "num_key_value_heads": 2, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 1000000.0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings))
    return write_words(folder, CODES)


def write_transformers(folder: Path) -> Path:
    """As BAAI/Emu3-Gen-hf: one file with both parts, and a tokenizer.json with GPT-2's cut."""
    from tokenizers import AddedToken

    reference().save_pretrained(folder)
    one = byte_level([], 330)
    names = ["<image>" if name == "<|extra_0|>" else name for name in [*EXTRA, *VISION]]
    one.add_special_tokens([AddedToken(name, special=True) for name in names])
    (folder / "tokenizer.json").write_text(one.to_str())
    return folder
