"""Initializes a module directly as FSDP shards, so that no process ever holds the full model.

Parameters are initialized in full, one after the other; every rank keeps its slice, so at most one full parameter is in
memory. All ranks draw the same random numbers in the same order, which gives the values of an unsharded module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from dalle.checkpoints.modules import init_functions


class ShardedInit:
    """Local shards of parameters that are on the meta device while the module is being built.

    Attributes:
        rank: index of this process.
        world: number of processes.
        device: device of the shards.
    """

    def __init__(self, rank: int, world: int, device: torch.device) -> None:
        self.rank, self.world, self.device = rank, world, device
        self._shards: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._buffer = torch.empty(0)  # reused for all parameters: one allocation each would fragment the heap

    def __getitem__(self, parameter: Tensor) -> Tensor:
        """The local shard of a parameter: its chunk of rows, as `torch.chunk` splits them; a scalar is kept in full."""
        shard: Tensor = self._shards[parameter]
        return shard

    def register(self, parameter: nn.Parameter, previous: nn.Parameter | None) -> nn.Parameter:
        """Store the local shard of `parameter`; returns the meta parameter to register in its place.

        Args:
            parameter: the full parameter.
            previous: what the module had under this name; its placeholder is reused if shape and dtype fit.
        """
        # Known already: a parameter that two modules share
        if parameter in self._shards:
            return parameter
        placeholder = previous
        if (
            placeholder is None
            or placeholder not in self._shards
            or placeholder.shape != parameter.shape
            or placeholder.dtype != parameter.dtype
        ):
            placeholder = nn.Parameter(parameter.detach().to("meta"))
        placeholder.requires_grad_(parameter.requires_grad)
        self._store(placeholder, parameter.detach())
        return placeholder

    def initialize(self, function: Callable[..., Any], parameter: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run a function of `torch.nn.init` on a full buffer and keep the local shard of the result."""
        if parameter not in self._shards:
            return function(parameter, *args, **kwargs)
        if self._buffer.numel() < parameter.numel() or self._buffer.dtype != parameter.dtype:
            self._buffer = torch.empty(parameter.numel(), dtype=parameter.dtype)
        full = self._buffer[: parameter.numel()].view(parameter.shape)
        function(full, *args, **kwargs)
        self._store(parameter, full)
        return parameter

    def _store(self, parameter: Tensor, full: Tensor) -> None:
        parts = full.chunk(self.world) if full.ndim else [full] * self.world
        own = parts[self.rank] if self.rank < len(parts) else full[:0]  # fewer chunks than processes: an empty shard
        if parameter in self._shards:
            self._shards[parameter].copy_(own)
        else:
            self._shards[parameter] = own.to(self.device, copy=True, memory_format=torch.contiguous_format)


@contextmanager
def sharded_init(rank: int, world: int, device: torch.device) -> Iterator[ShardedInit]:
    """Build modules inside this block with meta parameters; their local shards are in the `ShardedInit` it yields.

    Buffers are not sharded. The values of parameters are captured when they are registered and when a function of
    `torch.nn.init` sets them; any other in-place change is lost.
    """
    shards, register_parameter, initializers = (
        ShardedInit(rank, world, device),
        nn.Module.register_parameter,
        init_functions(),
    )

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        previous = module._parameters.get(name)
        register_parameter(module, name, None if parameter is None else shards.register(parameter, previous))

    def initializing(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda tensor, *args, **kwargs: shards.initialize(function, tensor, *args, **kwargs)

    try:
        # There is no hook for "a parameter was registered" or "initialized": patch both for the time of the block
        nn.Module.register_parameter = register  # type: ignore[method-assign,assignment]
        for name, function in initializers.items():
            setattr(nn.init, name, initializing(function))
        yield shards
    finally:
        nn.Module.register_parameter = register_parameter  # type: ignore[method-assign]
        for name, function in initializers.items():
            setattr(nn.init, name, function)
