"""A model folder: config.yaml, model.safetensors or bpe.model, README.md, and copies of its components.

Its config.yaml has the `stage:` (what it is), the architecture (`model:`), perhaps the components with their hashes
(`parts:`), and the hash of all that it computes (`sha256:`). A recipe may stand there too, as in tokenizers/NAME: then
it has `data:`, and other keys, which loading does not need.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from dalle.checkpoints.folder_config import HASHED, WEIGHTS, check_config, read_config
from dalle.checkpoints.lazy_tensor import LazyTensor, NotFiniteError, Tensors
from dalle.checkpoints.quantization import Storage
from dalle.checkpoints.target import CARD_SUFFIXES, check_target, without_model
from dalle.checkpoints.tensors import open_tensors, write_tensors
from dalle.config import to_yaml
from dalle.files import atomic_folder


def save(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Tensors,
    *,
    parts: Mapping[str, Path] | None = None,
    storage: Storage | None = None,
    card: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a model folder atomically.

    Args:
        folder: the folder to write; a model of the same stage that is there is replaced, its README.md kept.
        config: content of config.yaml, with `stage` and `model`; `parts` is added.
        tensors: the module's state.
        parts: folders of components, which are copied into it by name and recorded with their hashes.
        storage: dtype in which floating-point tensors are stored; None keeps theirs.
        card: text of its README.md, in place of one that is there.
        progress: called after each tensor with the bytes that are written and those of all tensors.

    Raises:
        NotFiniteError: a weight is nan or infinite; an existing `folder` is unchanged.
        ValueError: as `check_target`.
    """
    check_target(folder, config["stage"])
    with atomic_folder(folder) as new:
        _write(tensors, folder, new, storage, progress)
        recorded: dict[str, Any] = {}
        for name, source in (parts or {}).items():
            # Cards of components are not copied: their images and relative links would break.
            shutil.copytree(source, new / name, ignore=shutil.ignore_patterns("README.md", "*.png"))
            recorded[name] = {"path": name, "sha256": folder_hash(new / name)}
        write_config(new, dict(config) | ({"parts": recorded} if recorded else {}))
        write_card(new, card, folder)


def _write(
    tensors: Tensors,
    folder: Path,
    new: Path,
    storage: Storage | None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the weights to `new`, which will become `folder`."""
    try:
        write_tensors(tensors, new / WEIGHTS, storage, finite=True, progress=progress)
    except NotFiniteError as error:
        raise NotFiniteError(f"{folder} is not written: {error}") from None


def write_card(folder: Path, card: str | None, replaced: Path) -> None:
    """Write the README.md of a model folder: the text `card`, or if that is None the one of the folder it replaces."""
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    elif (replaced / "README.md").is_file():
        shutil.copy(replaced / "README.md", folder / "README.md")


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write a folder's config.yaml, with the hash of the weights that are in it already."""
    plain = {key: value for key, value in config.items() if key != "sha256"}
    file = folder / "config.yaml"
    # Twice: the hash covers parts of config.yaml, which must be there first
    file.write_text(to_yaml(plain), encoding="utf-8")
    if any((folder / name).is_file() for name in HASHED):
        file.write_text(to_yaml(plain | {"sha256": folder_hash(folder)}), encoding="utf-8")


class ModelFolder:
    """An open model folder, which reads its config.yaml and hashes its weights at most once.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path):
        self.path = path

    def __str__(self) -> str:
        # A source may be a folder that is open already, and messages name it
        return str(self.path)

    @property
    def origin(self) -> str:
        """The path of its config.yaml, for error messages."""
        return str(self.path / "config.yaml")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of its config.yaml.

        Raises:
            ValueError: it does not exist, is not valid YAML, or as `check_config`.
        """
        found = read_config(self.path)
        check_config(found, self.origin)
        return found

    def check(self) -> None:
        """Verify the hash in its config.yaml; folders of version 0.1 have none.

        Raises:
            ValueError: the weights or the architecture have changed since they were written.
        """
        recorded = self.config.get("sha256")
        if recorded is not None and recorded != self.sha256:
            raise ValueError(
                f"{self.path} is damaged or was changed: its sha256 is {self.sha256}, {self.origin} says {recorded}; "
                "restore the original (if the change is yours, remove the line sha256)"
            )

    def check_none_given(self, given: Mapping[str, Any]) -> None:
        """Refuse facts that are given: they are for published files, and here could only contradict what is stored.

        Raises:
            ValueError: there is one.
        """
        if given:
            raise ValueError(f"{next(iter(given))} is not to be given: the config.yaml of {self} tells it")

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that determines its outputs: weights, and `stage`, `model` and `parts` of config.yaml.

        Cards and recipes may change without changing it.
        """
        digest = hashlib.sha256()
        for name in HASHED:
            file = self.path / name
            if file.is_file():
                # With name and size, so that no bytes can move from one file to the next unnoticed
                digest.update(f"{name}\0{file.stat().st_size}\0".encode())
                with file.open("rb") as handle:
                    while block := handle.read(1 << 20):
                        digest.update(block)
        # `parts` contains the hashes of the components, so that this hash covers them too.
        # How it is sampled and where it is from do not change what it computes
        kept = {key: self.config.get(key) for key in ("stage", "model", "parts")}
        digest.update(json.dumps(kept, sort_keys=True, ensure_ascii=False).encode())
        return digest.hexdigest()

    @property
    def components(self) -> list[str]:
        """Names of its components: tokenizers, CLIP."""
        return list(self.config.get("parts") or {})

    def component(self, name: str) -> ModelFolder:
        """Open the folder of a component and verify its hash against config.yaml.

        Raises:
            ValueError: there is no such component, or it is not the one these weights were trained with.
        """
        found, recorded = self.unchecked_component(name), self.config["parts"][name]
        if found.sha256 != recorded["sha256"]:
            if not any((found.path / file).is_file() for file in HASHED):
                raise ValueError(f"{found.path} has lost its weights: copy {self.path} whole, with its {name}")
            raise ValueError(
                f"{found.path} is not the {name} that {self.path} was trained with: its sha256 is {found.sha256}, "
                f"expected {recorded['sha256']}; restore the original"
            )
        return found

    def unchecked_component(self, name: str) -> ModelFolder:
        """Open the folder of a component without reading its weights, which take long to hash.

        Raises:
            ValueError: there is no such component.
        """
        parts = self.config.get("parts") or {}
        if name not in parts:
            raise ValueError(f"{self.path} has no component {name}: its config.yaml lists {', '.join(parts) or 'none'}")
        recorded = parts[name]
        if not isinstance(recorded, dict) or not all(isinstance(recorded.get(k), str) for k in ("path", "sha256")):
            raise ValueError(f"{self.origin}: parts.{name} needs a path and a sha256: export the folder again")
        found = ModelFolder(self.path / recorded["path"])
        if not (found.path / "config.yaml").is_file():
            raise ValueError(f"{found.path} is missing, or its config.yaml: copy {self.path} whole, with its {name}")
        return found

    def tensors(self) -> dict[str, Tensor | LazyTensor]:
        """Its weights by name, memory-mapped, so that they are read on first use."""
        return open_tensors(self.path / WEIGHTS)


def folder_hash(folder: Path) -> str:
    """The `ModelFolder.sha256` of a folder."""
    return ModelFolder(Path(folder)).sha256


def export(source: Path, target: Path, storage: Storage, tensors: Tensors | None = None) -> bool:
    """Copy a model folder, converting the dtype of its weights; components are copied unchanged.

    A model of the same stage in `target` is replaced, with its components. Cards (README.md), images and what else is
    there are kept. So is its config.yaml if that is a recipe (it has `data:`), as in tokenizers/NAME, where one file
    serves both training and loading.

    Args:
        source: the folder to copy.
        target: the folder to write, atomically.
        storage: dtype in which floating-point tensors are stored.
        tensors: replace the weights of `source`, such as those of a checkpoint.

    Returns:
        Whether a model in `target` was replaced.

    Raises:
        NotFiniteError: a weight is nan or infinite; `target` is unchanged.
        ValueError: `source` is damaged; the recipe in `target`, or `tensors`, have another architecture; `target` is,
            holds or lies in `source`; or as `check_target`.
    """
    own, place = Path(source).resolve(), Path(target).resolve()
    if place == own or place in own.parents or own in place.parents:
        raise ValueError(f"{target} is, holds or lies in {source}, which is copied: give another folder")
    # Opened in any case: it says more of a file that is cut short than a hash does
    stored = open_tensors(source / WEIGHTS) if tensors is not None or (source / WEIGHTS).is_file() else {}
    if tensors is not None and {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in stored.items()}:
        raise ValueError(f"the checkpoint holds other tensors than {source}: export the folder of its own run")
    config, recipe = read_config(source), None
    replaced = check_target(target, config.get("stage", ""), CARD_SUFFIXES)
    if (target / "config.yaml").is_file():
        there = read_config(target)
        recipe = there if "data" in there else None
    if recipe is not None and not _agrees({key: recipe.get(key) for key in ("stage", "model")}, config):
        raise ValueError(f"{target / 'config.yaml'} has another architecture than {source}: export to another folder")
    if tensors is None:
        ModelFolder(source).check()  # the copy gets a new hash, by which damage would pass for whole
    with atomic_folder(target) as new:
        if target.exists():
            left = without_model(target, list(config.get("parts") or {}), recipe is not None)
            shutil.copytree(target, new, dirs_exist_ok=True, ignore=left)
        for entry in Path(source).iterdir():
            if entry.is_dir():
                shutil.copytree(entry, new / entry.name, dirs_exist_ok=True)
            elif entry.name == WEIGHTS:
                _write(open_tensors(entry) if tensors is None else tensors, target, new, storage)
            elif entry.name != "config.yaml":
                shutil.copy(entry, new / entry.name)
        if recipe is None:  # last, with the hash of the new weights
            write_config(new, config)
    return replaced


def _agrees(some: Any, whole: Any) -> bool:
    """Whether every value in `some` is the same in `whole`, which may have more keys (the defaults)."""
    if isinstance(some, dict) and isinstance(whole, dict):
        return all(key in whole and _agrees(value, whole[key]) for key, value in some.items())
    return bool(some == whole)
