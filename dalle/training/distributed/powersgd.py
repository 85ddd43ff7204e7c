"""PowerSGD: all-reduces low-rank factors of gradients (Vogels et al. 2019, arXiv 1905.13727), with torch's hook.

The DALL-E paper trains with it (arXiv 2102.12092, section 2.4 and appendix E).
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
from dalle.config.ranges import PositiveInt, Range


@config
class PowerSGDConfig:
    """Gradient compression of replicated training."""

    rank: PositiveInt = 4
    """Rank of the approximation. Vectors, and matrices that would not shrink by at least half, are sent in full."""
    start: Annotated[int, Range(2, ceiling=10**12)] = 1000
    """Step at which compression begins; until then gradients are all-reduced in full."""


@dataclass(frozen=True)
class _Bucket:
    """The interface of a DistributedDataParallel bucket that torch's hook needs; here one bucket has all gradients."""

    flat: Tensor
    parts: list[Tensor]  # the gradients, as views of `flat`

    def buffer(self) -> Tensor:
        return self.flat

    def gradients(self) -> list[Tensor]:
        return self.parts

    def index(self) -> int:
        return 0

    def is_last(self) -> bool:
        return True


class PowerSGD:
    """Averages gradients over all processes approximately, with error feedback.

    What the low-rank approximation of one step misses is added to the next gradient (algorithm 2 of the paper), so
    it arrives late but is not lost. The error takes as much memory as the gradients.
    """

    def __init__(self, options: PowerSGDConfig):
        # The same seed in all processes: their random first factors must agree
        self._state = PowerSGDState(
            None, matrix_approximation_rank=options.rank, start_powerSGD_iter=options.start, random_seed=0
        )

    def mean(self, gradients: list[Tensor]) -> None:
        """Replace gradients in place by their means over all processes; if any is not finite, all become NaN."""
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        finite = torch.isfinite(flat.sum()).float()  # one that is not finite makes the sum so
        distributed.all_reduce(finite, distributed.ReduceOp.MIN)
        if not finite:  # skip the hook: the error feedback would carry NaN into every later step
            flat.fill_(float("nan"))
        parts = flat.split([gradient.numel() for gradient in gradients])
        views = [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]
        if finite:
            powerSGD_hook(self._state, cast("Any", _Bucket(flat, views))).wait()
        for gradient, view in zip(gradients, views, strict=True):
            gradient.copy_(view)

    @property
    def compression(self) -> float:
        """Compression ratio so far: gradient elements per element sent, not counting steps before `start`."""
        return float(self._state.compression_stats()[0])

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs: the error, different in each process, and the shared factors."""
        state = {
            "steps": torch.tensor(self._state.iter),
            "rank": torch.tensor(self._state.matrix_approximation_rank),
        }
        # One bucket, number 0
        found = {"error": self._state.error_dict, "p": self._state.p_memory_dict, "q": self._state.q_memory_dict}
        return state | {name: tensors[0] for name, tensors in found.items() if tensors}

    def load(self, states: list[dict[str, Tensor]], device: torch.device) -> None:
        """Restore `state()`: this process's own, or those of all processes if their number has changed.

        In the latter case every process gets the mean error. What reaches the weights is the mean over processes,
        and that stays the same. Factors of another rank are left out: the next step begins with random ones.
        """
        self._state.iter = int(states[0]["steps"])
        if "error" in states[0]:
            self._state.error_dict[0] = torch.stack([state["error"] for state in states]).mean(0).to(device)
            rank = self._state.matrix_approximation_rank
            if int(states[0].get("rank", rank)) != rank:  # earlier checkpoints do not say theirs
                return
            self._state.p_memory_dict[0] = states[0]["p"].to(device)
            self._state.q_memory_dict[0] = states[0]["q"].to(device)


def write(folder: Path, compressors: Mapping[str, PowerSGD], rank: int) -> Path:
    """Write the compressor state of one process, for all phases; returns the file."""
    tensors = {
        f"{phase}:{name}": value
        for phase, compressor in compressors.items()
        for name, value in compressor.state().items()
    }
    file = folder / f"powersgd-{rank:05d}.safetensors"
    write_tensors(tensors, file)
    return file


def read(folder: Path | None, compressors: Mapping[str, PowerSGD], rank: int, world: int, device: torch.device) -> None:
    """Restore compressors from the files of `write`; a checkpoint without compression changes nothing.

    Args:
        folder: the checkpoint.
        compressors: one per phase.
        rank: this process.
        world: number of processes of this run, which may differ from that of the checkpoint.
        device: device of the gradients.

    Raises:
        ValueError: a file is damaged.
    """
    files = sorted(folder.glob("powersgd-*.safetensors")) if folder and compressors else []
    if not files:
        return
    # Else all files, for the mean
    stored = [read_tensors(file) for file in ([files[rank]] if len(files) == world else files)]
    for phase, compressor in compressors.items():
        first = f"{phase}:"
        states = [{n.removeprefix(first): t for n, t in one.items() if n.startswith(first)} for one in stored]
        compressor.load(states, device)
