"""Gradients told in low rank: PowerSGD (Vogels et al. 2019, arXiv 1905.13727), by torch's hook.

Section 2.4 and appendix E of the DALL-E paper (arXiv 2102.12092) train with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from torch import Tensor, distributed
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from dalle.checkpoints.tensors import read_tensors, write_tensors
from dalle.config import config
from dalle.ranges import PositiveInt, Range


@config
class PowerSGDConfig:
    rank: PositiveInt = 4
    """Rank of what is told of a matrix's gradient; matrices of which that is not at most half are told whole, as are
    vectors."""
    start: Annotated[int, Range(2, ceiling=10**12)] = 1000
    """Steps before which gradients are told whole."""


@dataclass(frozen=True)
class _Bucket:
    """What the hook asks of a DistributedDataParallel's bucket; here it is all of the gradient."""

    flat: Tensor
    parts: list[Tensor]  # views of it

    def buffer(self) -> Tensor:
        return self.flat

    def gradients(self) -> list[Tensor]:
        return self.parts

    def index(self) -> int:
        return 0

    def is_last(self) -> bool:
        return True


class PowerSGD:
    """Means of gradients over all processes, nearly.

    What a process could not tell in one step (the error) it adds to its next gradient; so nothing is lost, only late.
    Beside the gradient that takes as much memory again.
    """

    def __init__(self, options: PowerSGDConfig):
        self._state = PowerSGDState(
            None, matrix_approximation_rank=options.rank, start_powerSGD_iter=options.start, random_seed=0
        )

    def mean(self, gradients: list[Tensor]) -> None:
        """Replace gradients by their means over all processes; where one is not finite, all are NaN then."""
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        finite = torch.isfinite(flat.sum()).float()
        distributed.all_reduce(finite, distributed.ReduceOp.MIN)
        if not finite:  # it would stay in the error for good
            flat.fill_(float("nan"))
        parts = flat.split([gradient.numel() for gradient in gradients])
        views = [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]
        if finite:
            powerSGD_hook(self._state, cast("Any", _Bucket(flat, views))).wait()
        for gradient, view in zip(gradients, views, strict=True):
            gradient.copy_(view)

    @property
    def compression(self) -> float:
        """Numbers of all gradients so far over those that were told; what was told whole before `start` not counted."""
        return float(self._state.compression_stats()[0])

    def state(self) -> dict[str, Tensor]:
        """What the next step needs: the error, which is this process's own, and what all have."""
        kept = {"steps": torch.tensor(self._state.iter)}
        found = {"error": self._state.error_dict, "p": self._state.p_memory_dict, "q": self._state.q_memory_dict}
        return kept | {name: tensors[0] for name, tensors in found.items() if tensors}

    def load(self, states: list[dict[str, Tensor]], device: torch.device) -> None:
        """Go on from this process's own state, or from those of all processes of a run with more or fewer of them.

        Then each gets the mean of their errors: the mean over processes, which is what reaches the weights, stays.
        """
        self._state.iter = int(states[0]["steps"])
        if "error" in states[0]:
            self._state.error_dict[0] = torch.stack([state["error"] for state in states]).mean(0).to(device)
            self._state.p_memory_dict[0] = states[0]["p"].to(device)
            self._state.q_memory_dict[0] = states[0]["q"].to(device)


def write(folder: Path, told: Mapping[str, PowerSGD], rank: int) -> Path:
    """Write the state of one process's compressions, one for each phase; the file."""
    tensors = {f"{phase}:{name}": value for phase, own in told.items() for name, value in own.state().items()}
    file = folder / f"powersgd-{rank:05d}.safetensors"
    write_tensors(tensors, file)
    return file


def read(folder: Path | None, told: Mapping[str, PowerSGD], rank: int, world: int, device: torch.device) -> None:
    """Go on from what `write` left of an earlier run's processes; of a run without compression there is nothing.

    Raises:
        ValueError: a file is damaged.
    """
    files = sorted(folder.glob("powersgd-*.safetensors")) if folder and told else []
    if not files:
        return
    stored = [read_tensors(file) for file in ([files[rank]] if len(files) == world else files)]
    for phase, own in told.items():
        first = f"{phase}:"
        states = [{n.removeprefix(first): t for n, t in one.items() if n.startswith(first)} for one in stored]
        own.load(states, device)
