"""Parameters, gradients and optimizer in shares, one a process (PyTorch's FSDP2); knows nothing of losses or files.

The units that are gathered, used and let go are the attention and the feed-forward part of each block. What is no block
(embeddings, norms, heads) is one unit more, in float32. The same code runs on CPUs over gloo, where Accelerate has no
sharding of its own, and on GPUs over NCCL.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from dalle.transformer import Block

# What a config of `accelerate config` may ask of FSDP that the code here does not do, and what to do instead.
_REFUSED = {
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

    def apply(self, model: nn.Module, methods: Sequence[str]) -> None:
        """Leave of a model on the CPU each process its share, on its device; never is all of it on a device.

        Args:
            model: changed in place; its parameters become `DTensor`s, but for scalars, which all processes have.
            methods: those beside `forward` that compute with its weights. They run under autocast in `compute`, as
                the loop's forward pass does, whatever their caller says: the blocks' weights have no other type.
        """
        # Nothing here adds to what a unit returned in place, of which torch warns
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        mesh = init_device_mesh(self.device.type, (distributed.get_world_size(),))
        gathered = MixedPrecisionPolicy(self.compute, torch.float32, cast_forward_inputs=False)
        for block in [module for module in model.modules() if isinstance(module, Block)]:
            for unit in (block.attention, block.feed_forward):
                fully_shard(unit, mesh=mesh, mp_policy=gathered)
        scalars = {parameter for parameter in model.parameters() if parameter.ndim == 0}
        whole = MixedPrecisionPolicy(cast_forward_inputs=False)
        fully_shard(model, mesh=mesh, mp_policy=whole, ignored_params=scalars)
        model.to(self.device)  # buffers and scalars
        for name in methods:
            if self.compute != torch.float32:
                setattr(model, name, torch.autocast(self.device.type, self.compute)(getattr(model, name)))
            register_fsdp_forward_method(model, name)


def place(model: nn.Module, device: torch.device, sharding: Sharding | None, methods: Sequence[str]) -> None:
    """Put a model on a device, or each process's share of it; `methods` as in `Sharding.apply`."""
    if sharding is None:
        model.to(device)
    else:
        sharding.apply(model, methods)


def asked_of_launcher() -> bool:
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
    for variable, told in _REFUSED.items():
        if _set(variable):
            raise ValueError(f"the config of accelerate has {told}")
    return True


def _set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")


def local(tensor: Tensor) -> Tensor:
    """A tensor itself, or this process's share of it, which is the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether some of these are shares."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def share_of(whole: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor that every process has, what `like` is a share of; itself, where `like` is whole."""
    if not isinstance(like, DTensor):
        return whole
    placed = whole.to(like.device)
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)


def sum_of_squares(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of the squares of all numbers of some shares, and of some whole tensors that all processes have."""
    shares = [tensor.to_local() for tensor in tensors if isinstance(tensor, DTensor)]
    whole = [tensor for tensor in tensors if not isinstance(tensor, DTensor)]
    total = _squares(shares, tensors[0].device)
    distributed.all_reduce(total)
    return total + _squares(whole, tensors[0].device)


def _squares(tensors: list[Tensor], device: torch.device) -> Tensor:
    if not tensors:  # torch's 0 would be on the CPU, and copying it waits for the device
        return torch.zeros((), device=device)
    norm: Any = nn.utils.get_total_norm(tensors)
    return torch.as_tensor(norm, device=device, dtype=torch.float32).square()


def let_go(model: nn.Module) -> None:
    """Let go what the last forward pass gathered, where no backward pass does."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
