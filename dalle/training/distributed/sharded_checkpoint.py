"""Sharded tensors on disk in the format of torch.distributed.checkpoint: each process writes and reads its own shards.

There is one safetensors file per process; its header gives the offset of each shard within the full tensor (the format
of torch's HuggingFaceStorageWriter). Any number of processes can read them, a single one included, and loading runs no
code.
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

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.mapped_files import drop_pages
from dalle.checkpoints.tensors import stored_tensors, write_tensors
from dalle.training.distributed.fsdp import is_sharded, local

_SHARDING = "DCP_SHARDING_INFO"  # torch's header key: for each tensor the offset of its shard


def write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write this process's shards; unsharded tensors are written by rank 0. Every process must call it alike.

    Shards are copied to host memory one at a time. (torch's own writer builds the complete file there, twice.)

    Raises:
        OSError: in all processes, if any of them could not write.
    """
    folder.mkdir(exist_ok=True)
    rank, world = distributed.get_rank(), distributed.get_world_size()
    own: dict[str, Tensor] = {}
    offsets: dict[str, dict[str, list[int]]] = {}
    for name, tensor in tensors.items():
        shard = local(tensor.detach())
        # A process has no rows of a tensor with fewer rows than processes
        if shard.numel() if is_sharded([tensor]) else rank == 0:
            own[name] = shard
            # The first row of this process's chunk, as `torch.chunk` splits them
            first = rank * -(-tensor.shape[0] // world) if is_sharded([tensor]) else 0
            offsets[name] = {"saved_offsets": [first, *[0] * (tensor.ndim - 1)][: tensor.ndim]}
    errors: list[tuple[int, str] | None] = [None] * world
    try:
        file = folder / f"shard-{rank + 1:05d}-of-{world:05d}.safetensors"
        write_tensors(own, file, metadata={_SHARDING: json.dumps(offsets)})
        error = None
    except OSError as failed:
        error = failed.errno or 0, failed.strerror or str(failed)
    # Every process must raise, or the others would wait forever at the next collective
    distributed.all_gather_object(errors, error)
    for process, problem in enumerate(errors):
        if problem is not None:
            raise OSError(problem[0], f"process {process}: {problem[1]}")


def read_into(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, full or sharded, in place; each process reads only what it needs.

    Raises:
        ValueError: a tensor is missing or has another shape, or a file is damaged.
        OSError: a file cannot be read.
    """
    stored_shards = open_shards(folder)
    for name, tensor in tensors.items():
        if name not in stored_shards or stored_shards[name].shape != tensor.shape:
            there = "missing" if name not in stored_shards else list(stored_shards[name].shape)
            raise ValueError(f"{name} is {there}, expected {list(tensor.shape)}")
        if not tensor.ndim:  # torch's reader reads slices, and a scalar has none
            tensor.detach().copy_(stored_shards[name]())
    wanted = {name: tensor.detach() for name, tensor in tensors.items() if tensor.ndim}
    alone = not distributed.is_initialized()
    try:
        # A single process reads without a process group
        load(wanted, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)
    except CheckpointException as error:
        raise _as_os_error(error) from error


def files(folder: Path, rank: int | None = None) -> list[Path]:
    """List the files that `write` made, of all processes or of `rank`; empty if the folder does not exist."""
    return sorted(folder.glob("*.safetensors" if rank is None else f"shard-{rank + 1:05d}-*.safetensors"))


def open_shards(folder: Path) -> dict[str, LazyTensor]:
    """Open the full tensors of a folder, each assembled from its shards when it is called.

    Raises:
        ValueError: the folder has no shards, or one is missing or damaged.
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
            raise ValueError(f"{file} is damaged, or not a shard ({error})") from error
    return {name: _assemble(name, own, folder) for name, own in shards.items()}


def _assemble(name: str, shards: list[tuple[list[int], Tensor]], folder: Path) -> LazyTensor:
    """A full tensor that is assembled from pairs of offset and shard when it is called."""
    first = shards[0][1]
    ends = [[b + size for b, size in zip(offset, shard.shape, strict=True)] for offset, shard in shards]
    shape = torch.Size([max(sizes) for sizes in zip(*ends, strict=True)])
    if sum(shard.numel() for _, shard in shards) != shape.numel():
        raise ValueError(f"{folder}: a shard of {name} is missing")

    def make() -> Tensor:
        full = torch.empty(shape, dtype=first.dtype)
        for offset, shard in shards:
            place = tuple(slice(b, b + size) for b, size in zip(offset, shard.shape, strict=True))
            full[place] = shard
            drop_pages(shard)  # its mapped pages, which have been copied
        return full

    return LazyTensor(shape, first.dtype, make)


def _as_os_error(error: CheckpointException) -> OSError:
    """The first failure, with the process that it happened in."""
    rank, (cause, _) = min(error.failures.items(), key=lambda item: item[0])
    return OSError(getattr(cause, "errno", None) or 0, f"process {rank}: {cause}")
