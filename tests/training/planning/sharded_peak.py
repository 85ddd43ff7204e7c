"""A program: peaks of steps of sharded weights against planned ones, as JSON.

It is one of several processes whose others are not there (torch's "fake" group, which sends nothing): FSDP2 takes and
frees what it always does, and nothing depends on when a thread of gloo lets go of a buffer.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from dalle.kernels import attention, switches
from dalle.models.dalle import DALLE
from dalle.training.distributed.fsdp import Sharding, keep_unsharded, local, reshard
from dalle.training.optim import OptimConfig, build_optimizer
from dalle.training.planning.memory import memory, sampling_budget
from dalle.training.planning.setup import ModelSize, Precision, TrainSetup
from support.memory_peaks import peak_of
from support.model_sizes import IMAGES, SIZES, with_checkpointing

ROWS = 4  # that are drawn at a time


@dataclass(frozen=True)
class Case:
    size: str
    precision: Precision
    checkpointing: bool
    processes: int
    accumulation: int = 1


CASES = [
    Case("deep", "fp32", False, 2),
    Case("deep", "fp32", True, 2),
    Case("deep", "bf16", False, 8),
    Case("many codes", "bf16", False, 4),
    Case("many codes", "fp32", True, 3),
    Case("small", "fp32", False, 2, 2),
    Case("gated", "fp32", True, 4),
    Case("gated", "bf16", False, 2),
]


def peaks(case: Case) -> dict[str, float]:
    """Measured and planned bytes of one process; and of drawing, with all blocks gathered that there is room for."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=case.processes)
    config = with_checkpointing(SIZES[case.size], case.checkpointing)
    sharding = Sharding(torch.device("cpu"), torch.float32 if case.precision == "fp32" else torch.bfloat16)
    model = sharding.build(lambda: DALLE(config), ("losses", "prefill", "extend", "new_cache"))
    optimizer = build_optimizer(model, OptimConfig())
    text = torch.ones(IMAGES, config.text_length, dtype=torch.int64)
    codes = torch.zeros(IMAGES, config.image_length, dtype=torch.int64)

    def training_step() -> None:
        for _ in range(case.accumulation):
            losses = model.losses(text, codes)
            (losses["text"] / 8 + losses["image"] * 7 / 8).backward()
            del losses
        optimizer.step()
        optimizer.zero_grad()

    training_step()  # makes the moments
    setup = TrainSetup(
        "fsdp",
        case.processes,
        IMAGES,
        case.accumulation,
        case.checkpointing,
        case.precision,
        average=False,
        on_cpu=True,
    )

    def draw() -> None:
        with keep_unsharded(model, sharding, sampling_budget(ModelSize.of(config), setup, ROWS)), torch.no_grad():
            _, cache = model.prefill(text[:1].expand(ROWS, -1))
            whole = model.new_cache(ROWS)
            whole.load_prefixes([cache.row(row) for row in range(ROWS)])
            del cache
            for at in range(3):
                model.extend(codes[:1, at : at + 1].expand(ROWS, -1), whole)
        reshard(model)

    with tempfile.TemporaryDirectory() as scratch:
        peak = peak_of(training_step, Path(scratch))
        drawing = peak_of(draw, Path(scratch))
    state = 3 * sum(local(p).nbytes for p in model.parameters())
    planned = memory(ModelSize.of(config), setup)
    distributed.destroy_process_group()
    return {"measured": peak + state, "planned": planned.peak, "static": state, "drawing": drawing + state}


if __name__ == "__main__":
    attention._MAX_MATMUL_KEYS = 0  # as on accelerators, and so without compiled code
    torch.manual_seed(0)
    with switches.force_backend(native="off"):
        print(json.dumps([[*astuple(case), peaks(case)] for case in CASES]))
