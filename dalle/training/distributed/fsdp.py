"""Parameters, gradients and optimizer in shares, one a process (PyTorch's FSDP2); knows nothing of losses or files.

The units that are gathered, used and let go are the attention and the feed-forward part of each block. What is no block
(embeddings, norms, heads) is one unit more, in float32. The same code runs on CPUs over gloo, where Accelerate has no
sharding of its own, and on GPUs over NCCL.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from dalle.models.transformer import Block
from dalle.training.distributed.sharded_init import sharded_init

Model = TypeVar("Model", bound=nn.Module)

# What a config of `accelerate config` may ask of FSDP that the code here does not do, and what to do instead.
_UNSUPPORTED = {
    "FSDP_OFFLOAD_PARAMS": "fsdp_offload_params: this trains on the devices only; set it to false",
    "FSDP_ACTIVATION_CHECKPOINTING": "fsdp_activation_checkpointing: set it to false, and here "
    "model.transformer.checkpoint_activations=true",
}


@dataclass(frozen=True)
class Sharding:
    """How a model is shared among the processes.

    Attributes:
        device: where the shares are.
        compute: type of the matrix products; blocks are gathered in it. Shares and sums of gradients are float32.
    """

    device: torch.device
    compute: torch.dtype

    def build(self, make: Callable[[], Model], methods: Sequence[str]) -> Model:
        """Make a model of which each process has its share, on its device.

        Never is all of it in one memory, the host's neither, and its numbers are those of the model made whole.

        Args:
            make: makes it on the CPU, and may fill it.
            methods: those beside `forward` that compute with its weights. They run under autocast in `compute`, as
                the loop's forward pass does, whatever their caller says: the blocks' weights have no other type.

        Returns:
            The model; its parameters are `DTensor`s, but for scalars, which all processes have.
        """
        # Nothing here adds to what a unit returned in place, of which torch warns
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        mesh = init_device_mesh(self.device.type, (distributed.get_world_size(),))
        with sharded_init(mesh.get_local_rank(), mesh.size(), self.device) as shards:
            model = make()
        local_shards = {name: (shards[parameter], parameter) for name, parameter in model.named_parameters()}
        block_policy = MixedPrecisionPolicy(self.compute, torch.float32, cast_forward_inputs=False)
        for unit in fsdp_units(model):
            fully_shard(unit, mesh=mesh, mp_policy=block_policy)
        scalars = {parameter for parameter in model.parameters() if parameter.ndim == 0}
        full = MixedPrecisionPolicy(cast_forward_inputs=False)
        fully_shard(model, mesh=mesh, mp_policy=full, ignored_params=scalars)
        state = {name: _to_dtensor(shard, parameter, mesh) for name, (shard, parameter) in local_shards.items()}
        model.load_state_dict(state, strict=False, assign=True)  # strict would ask for buffers
        model.to(self.device)  # buffers
        for name in methods:
            if self.compute != torch.float32:
                setattr(model, name, torch.autocast(self.device.type, self.compute)(getattr(model, name)))
            register_fsdp_forward_method(model, name)
        return model


def _to_dtensor(shard: Tensor, parameter: Tensor, mesh: DeviceMesh) -> Tensor:
    """The tensor that has this share on this process; of a scalar itself."""
    if not parameter.ndim:
        return shard
    return DTensor.from_local(
        shard, mesh, [Shard(0)], run_check=False, shape=parameter.shape, stride=parameter.stride()
    )


def fsdp_units(model: nn.Module) -> list[nn.Module]:
    """The parts of a model that are gathered one after the other."""
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    return [unit for block in blocks for unit in (block.attention, block.feed_forward)]


def build(make: Callable[[], Model], device: torch.device, sharding: Sharding | None, methods: Sequence[str]) -> Model:
    """Make a model on a device, or each process's share of it; `make` and `methods` as in `Sharding.build`."""
    return make().to(device) if sharding is None else sharding.build(make, methods)


def fsdp_requested() -> bool:
    """Whether `accelerate launch` was given a config with FSDP, which it tells its processes by their environment.

    Raises:
        ValueError: it asks for something that is not done here.
    """
    for variable, layout in (("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM")):
        if _set(variable):
            raise ValueError(f"the config of accelerate asks for {layout}: take configs/accelerate/fsdp2.yaml, or ddp")
    if not _set("ACCELERATE_USE_FSDP"):
        return False
    if os.environ.get("FSDP_VERSION") != "2":
        raise ValueError("the config of accelerate asks for FSDP 1: set fsdp_version: 2 under fsdp_config")
    for variable, advice in _UNSUPPORTED.items():
        if _set(variable):
            raise ValueError(f"the config of accelerate has {advice}")
    return True


def _set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")


def local(tensor: Tensor) -> Tensor:
    """A tensor itself, or this process's share of it, which is the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether some of these are shares."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def shard_like(full: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor that every process has, what `like` is a share of; itself, where `like` is whole."""
    if not isinstance(like, DTensor):
        return full
    placed = full.to(like.device)
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)


@dataclass(frozen=True)
class _ParamGroups:
    """Some of the parameters of an optimizer, as far as a loss scaler looks at it."""

    param_groups: list[dict[str, list[Tensor]]]


def unscale(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> None:
    """`scaler.unscale_`, for shares too: where one process meets an infinite number, the scale falls in all.

    torch does that for a list of shares; in between may be no scalar that all processes have.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not is_sharded(parameters):
        scaler.unscale_(optimizer)
        return
    parts = [
        _ParamGroups([{"params": [p for p in parameters if is_sharded([p]) == shared]}]) for shared in (True, False)
    ]
    for part in parts:
        scaler.unscale_(part)  # type: ignore[arg-type]


def sum_of_squares(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of the squares of all numbers of some shares, and of some whole tensors that all processes have."""
    local_shards = [tensor.to_local() for tensor in tensors if isinstance(tensor, DTensor)]
    full = [tensor for tensor in tensors if not isinstance(tensor, DTensor)]
    total = _sum_of_squares(local_shards, tensors[0].device)
    distributed.all_reduce(total)
    return total + _sum_of_squares(full, tensors[0].device)


def _sum_of_squares(tensors: list[Tensor], device: torch.device) -> Tensor:
    if not tensors:  # torch's 0 would be on the CPU, and copying it waits for the device
        return torch.zeros((), device=device)
    norm: Any = nn.utils.get_total_norm(tensors)
    return torch.as_tensor(norm, device=device, dtype=torch.float32).square()


@contextmanager
def keep_unsharded(model: nn.Module, sharding: Sharding, max_bytes: int) -> Iterator[int]:
    """Gather units once for many passes without gradient, rather than in each pass; all processes must call it alike.

    Args:
        model: of `Sharding.build`.
        sharding: how it was built.
        max_bytes: bytes that they may take; those that find none are gathered in each pass as ever.

    Yields:
        How many are held.
    """
    units: list[FSDPModule] = []
    for unit in fsdp_units(model):
        max_bytes -= sum(parameter.numel() for parameter in unit.parameters()) * sharding.compute.itemsize
        if max_bytes < 0:
            break
        units.append(cast(FSDPModule, unit))
    for part in units:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield len(units)
    finally:
        for part in units:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def reshard(model: nn.Module) -> None:
    """Let go what the last forward pass gathered, where no backward pass does."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
