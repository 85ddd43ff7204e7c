"""Published CLIPs with random weights, as folders of transformers, and the embeddings that their own code gives."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from support.published import REFERENCES
from support.published.references.clips import LENGTH, VOCAB
from support.published.references.weights import weight

FILE = REFERENCES / "clips.safetensors"
with safe_open(FILE, framework="pt") as _reference:
    SHAPES: dict[str, dict[str, list[int]]] = json.loads(_reference.metadata()["shapes"])
    EXPECTED = {name: _reference.get_tensor(name) for name in _reference.keys()}  # noqa: SIM118, not a dict


def state(name: str) -> dict[str, Tensor]:
    return {key: weight(key, shape) for key, shape in SHAPES[name].items()}


def hub_folder(folder: Path, name: str, words: int = VOCAB) -> Path:
    """A folder as save_pretrained of transformers writes it, in two shards; `words` ids are known, at least `VOCAB`."""
    names = sorted(SHAPES[name])
    whole = state(name) | {"text_model.embeddings.position_ids": torch.arange(LENGTH)[None]}
    table = whole["text_model.embeddings.token_embedding.weight"]
    whole["text_model.embeddings.token_embedding.weight"] = torch.cat(
        (table, table.new_zeros(words - VOCAB, *table.shape[1:]))
    )
    shards = {"model-00001-of-00002.safetensors": names[:20], "model-00002-of-00002.safetensors": [*names[20:]]}
    for shard, own in shards.items():
        save_file({key: whole[key] for key in own}, folder / shard)
    index = {"weight_map": {key: shard for shard, own in shards.items() for key in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    act = "gelu" if name.endswith("gelu") else "quick_gelu"
    config = {"vision_config": {"num_attention_heads": 2, "hidden_act": act}}
    config["text_config"] = {"num_attention_heads": 4, "hidden_act": act}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    return folder
