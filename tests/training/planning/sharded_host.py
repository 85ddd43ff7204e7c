"""A program for torchrun: what models in shares take of the host's memory while they are made and filled, as JSON."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, distributed

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.modules import load_weights, skip_init
from dalle.checkpoints.tensors import open_tensors, write_tensors
from dalle.models.dalle import DALLE
from dalle.models.dalle_config import DALLEConfig
from dalle.models.transformer_config import TransformerConfig
from dalle.training.distributed import sharded_checkpoint
from dalle.training.distributed.fsdp import Sharding
from dalle.training.distributed.sharded_init import sharded_init
from dalle.training.optim import EMA
from dalle.training.run.malloc import keep_freed_memory

LARGE = DALLEConfig(
    transformer=TransformerConfig(width=512, depth=16, heads=8), text_vocab=4096, text_length=16, image_vocab=8192
)
SMALL = DALLEConfig(transformer=TransformerConfig(width=32, depth=1, heads=1))
_Made = TypeVar("_Made")


def main(scratch: Path) -> None:
    """Print for each step how much more memory process 0 held meanwhile, in bytes."""
    keep_freed_memory()  # as train.py does
    distributed.init_process_group("gloo")
    sharding, found = Sharding(torch.device("cpu"), torch.float32), {}

    def measured(name: str, work: Callable[[], _Made]) -> _Made:
        ctypes.CDLL(None).malloc_trim(0)
        before = _held("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is what is held now
        made = work()
        found[name] = _held("VmHWM") - before
        return made

    first = sharding.build(lambda: DALLE(SMALL), ("losses",))  # loads what is loaded once
    _written(first.state_dict(), scratch / "first")
    model = measured("made", lambda: sharding.build(lambda: DALLE(LARGE), ("losses",)))
    average = measured("averaged", lambda: EMA(model, 0.9))
    measured("written", lambda: sharded_checkpoint.write(scratch / "shards", average.state))
    measured("read", lambda: sharded_checkpoint.read_into(scratch / "shards", average.state))
    with sharded_init(0, 2, torch.device("meta")):
        shapes = {name: value.shape for name, value in DALLE(LARGE).named_parameters()}
    if distributed.get_rank() == 0:
        zeros = {
            name: LazyTensor(shape, torch.float32, lambda s=shape: torch.zeros(s)) for name, shape in shapes.items()
        }  # type: ignore[misc]
        write_tensors(zeros, scratch / "given.safetensors")
    distributed.barrier()
    filled = measured("filled", lambda: sharding.build(lambda: _filled(scratch / "given.safetensors"), ("losses",)))
    if distributed.get_rank() == 0:
        whole = 4 * sum(shape.numel() for shape in shapes.values())
        largest = 4 * max(shape.numel() for shape in shapes.values())
        share = sum(value.to_local().nbytes for value in filled.parameters())  # type: ignore[attr-defined]
        print(json.dumps({"whole": whole, "largest": largest, "share": share} | found))
    distributed.barrier()
    distributed.destroy_process_group()


def _filled(file: Path) -> DALLE:
    with skip_init():
        model = DALLE(LARGE)
    return load_weights(model, open_tensors(file), str(file))


def _written(tensors: dict[str, Tensor], folder: Path) -> None:
    sharded_checkpoint.write(folder, tensors)
    sharded_checkpoint.read_into(folder, tensors)


def _held(what: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
