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
        self._kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._whole = torch.empty(0)  # one place for all: holes in the heap would come to more than the shares

    def __getitem__(self, parameter: Tensor) -> Tensor:
        """The share of a parameter: some of its rows, as `torch.chunk` counts them; of a scalar all."""
        kept: Tensor = self._kept[parameter]
        return kept

    def take(self, parameter: nn.Parameter, before: nn.Parameter | None) -> nn.Parameter:
        """What a module has in place of a parameter, whose numbers are kept in part; `before` is what it had."""
        if parameter in self._kept:
            return parameter
        held = before
        if held is None or held not in self._kept or held.shape != parameter.shape or held.dtype != parameter.dtype:
            held = nn.Parameter(parameter.detach().to("meta"))
        held.requires_grad_(parameter.requires_grad)
        self._keep(held, parameter.detach())
        return held

    def draw(self, function: Callable[..., Any], parameter: Tensor, *args: Any, **kwargs: Any) -> Any:
        """One of `torch.nn.init`, which gives all of a tensor other numbers."""
        if parameter not in self._kept:
            return function(parameter, *args, **kwargs)
        if self._whole.numel() < parameter.numel() or self._whole.dtype != parameter.dtype:
            self._whole = torch.empty(parameter.numel(), dtype=parameter.dtype)
        whole = self._whole[: parameter.numel()].view(parameter.shape)
        function(whole, *args, **kwargs)
        self._keep(parameter, whole)
        return parameter

    def _keep(self, parameter: Tensor, whole: Tensor) -> None:
        parts = whole.chunk(self.world) if whole.ndim else [whole] * self.world
        own = parts[self.rank] if self.rank < len(parts) else whole[:0]
        if parameter in self._kept:
            self._kept[parameter].copy_(own)
        else:
            self._kept[parameter] = own.to(self.device, copy=True, memory_format=torch.contiguous_format)


@contextmanager
def sharded_init(rank: int, world: int, device: torch.device) -> Iterator[ShardedInit]:
    """Build modules whose parameters are on the meta device, with this process's shards of them in `ShardedInit`.

    Buffers stay as they are. Parameters get their numbers when they are registered, or by `torch.nn.init`: what else is
    done to them in place is lost.
    """
    cut, registering, drawing = ShardedInit(rank, world, device), nn.Module.register_parameter, init_functions()

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        before = module._parameters.get(name)
        registering(module, name, None if parameter is None else cut.take(parameter, before))

    def drawn(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda tensor, *args, **kwargs: cut.draw(function, tensor, *args, **kwargs)

    try:
        nn.Module.register_parameter = register  # type: ignore[method-assign,assignment]
        for name, function in drawing.items():
            setattr(nn.init, name, drawn(function))
        yield cut
    finally:
        nn.Module.register_parameter = registering  # type: ignore[method-assign]
        for name, function in drawing.items():
            setattr(nn.init, name, function)
