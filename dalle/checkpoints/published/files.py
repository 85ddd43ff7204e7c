"""Tensors of published files, whatever they are written in: safetensors (also in shards), or a pickle."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from dalle.checkpoints.published.pickles import read_pickled
from dalle.checkpoints.published.state import as_saved, unwrapped
from dalle.checkpoints.tensors import stored_tensors

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
# What folders of the hub call their weights, the better form first.
_NAMES = (
    *("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin"),
    *("model.safetensors.index.json", "pytorch_model.bin.index.json"),
)


def weights_file(source: Path) -> Path:
    """The file with the weights: the source itself, or the one in a folder.

    Raises:
        ValueError: there is none, or there are several.
    """
    if not source.is_dir():
        return source
    for name in _NAMES:
        if (source / name).is_file():
            return source / name
    files = sorted(file for file in source.rglob("*") if file.suffix in (".safetensors", *PICKLES) and file.is_file())
    if not files:
        raise ValueError("it has no config.yaml, as folders of train.py have, and no file of published weights")
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:3])
        raise ValueError(f"it has {len(files)} files of weights ({names}): give the one that is meant")
    return files[0]


def read_state(source: Path) -> dict[str, Tensor]:
    """The tensors of a file or folder of weights under their published names without wrappers, mapped from the file.

    Raises:
        ValueError: it is damaged, or holds no named tensors.
    """
    return unwrapped(read_as_saved(source))


def read_as_saved(source: Path) -> dict[str, Tensor]:
    """`read_state` by the names that are in the file."""
    file = weights_file(source)
    if file.name.endswith(".index.json"):
        try:
            shards = sorted(set(json.loads(file.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is no index of shards: fetch it again") from error
        tensors: dict[str, Tensor] = {}
        for shard in shards:
            if Path(shard).name != shard:
                raise ValueError(f"{file} names the shard {shard!r}, which is no file beside it")
            tensors |= read_as_saved(file.with_name(shard))
        return tensors
    return stored_tensors(file) if file.suffix == ".safetensors" else as_saved(read_pickled(file))
