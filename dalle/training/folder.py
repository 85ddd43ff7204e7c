"""The folder of a run: one process at a time writes it, what a killed one left is cleared, and its origin is told."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from dalle import artifact
from dalle.config import dump, to_dict
from dalle.data import EncodedConfig, location
from dalle.hub import resolve
from dalle.outputs import write_text
from dalle.training import checkpoint
from dalle.training.recipe import LoopRecipe

LOCK = ".lock"
_PACKAGES = ("dalle", "torch", "accelerate", "datasets", "sentencepiece", "safetensors", "numpy", "pillow")
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # of file systems without them


def open_folder(recipe: LoopRecipe) -> Claim:
    """Make the folder of a run, or take up one that is there; then nobody else may until the claim is closed.

    Raises:
        ValueError: there is nothing to resume; it holds a run already, and `resume` was not asked for; another process
            is training in it.
    """
    run = recipe.run.dir
    if recipe.resume != bool(checkpoint.folders(run)):
        raise ValueError(
            f"{run}: no checkpoint to resume from; start without resume=true"
            if recipe.resume
            else f"{run} holds a run already: go on with resume=true, or choose another run.dir=FOLDER"
        )
    run.mkdir(parents=True, exist_ok=True)
    claim = Claim(run)
    for parent in (run, run / "checkpoints"):
        artifact.remove_scratch(parent)
    return claim


def describe(recipe: LoopRecipe) -> None:
    """Write in the folder of a run what is needed to make the run again."""
    run = recipe.run.dir
    write_text(run / "config.yaml", dump(recipe))
    write_text(run / "origin.yaml", yaml.safe_dump(_origin(recipe), sort_keys=False))


class Claim:
    """The right to write the folder of a run: it ends with the process, however that ends.

    A run that was killed may have left a process behind that still trains (torchrun's do when only torchrun is killed);
    resuming beside it would mix up two logs and remove each other's checkpoints.
    """

    def __init__(self, run: Path):
        file = run / LOCK
        self._handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            # A record lock: processes that are forked, as the loader's are, do not hold it on
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return
            holder = os.read(self._handle, 200).decode(errors="replace").strip() or "another process"
            self.close()
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise ValueError(
                f"{holder} is training in {run}: wait for it or end it, or choose another run.dir=FOLDER"
            ) from error
        os.truncate(self._handle, 0)
        os.write(self._handle, f"process {os.getpid()} on {platform.node()}\n".encode())

    def close(self) -> None:
        os.close(self._handle)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _origin(recipe: LoopRecipe) -> dict[str, Any]:
    """Versions, and hashes of data and tokenizers."""
    versions = {"python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in _PACKAGES if installed(name)}
    sources = {key: value for key, value in to_dict(recipe).items() if key.endswith("tokenizer") or key == "clip"}
    return {
        "seed": recipe.run.seed,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "precision": recipe.run.precision,
        "versions": versions,
        "data_sha256": _data_hash(recipe.data),
        "parts_sha256": {k: artifact.folder_hash(resolve(v)) for k, v in sources.items() if v},
    }


def _data_hash(data: EncodedConfig) -> str:
    """Hash of the data's options, and of names and sizes of its files where they are on this machine."""
    digest = hashlib.sha256(json.dumps(to_dict(data), sort_keys=True, ensure_ascii=False).encode())
    root = location(data)
    if root is not None:
        for file in [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(root)}\0{file.stat().st_size}\n".encode())
    return digest.hexdigest()
