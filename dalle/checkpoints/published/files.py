"""Reads the tensors of published files of any format: safetensors, sharded safetensors, or pickles."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from dalle.checkpoints.published.pickles import read_pickled
from dalle.checkpoints.published.state import stored_state, strip_wrappers
from dalle.checkpoints.tensors import stored_tensors

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
# Usual names of weight files on the hub, in order of preference.
_NAMES = (
    *("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin"),
    *("model.safetensors.index.json", "pytorch_model.bin.index.json"),
)


def weights_file(source: Path) -> Path:
    """The weight file: the source itself, or the one in a folder.

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
        raise ValueError(
            "it is neither a model folder (no config.yaml) nor contains published weights: give another folder"
        )
    if len(files) > 1:
        names = ", ".join(str(file.relative_to(source)) for file in files[:3])
        more = ", ..." if len(files) > 3 else ""
        raise ValueError(f"it has {len(files)} weight files ({names}{more}): give one of them, or a folder of one")
    return files[0]


def read_state(source: Path) -> dict[str, Tensor]:
    """The memory-mapped tensors of a weight file or folder, by their published names without wrappers.

    Raises:
        ValueError: it is damaged, or holds no named tensors.
    """
    return strip_wrappers(read_stored_state(source))


def read_stored_state(source: Path) -> dict[str, Tensor]:
    """Like `read_state`, but by the exact names in the file."""
    file = weights_file(source)
    if file.name.endswith(".index.json"):
        try:
            shards = sorted(set(json.loads(file.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is not an index of shards: download it again") from error
        tensors: dict[str, Tensor] = {}
        for shard in shards:
            # The index is data of others: it must not lead out of the folder.
            if Path(shard).name != shard:
                raise ValueError(f"{file} lists the shard {shard!r}, which is not a file name: download it again")
            tensors |= read_stored_state(file.with_name(shard))
        return tensors
    return stored_tensors(file) if file.suffix == ".safetensors" else stored_state(read_pickled(file))
