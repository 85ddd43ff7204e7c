"""A program for torchrun: peaks of an update of sharded weights (FSDP2 over gloo), against planned ones, as JSON."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from torch import distributed

from dalle.model import DALLE, DALLEConfig
from dalle.training.memory import Size, Training, memory
from dalle.training.optim import OptimConfig, adamw
from dalle.training.sharding import Sharding
from dalle.transformer import TransformerConfig
from peaks import peak_of

IMAGES = 2


def main(checkpointing: bool) -> None:
    """Print measured and planned bytes of process 0."""
    distributed.init_process_group("gloo")
    world = distributed.get_world_size()
    shape = TransformerConfig(width=256, depth=8, heads=4, checkpoint_activations=checkpointing)
    config = DALLEConfig(transformer=shape, text_vocab=2048, text_length=48)
    torch.manual_seed(0)
    model = Sharding(torch.device("cpu"), torch.float32).build(lambda: DALLE(config), ("losses",))
    optimizer = adamw(model, OptimConfig())
    text, codes = torch.ones(IMAGES, 48, dtype=torch.int64), torch.zeros(IMAGES, 64, dtype=torch.int64)

    def update() -> None:
        losses = model.losses(text, codes)
        (losses["text"] / 8 + losses["image"] * 7 / 8).backward()
        del losses
        optimizer.step()
        optimizer.zero_grad()

    update()  # makes the moments
    with tempfile.TemporaryDirectory() as scratch:
        peak = peak_of(update, Path(scratch))
    how = Training("fsdp", world, IMAGES, 1, checkpointing, "fp32", average=False, on_cpu=True)
    planned = memory(Size.of(config), how)
    if distributed.get_rank() == 0:
        state = sum(p.to_local().nbytes for p in model.parameters())  # type: ignore[attr-defined]
        print(json.dumps({"measured": peak + 3 * state, "planned": planned.peak}))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(checkpointing=sys.argv[1] == "on")
