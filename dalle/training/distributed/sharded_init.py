"""Modules made in shares: of each parameter this process keeps its share, and none but the one just drawn is whole.

The numbers are those of a module that is made whole: all processes draw all of them in the same order, each parameter
for itself, and keep their part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from dalle.checkpoints.tensors import init_functions


class ShardedInit:
    """What is left of parameters that stand on the meta device meanwhile.

    Attributes:
        rank: this process.
        world: all of them.
        device: where the shares go.
    """

    def __init__(self, rank: int, world: int, device: torch.device) -> None:
        self.rank, self.world, self.device = rank, world, device
        self._shards: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._buffer = torch.empty(0)  # one place for all: holes in the heap would come to more than the shares

    def __getitem__(self, parameter: Tensor) -> Tensor:
        """The share of a parameter: some of its rows, as `torch.chunk` counts them; of a scalar all."""
        shard: Tensor = self._shards[parameter]
        return shard

    def register(self, parameter: nn.Parameter, previous: nn.Parameter | None) -> nn.Parameter:
        """What a module has in place of a parameter, whose numbers are kept in part; `before` is what it had."""
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
        """One of `torch.nn.init`, which gives all of a tensor other numbers."""
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
        own = parts[self.rank] if self.rank < len(parts) else full[:0]
        if parameter in self._shards:
            self._shards[parameter].copy_(own)
        else:
            self._shards[parameter] = own.to(self.device, copy=True, memory_format=torch.contiguous_format)


@contextmanager
def sharded_init(rank: int, world: int, device: torch.device) -> Iterator[ShardedInit]:
    """Build modules whose parameters are on the meta device, with this process's shards of them in `ShardedInit`.

    Buffers stay as they are. Parameters get their numbers when they are registered, or by `torch.nn.init`: what else is
    done to them in place is lost.
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
        nn.Module.register_parameter = register  # type: ignore[method-assign,assignment]
        for name, function in initializers.items():
            setattr(nn.init, name, initializing(function))
        yield shards
    finally:
        nn.Module.register_parameter = register_parameter  # type: ignore[method-assign]
        for name, function in initializers.items():
            setattr(nn.init, name, function)
