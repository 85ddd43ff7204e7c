"""Tensors of a sharded run in files of torch.distributed.checkpoint: each process writes and reads its own shares.

The files are safetensors, one a process, whose headers say where in the whole tensor each share begins (the format of
torch's HuggingFaceStorageWriter). Nothing in them is run, and any number of processes can read them, one alone too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, distributed
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from dalle.checkpoints.tensors import LazyTensor, drop_pages, stored_tensors, write_tensors
from dalle.training.distributed.fsdp import is_sharded, local

_SHARDING = "DCP_SHARDING_INFO"  # torch's key of the headers: for each tensor where its share begins


def write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write shares, and what is whole once; all processes call it with the same names and the same folder.

    A share at a time is in the host's memory. (torch's writer makes the whole file there, twice.)

    Raises:
        OSError: in all processes, where one of them could not write.
    """
    folder.mkdir(exist_ok=True)
    rank, world = distributed.get_rank(), distributed.get_world_size()
    own: dict[str, Tensor] = {}
    offsets: dict[str, dict[str, list[int]]] = {}
    for name, tensor in tensors.items():
        shard = local(tensor.detach())
        if shard.numel() if is_sharded([tensor]) else rank == 0:
            own[name] = shard
            first = rank * -(-tensor.shape[0] // world) if is_sharded([tensor]) else 0
            offsets[name] = {"saved_offsets": [first, *[0] * (tensor.ndim - 1)][: tensor.ndim]}
    errors: list[tuple[int, str] | None] = [None] * world
    try:
        file = folder / f"shard-{rank + 1:05d}-of-{world:05d}.safetensors"
        write_tensors(own, file, metadata={_SHARDING: json.dumps(offsets)})
        error = None
    except OSError as failed:
        error = failed.errno or 0, failed.strerror or str(failed)
    distributed.all_gather_object(errors, error)
    for process, problem in enumerate(errors):
        if problem is not None:
            raise OSError(problem[0], f"process {process}: {problem[1]}")


def read_into(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, whole or shared among all processes, in place; each process reads what it needs.

    Raises:
        ValueError: the files hold other tensors, or are damaged.
        OSError: they cannot be read.
    """
    stored_shards = open_shards(folder)
    for name, tensor in tensors.items():
        if name not in stored_shards or stored_shards[name].shape != tensor.shape:
            there = "not there" if name not in stored_shards else list(stored_shards[name].shape)
            raise ValueError(f"{name} is {there}, expected {list(tensor.shape)}")
        if not tensor.ndim:  # torch's reader takes slices, and a scalar has none
            tensor.detach().copy_(stored_shards[name]())
    wanted = {name: tensor.detach() for name, tensor in tensors.items() if tensor.ndim}
    alone = not distributed.is_initialized()
    try:
        load(wanted, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)
    except CheckpointException as error:
        raise _as_os_error(error) from error


def files(folder: Path, rank: int | None = None) -> list[Path]:
    """The files of a folder that `write` made, all or one process's own; none of one that is not there."""
    return sorted(folder.glob("*.safetensors" if rank is None else f"shard-{rank + 1:05d}-*.safetensors"))


def open_shards(folder: Path) -> dict[str, LazyTensor]:
    """The whole tensors of the files in a folder, each put together from its shares when it is called for.

    Raises:
        ValueError: no such files, or a share is missing or damaged.
    """
    if not files(folder):
        raise ValueError(f"{folder} has no shards")
    shards: dict[str, list[tuple[list[int], Tensor]]] = {}
    for file in files(folder):
        stored = stored_tensors(file)
        try:
            with safe_open(file, framework="pt") as handle:
                offsets = json.loads((handle.metadata() or {})[_SHARDING])
                for name, shard in stored.items():
                    shards.setdefault(name, []).append((offsets[name]["saved_offsets"], shard))
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{file} is damaged, or no shard ({error})") from error
    return {name: _assemble(name, own, folder) for name, own in shards.items()}


def _assemble(name: str, shards: list[tuple[list[int], Tensor]], folder: Path) -> LazyTensor:
    """A whole tensor of shares that begin at these places."""
    first = shards[0][1]
    ends = [[b + size for b, size in zip(offset, shard.shape, strict=True)] for offset, shard in shards]
    shape = torch.Size([max(sizes) for sizes in zip(*ends, strict=True)])
    if sum(shard.numel() for _, shard in shards) != shape.numel():
        raise ValueError(f"{folder}: a share of {name} is missing")

    def make() -> Tensor:
        full = torch.empty(shape, dtype=first.dtype)
        for offset, shard in shards:
            place = tuple(slice(b, b + size) for b, size in zip(offset, shard.shape, strict=True))
            full[place] = shard
            drop_pages(shard)
        return full

    return LazyTensor(shape, first.dtype, make)


def _as_os_error(error: CheckpointException) -> OSError:
    """What went wrong first, by what process."""
    rank, (cause, _) = min(error.failures.items(), key=lambda item: item[0])
    return OSError(getattr(cause, "errno", None) or 0, f"process {rank}: {cause}")
