"""Reads the tensors of published files of any format: safetensors, sharded safetensors, or pickles."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from dalle.checkpoints.published.pickles import read_pickled
from dalle.checkpoints.published.stored_state import stored_state, strip_wrappers
from dalle.checkpoints.tensors import stored_tensors
from dalle.files import lfs_pointer, sha256

_INDEX = ".index.json"
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
_READ = (".safetensors", *PICKLES)
_LONGEST = 255  # bytes of a file name
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)(\.\w+)")
_ORIGINAL = "give the original weights; --dtype int8 stores them in 8 bits while it loads them"
_PACKED = {  # names of what libraries put beside packed weights
    "bitsandbytes": r".+\.weight\.(absmax|quant_map|nested_absmax|quant_state\..+)|.+\.SCB",
    "AWQ or GPTQ": r".+\.(qweight|qzeros|g_idx)",
    "ExLlama": r".+\.q_weight",
    "HQQ": r".+\.W_q",
    "quanto": r".+\.weight\._(data|scale)",
    "compressed-tensors or with scales of FP8": r".+\.(weight_packed|weight_scale(_inv)?)",
    "MLX": r".+_proj\.(scales|biases)",
}
# Usual names of weight files on the hub, in order of preference.
_NAMES = (
    *("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin"),
    *("model.safetensors.index.json", "pytorch_model.bin.index.json"),
    *("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    *("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.bin.index.json"),
)


def weights_file(source: Path) -> Path:
    """The weight file: the source itself, or the one in a folder.

    Raises:
        ValueError: there is none, or there are several.
    """
    if not source.is_dir():  # a file
        reject_unreadable(source)
        part = _SHARD.fullmatch(source.name)
        if part is not None and int(part[3]) > 1:
            raise ValueError(f"{source} is shard {int(part[2])} of {int(part[3])}: give the folder of them all")
        return source
    for name in _NAMES:
        if (source / name).is_file():
            reject_unreadable(source / name)
            return source / name
    files = sorted(file for file in source.rglob("*") if file.suffix in _READ and file.is_file())
    if not files:
        for file in sorted(source.rglob("*.gguf")):
            reject_unreadable(file)
        if (source / "config.json").is_file():
            raise ValueError(f"{source} has a config.json and no weights ({', '.join(_READ)}): download these too")
        raise ValueError(
            f"{source} is neither a model folder (no config.yaml) nor contains published weights: give another folder"
        )
    if len(files) > 1:
        part = _SHARD.fullmatch(files[0].name)
        if part is not None:
            index = f"{part[1]}{part[4]}{_INDEX}"
            raise ValueError(f"it has shards without their index, {index}: download this too")
        names = ", ".join(str(file.relative_to(source)) for file in files[:3])
        more = ", ..." if len(files) > 3 else ""
        raise ValueError(f"it has {len(files)} weight files ({names}{more}): give one of them, or a folder of one")
    return files[0]


def reject_unreadable(file: Path) -> None:
    """Reject a file of llama.cpp, whose weights are rounded in blocks and have other names, and a pointer of Git LFS.

    Raises:
        ValueError: it is one.
    """
    if not file.is_file():
        return
    with file.open("rb") as handle:
        start = handle.read(4)
    if start == b"GGUF":  # its magic number
        raise ValueError(f"{file} is a GGUF file (llama.cpp), which is not supported: {_ORIGINAL}")
    pointer = lfs_pointer(file)
    if pointer is not None:
        raise ValueError(f"{file} is {pointer}")


def reject_packed(names: Iterable[str]) -> None:
    """Reject copies whose weights are packed in 4 or 8 bits by other libraries.

    Raises:
        ValueError: they are such a copy.
    """
    names = list(names)
    for kind, pattern in _PACKED.items():
        found = next(filter(re.compile(pattern).fullmatch, names), None)
        if found is not None:
            raise ValueError(f"it is a copy in 4 or 8 bits by {kind} (it has {found}): {_ORIGINAL}")


def read_json(file: Path) -> dict[str, Any]:
    """The settings in a JSON file.

    Raises:
        ValueError: there is no such file, or it is no JSON object.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: nested too deep
        raise ValueError(f"{file.parent} has no {file.name} that can be read: fetch it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no settings: fetch it again")
    return found


def index_of(folder: Path) -> Path | None:
    """The index of the shards in a folder; None if its weights are not sharded."""
    return next((folder / name for name in _NAMES if name.endswith(_INDEX) and (folder / name).is_file()), None)


def weights_hash(file: Path) -> str:
    """SHA-256 of a weight file, in hexadecimal; of an index that of the hashes of all its shards, in their order."""
    if not file.name.endswith(_INDEX):
        return sha256(file)
    return hashlib.sha256("".join(map(sha256, _shards(file))).encode()).hexdigest()


def _shards(index: Path) -> list[Path]:
    """The files that an index lists, all of which are there.

    Raises:
        ValueError: it is no index, leads out of its folder, or a shard is missing.
    """
    try:
        # Each once, in the order of their numbers
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if not shards or not all(isinstance(shard, str) for shard in shards):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of shards: download it again") from error
    for shard in shards:
        # The index is data of others: it must not lead out of the folder
        if Path(shard).name != shard or len(shard.encode(errors="replace")) > _LONGEST:
            raise ValueError(
                f"{index} lists the shard {shard[:_LONGEST]!r}, which is not a file name: download it again"
            )
        if not index.with_name(shard).is_file():
            raise ValueError(f"{index} lists the shard {shard}, which is not there: download it too")
        reject_unreadable(index.with_name(shard))
    return [index.with_name(shard) for shard in shards]


def read_state(source: Path) -> dict[str, Tensor]:
    """The memory-mapped tensors of a weight file or folder, by their published names without wrappers.

    Raises:
        ValueError: it is damaged, or holds no named tensors.
    """
    return strip_wrappers(read_stored_state(source))


def read_stored_state(source: Path) -> dict[str, Tensor]:
    """Like `read_state`, but by the exact names in the file."""
    file = weights_file(source)
    tensors: dict[str, Tensor] = {}
    for part in _shards(file) if file.name.endswith(_INDEX) else [file]:
        tensors |= stored_tensors(part) if part.suffix == ".safetensors" else stored_state(read_pickled(part))
    reject_packed(tensors)
    return tensors
