"""Small recipes of all stages on synthetic shapes, for losses and files that are recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import train

RUN: dict[str, Any] = {
    "batch_size": 4,
    "device": "cpu",
    "precision": "fp32",
    "tracker": "none",
    "log_every": 1,
    "report": False,
    "validation_images": 4,
}
SHAPES = {"kind": "shapes", "size": 16, "shift": 0}
TOWER = {"width": 16, "depth": 2, "heads": 2}
BPE: dict[str, Any] = {"stage": "text_tokenizer", "model": {"vocab_size": 300}, "data": SHAPES}
VQGAN: dict[str, Any] = {
    "stage": "image_tokenizer",
    "model": {
        "kind": "vqgan",
        "image_size": 16,
        "channels": 8,
        "channel_multipliers": [1, 1, 1],
        "blocks": 1,
        "attention_resolutions": [],
        "latent_channels": 8,
        "quantizer": {"kind": "vq", "codebook_size": 24, "code_channels": 4, "update": "ema"},
    },
    "data": SHAPES,
    "adversarial": {"start": 2, "channels": 8, "layers": 1},
    "optim": {"lr": 1e-3, "warmup": 2, "ema": 0.9},
}
CLIP: dict[str, Any] = {
    "stage": "clip",
    "model": {
        "image_size": 16,
        "patch_size": 8,
        "vision": TOWER,
        "text": TOWER,
        "text_vocab": 300,
        "text_length": 16,
        "embed_dim": 8,
    },
    "data": SHAPES,
    "text_tokenizer": "bpe/model",
    "optim": {"lr": 1e-3, "warmup": 2, "ema": 0.9},
    "augment": 0.5,
}
DALLE: dict[str, Any] = {
    "stage": "dalle",
    "model": {
        "transformer": TOWER | {"dropout": 0.1},
        "text_vocab": 300,
        "text_length": 16,
        "image_vocab": 24,
        "grid": [4, 4],
        "attention": ["row", "column"],
    },
    "data": SHAPES,
    "text_tokenizer": "bpe/model",
    "image_tokenizer": "vqgan/model",
    "optim": {"lr": 1e-3, "warmup": 2, "ema": 0.9},
    "prompts": ["a red circle"],
}
STEPS = "steps"  # the key of `run:` that says how many


def run(name: str, recipe: dict[str, Any], steps: int, *overrides: str, **options: Any) -> Path:
    """Train a recipe into the folder `name` of the working folder; returns it."""
    if recipe["stage"] == "text_tokenizer":
        recipe = recipe | {"dir": name}
    else:
        recipe = recipe | {"run": RUN | {"dir": name, STEPS: steps} | options}
    file = Path(f"{name}.yaml")
    file.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    assert train.main([str(file), *overrides]) == 0
    return Path(name)


def losses(folder: Path) -> dict[str, list[float]]:
    """Each loss of a run's log, step after step."""
    found: dict[str, list[float]] = {}
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        for name, value in json.loads(line).items():
            if name.startswith("train/") and ("loss" in name or name.endswith("gradient")):
                found.setdefault(name, []).append(value)
    return found
