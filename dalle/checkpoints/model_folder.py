"""A folder of weights: config.yaml, model.safetensors or bpe.model, README.md, and copies of the parts it stands on.

A folder's config.yaml says what it is (`stage:`), the architecture that rebuilds the module (`model:`), and perhaps
`parts:`. Other keys are the recipe that made it; nothing here needs them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from dalle.checkpoints.tensors import LazyTensor, NotFiniteError, Storage, Tensors, open_tensors, write_tensors
from dalle.config import read_yaml, to_yaml
from dalle.files import atomic_folder

WEIGHTS = "model.safetensors"
HASHED = (WEIGHTS, "bpe.model", "vocab.json", "merges.txt", "spiece.model")


def save(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Tensors,
    *,
    parts: Mapping[str, Path] | None = None,
    storage: Storage | None = None,
    card: str | None = None,
) -> None:
    """Write a folder of weights, whole or not at all.

    Args:
        folder: where to; one that is there is replaced.
        config: `stage` and `model` at least; `parts` is added.
        tensors: the module's state.
        parts: folders that are copied into it, each under its name, and recorded with their hashes.
        storage: how floating tensors are stored; None as they are.
        card: text of its README.md.

    Raises:
        NotFiniteError: a weight is nan or infinite; what was in `folder` stays.
    """
    with atomic_folder(folder) as new:
        _write(tensors, folder, new, storage)
        recorded: dict[str, Any] = {}
        for name, source in (parts or {}).items():
            # A card stays with what it is about: its images and links are not for another place.
            shutil.copytree(source, new / name, ignore=shutil.ignore_patterns("README.md", "*.png"))
            recorded[name] = {"path": name, "sha256": folder_hash(new / name)}
        write_config(new, dict(config) | ({"parts": recorded} if recorded else {}))
        if card is not None:
            (new / "README.md").write_text(card, encoding="utf-8")


def _write(tensors: Tensors, folder: Path, new: Path, storage: Storage | None) -> None:
    """Write the weights of what is to become `folder`."""
    try:
        write_tensors(tensors, new / WEIGHTS, storage, finite=True)
    except NotFiniteError as error:
        raise NotFiniteError(f"{folder} is not written: {error}") from None


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write a folder's config.yaml."""
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.yaml.

    Raises:
        ValueError: there is none, or it is not YAML.
    """
    if Path(folder).is_file():
        raise ValueError(f"{folder} is a file; expected a folder with a config.yaml")
    if not (Path(folder) / "config.yaml").is_file():
        raise ValueError(
            f"{folder} has no config.yaml: it is not a folder of weights as train.py makes them; of published files "
            "`python -m dalle convert` makes one"
        )
    return read_yaml(Path(folder) / "config.yaml")


class ModelFolder:
    """A folder of weights that is opened once: its config.yaml is read, and its weights are hashed, at most once.

    Attributes:
        path: where it is.
    """

    def __init__(self, path: Path):
        self.path = path

    @property
    def origin(self) -> str:
        """What errors call its config.yaml."""
        return str(self.path / "config.yaml")

    @cached_property
    def config(self) -> dict[str, Any]:
        """What its config.yaml says.

        Raises:
            ValueError: there is none, or it is not YAML.
        """
        return read_config(self.path)

    @cached_property
    def sha256(self) -> str:
        """Hash of what it computes: its weights and, of config.yaml, `stage`, `model` and `parts`.

        Cards and recipes may change without changing it.
        """
        digest = hashlib.sha256()
        for name in HASHED:
            file = self.path / name
            if file.is_file():
                digest.update(f"{name}\0{file.stat().st_size}\0".encode())
                with file.open("rb") as handle:
                    while block := handle.read(1 << 20):
                        digest.update(block)
        kept = {key: self.config.get(key) for key in ("stage", "model", "parts")}
        digest.update(json.dumps(kept, sort_keys=True, ensure_ascii=False).encode())
        return digest.hexdigest()

    @property
    def components(self) -> list[str]:
        """Names of the tokenizers and of the CLIP that lie in it."""
        return list(self.config.get("parts") or {})

    def component(self, name: str) -> ModelFolder:
        """The folder of a component, its contents checked against the hash in config.yaml.

        Raises:
            ValueError: there is no such component, or it is not the one that these weights were trained with.
        """
        parts = self.config.get("parts") or {}
        if name not in parts:
            raise ValueError(f"{self.path} has no part {name}: its config.yaml names {', '.join(parts) or 'none'}")
        recorded = parts[name]
        if not isinstance(recorded, dict) or not {"path", "sha256"} <= set(recorded):
            raise ValueError(f"{self.origin}: parts.{name} needs a path and a sha256, as export writes them")
        found = ModelFolder(self.path / recorded["path"])
        if found.sha256 != recorded["sha256"]:
            raise ValueError(
                f"{found.path} is not the {name} that {self.path} was made with: its sha256 is {found.sha256}, "
                f"expected {recorded['sha256']}"
            )
        return found

    def tensors(self) -> dict[str, Tensor | LazyTensor]:
        """Its weights by name, which are read when they are called for."""
        return open_tensors(self.path / WEIGHTS)


def folder_hash(folder: Path) -> str:
    """`ModelFolder.sha256` of a folder."""
    return ModelFolder(Path(folder)).sha256


def export(source: Path, target: Path, storage: Storage, tensors: Tensors | None = None) -> None:
    """Copy a folder of weights to `target` with its weights stored as `storage`; parts are copied as they are.

    `tensors` take the place of its weights, where they are given.

    Cards (README.md) and images that are in `target` stay. So does its config.yaml where that is a recipe (it has
    `data:`), as in tokenizers/NAME: the recipe's file serves the loader too.

    Raises:
        NotFiniteError: a weight is nan or infinite; what was in `target` stays.
        ValueError: the recipe in `target`, or `tensors`, are of another architecture.
    """
    stored = open_tensors(source / WEIGHTS) if tensors is not None else {}
    if tensors is not None and {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in stored.items()}:
        raise ValueError(f"the checkpoint holds other tensors than {source}: export the folder of the run")
    config, recipe = read_config(source), None
    if (target / "config.yaml").is_file():
        recipe = read_config(target) if "data" in read_config(target) else None
    if recipe is not None and not _within({key: recipe.get(key) for key in ("stage", "model")}, config):
        raise ValueError(f"{target / 'config.yaml'} is of another architecture than {source}: export to another folder")
    with atomic_folder(target) as new:
        if target.exists():
            shutil.copytree(target, new, dirs_exist_ok=True)
        for entry in Path(source).iterdir():
            if entry.is_dir():
                shutil.copytree(entry, new / entry.name, dirs_exist_ok=True)
            elif entry.name == WEIGHTS:
                _write(open_tensors(entry) if tensors is None else tensors, target, new, storage)
            elif entry.name != "config.yaml" or recipe is None:
                shutil.copy(entry, new / entry.name)


def _within(some: Any, whole: Any) -> bool:
    """Whether all that `some` says is so in `whole`, which may say more (the defaults)."""
    if isinstance(some, dict) and isinstance(whole, dict):
        return all(key in whole and _within(value, whole[key]) for key, value in some.items())
    return bool(some == whole)
