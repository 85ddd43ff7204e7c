"""A folder of weights: config.yaml, model.safetensors, README.md, and copies of the parts it stands on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dalle.config import read_yaml

WEIGHTS = ("model.safetensors", "bpe.model")


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield temporary
        if target.exists():
            old = temporary.with_suffix(".old")
            os.replace(target, old)
            os.replace(temporary, target)
            shutil.rmtree(old)
        else:
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def save(folder, config, tensors, *, parts={}, card=None, dtype=None):
    config = dict(config)
    with atomic_folder(folder) as temporary:
        tensors = {k: (v.to(dtype) if dtype is not None and v.is_floating_point() else v).detach().cpu().contiguous() for k, v in tensors.items()}
        save_file(tensors, temporary / "model.safetensors")
        if parts:
            config["parts"] = {}
            for name, source in parts.items():
                shutil.copytree(source, temporary / name)
                config["parts"][name] = {"path": name, "sha256": folder_hash(temporary / name)}
        write_config(temporary, config)
        if card:
            (temporary / "README.md").write_text(card, encoding="utf-8")


def resolve(source) -> Path:
    folder = Path(source)
    if folder.is_dir():
        return folder
    raise ValueError(f"{source}: no such folder")


def read_config(folder) -> dict[str, Any]:
    return read_yaml(Path(folder) / "config.yaml")


def part(folder, name) -> Path:
    entry = read_config(folder)["parts"][name]
    found = folder_hash(Path(folder) / entry["path"])
    if found != entry["sha256"]:
        raise ValueError(f"{folder}: part {name} has sha256 {found}, expected {entry['sha256']}")
    return Path(folder) / entry["path"]


def folder_hash(folder) -> str:
    digest = hashlib.sha256()
    for name in WEIGHTS:
        if (Path(folder) / name).exists():
            digest.update((Path(folder) / name).read_bytes())
    config = read_config(folder)
    digest.update(json.dumps({k: config.get(k) for k in ("stage", "model", "parts")}, sort_keys=True).encode())
    return digest.hexdigest()


def read_tensors(file) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: {error}") from error


def load_into(module: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    module.load_state_dict(tensors)
