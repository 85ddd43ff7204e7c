"""Fully sharded data parallelism with PyTorch's FSDP2: parameters, gradients and optimizer state split over processes.

The units that are all-gathered, used and resharded are the attention and the feed-forward part of each block.
Everything outside the blocks (embeddings, norms, heads) is one more unit, in float32. The same code runs on GPUs over
NCCL and on CPUs over gloo, where Accelerate does not support sharding.
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

# FSDP options of an `accelerate config` file that are not supported here, and what to do instead
_UNSUPPORTED = {
    "FSDP_OFFLOAD_PARAMS": "fsdp_offload_params: offloading is not supported; set it to false",
    "FSDP_ACTIVATION_CHECKPOINTING": "fsdp_activation_checkpointing: set it to false, and "
    "model.transformer.checkpoint_activations=true in the recipe",
}


@dataclass(frozen=True)
class Sharding:
    """How a model is split over the processes.

    Attributes:
        device: device of the shards.
        compute: dtype of the matrix products, in which blocks are all-gathered. Shards and reduced gradients are
            float32.
    """

    device: torch.device
    compute: torch.dtype

    def build(self, make: Callable[[], Model], methods: Sequence[str]) -> Model:
        """Build a model of which every process holds its shards only.

        The full model is never in memory, not even on the host. The initial values are those of an unsharded model.

        Args:
            make: builds the model on the CPU, and may load weights into it.
            methods: names of methods besides `forward` that compute with the weights. They always run under autocast
                in `compute`, like the forward pass of the training loop, since gathered blocks have that dtype.

        Returns:
            The model. Its parameters are `DTensor`s, except for scalars, which are replicated.
        """
        # The warning is about in-place changes of a unit's output; nothing here makes any
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        mesh = init_device_mesh(self.device.type, (distributed.get_world_size(),))
        with sharded_init(mesh.get_local_rank(), mesh.size(), self.device) as shards:
            model = make()
        local_shards = {name: (shards[parameter], parameter) for name, parameter in model.named_parameters()}
        block_policy = MixedPrecisionPolicy(self.compute, torch.float32, cast_forward_inputs=False)
        for unit in fsdp_units(model):
            fully_shard(unit, mesh=mesh, mp_policy=block_policy)
        # FSDP2 cannot shard a scalar (such as CLIP's temperature): these stay replicated
        scalars = {parameter for parameter in model.parameters() if parameter.ndim == 0}
        full = MixedPrecisionPolicy(cast_forward_inputs=False)
        fully_shard(model, mesh=mesh, mp_policy=full, ignored_params=scalars)
        state = {name: _to_dtensor(shard, parameter, mesh) for name, (shard, parameter) in local_shards.items()}
        model.load_state_dict(state, strict=False, assign=True)  # strict would require buffers, too
        model.to(self.device)  # moves the buffers; parameters are there already
        for name in methods:
            if self.compute != torch.float32:
                setattr(model, name, torch.autocast(self.device.type, self.compute)(getattr(model, name)))
            # FSDP gathers weights for `forward` only, unless told of other entry points
            register_fsdp_forward_method(model, name)
        return model


def _to_dtensor(shard: Tensor, parameter: Tensor, mesh: DeviceMesh) -> Tensor:
    """Wrap a local shard as a DTensor sharded over rows; scalars are returned as they are."""
    if not parameter.ndim:
        return shard
    # No check: it would communicate
    return DTensor.from_local(
        shard, mesh, [Shard(0)], run_check=False, shape=parameter.shape, stride=parameter.stride()
    )


def fsdp_units(model: nn.Module) -> list[nn.Module]:
    """List the submodules that FSDP gathers one after the other: attention and feed-forward part of each block."""
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    return [unit for block in blocks for unit in (block.attention, block.feed_forward)]


def build(make: Callable[[], Model], device: torch.device, sharding: Sharding | None, methods: Sequence[str]) -> Model:
    """Build a model on a device, sharded if `sharding` is given; `make` and `methods` as in `Sharding.build`."""
    return make().to(device) if sharding is None else sharding.build(make, methods)


def fsdp_requested() -> bool:
    """Return whether the config given to `accelerate launch` asks for FSDP (it sets environment variables).

    Raises:
        ValueError: it asks for something that is not supported here.
    """
    for variable, layout in (("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM")):
        if _set(variable):
            raise ValueError(f"the accelerate config asks for {layout}: use configs/accelerate/fsdp2.yaml, or DDP")
    if not _set("ACCELERATE_USE_FSDP"):
        return False
    if os.environ.get("FSDP_VERSION") != "2":
        raise ValueError("the accelerate config asks for FSDP 1: set fsdp_version: 2 under fsdp_config")
    for variable, advice in _UNSUPPORTED.items():
        if _set(variable):
            raise ValueError(f"the accelerate config has {advice}")
    return True


def _set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")


def local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor (the same memory), or the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Return whether any of the tensors is sharded."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def shard_like(full: Tensor, like: Tensor) -> Tensor:
    """Shard a full tensor, present in every process, in the way that `like` is sharded (if it is)."""
    if not isinstance(like, DTensor):
        return full
    placed = full.to(like.device)
    # Every process has the values: no broadcast
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)


@dataclass(frozen=True)
class _ParamGroups:
    """Stands in for an optimizer: GradScaler reads nothing but `param_groups`."""

    param_groups: list[dict[str, list[Tensor]]]


def unscale(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> None:
    """Run `scaler.unscale_`, for sharded gradients too: an overflow in one process lowers the scale in all of them.

    torch handles lists of DTensors, but not lists that mix them with replicated scalars: these go separately.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not is_sharded(parameters):
        scaler.unscale_(optimizer)
        return
    # Shards, then scalars
    parts = [
        _ParamGroups([{"params": [p for p in parameters if is_sharded([p]) == shared]}]) for shared in (True, False)
    ]
    for part in parts:
        scaler.unscale_(part)  # type: ignore[arg-type]


def sum_of_squares(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of squares of all elements; sharded tensors are summed over processes, replicated ones once."""
    local_shards = [tensor.to_local() for tensor in tensors if isinstance(tensor, DTensor)]
    full = [tensor for tensor in tensors if not isinstance(tensor, DTensor)]
    total = _sum_of_squares(local_shards, tensors[0].device)
    distributed.all_reduce(total)
    return total + _sum_of_squares(full, tensors[0].device)  # each process has the same scalars: counted once


def _sum_of_squares(tensors: list[Tensor], device: torch.device) -> Tensor:
    if not tensors:  # get_total_norm([]) is on the CPU, and moving it would synchronize with the device
        return torch.zeros((), device=device)
    norm: Any = nn.utils.get_total_norm(tensors)
    return torch.as_tensor(norm, device=device, dtype=torch.float32).square()


@contextmanager
def keep_unsharded(model: nn.Module, sharding: Sharding, max_bytes: int) -> Iterator[int]:
    """Keep units gathered over many passes without gradients (sampling); every process must call it alike.

    Args:
        model: model from `Sharding.build`.
        sharding: how it was built.
        max_bytes: memory for gathered units; those that do not fit are gathered anew in each pass.

    Yields:
        The number of units kept.
    """
    units: list[FSDPModule] = []
    for unit in fsdp_units(model):
        max_bytes -= sum(parameter.numel() for parameter in unit.parameters()) * sharding.compute.itemsize
        if max_bytes < 0:
            break
        units.append(cast(FSDPModule, unit))
    for part in units:
        part.set_reshard_after_forward(False, recurse=False)  # gathered weights stay after each forward pass
        part.unshard()
    try:
        yield len(units)
    finally:
        for part in units:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def reshard(model: nn.Module) -> None:
    """Free the gathered weights after a forward pass that has no backward pass (which would free them)."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
