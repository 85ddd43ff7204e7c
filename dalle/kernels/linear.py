"""Linear maps that are fast at the few rows of a step of drawing and in training on a CPU; the same in 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dalle.kernels import matmul
from dalle.kernels.dispatch import accelerated
from dalle.kernels.switches import differentiable, switch

# Rows from which weights in oneDNN's own layout are faster than as they are (docs/log.md).
_PACK_FROM = {torch.float32: 17, torch.bfloat16: 17}


@accelerated
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
    """`x @ (scale * weight).T + bias`.

    Args:
        x: [..., K].
        weight: [N, K], of x's dtype or int8.
        bias: [N].
        scale: [N] float32, the factors of int8 rows.

    Returns:
        [..., N] in x's dtype.
    """
    return F.linear(x, weight if scale is None else (weight * scale[:, None]).to(x.dtype), bias)


class Linear(nn.Linear):
    """`nn.Linear`, which without gradients on a CPU takes the fastest way that there is for the number of rows."""

    _packed: Tensor | None = None  # the weight in oneDNN's layout, while `packed` lasts

    def packable(self, rows: int) -> bool:
        """Whether packing makes products of so many rows faster."""
        weight = self.weight
        return (
            weight.device.type == "cpu"
            and rows >= _PACK_FROM.get(weight.dtype, rows + 1)
            and torch.backends.mkldnn.is_available()
            and (weight.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
            and switch("native") == "on"
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
        )

    def pack(self, rows: int) -> None:
        """Copy the weight into oneDNN's layout for about so many rows; until `unpack` the copy is what counts."""
        self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), rows)

    def unpack(self) -> None:
        """Forget the copy."""
        self._packed = None

    def forward(self, x: Tensor) -> Tensor:
        copy = self._packed  # read once: another thread may forget it meanwhile
        if copy is not None:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, copy, self.bias, "none", [], "")
            return y
        kind = self._trained_in(x)
        if kind is not None:
            made: Tensor = _Trained.apply(x.to(kind), self.weight, self.bias)
            return made
        return linear(x, self.weight, self.bias)

    def _trained_in(self, x: Tensor) -> torch.dtype | None:
        """The type of the products of a training pass on a CPU, where rows are enough for another way than torch's."""
        weight, kind = self.weight, x.dtype
        if torch.is_autocast_enabled("cpu") and kind != torch.float64:
            kind = torch.get_autocast_dtype("cpu")
        elif kind != torch.float32:
            return None
        wanted = (
            torch.is_grad_enabled()
            and weight.requires_grad
            and weight.dtype == torch.float32
            and x.shape[-1] == self.in_features
            and all(differentiable(t) for t in (x, weight))
            and matmul.usable(x.numel() // self.in_features, self.in_features, kind)
        )
        return kind if wanted else None


class _Trained(torch.autograd.Function):
    """What torch makes of a linear map, or autocast in bfloat16, by `dalle.kernels.matmul`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        matrix = weight.to(x.dtype)
        offset = None if bias is None else bias.to(x.dtype)
        ctx.save_for_backward(x, matrix)
        return matmul.forward(x.reshape(-1, x.shape[-1]), matrix, offset).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, matrix = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        given, states = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
        return (
            matmul.backward(given, states, matrix).view_as(x) if of_x else None,
            (given.t() @ states).float() if of_weight else None,
            given.sum(0).float() if of_bias else None,
        )


class Int8Linear(nn.Module):
    """A linear map whose weights are whole numbers from -127 to 127, times a factor for each output channel.

    Activations, sums and biases stay as they are: only what is read from memory is smaller.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        """Round the weights [N, K] of a linear map to the nearest step; the largest of each output channel is 127."""
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, self.scale)


def quantize(module: nn.Module) -> None:
    """Put an `Int8Linear` in the place of every `Linear` within a module, for drawing: it is not trained or saved."""
    for name, child in module.named_children():
        if isinstance(child, Linear):
            setattr(module, name, Int8Linear(child))
        else:
            quantize(child)


def packed_bytes(module: nn.Module, rows: int) -> int:
    """What `packed` takes: as much again as the weights that it packs; 0 if none are."""
    return sum(child.weight.nbytes for child in _packable(module, rows))


@contextmanager
def packed(module: nn.Module, rows: int) -> Iterator[None]:
    """While this lasts, keep weights in oneDNN's own layout too, where that is faster for so many rows."""
    found = _packable(module, rows)
    try:
        for child in found:
            child.pack(rows)
        yield
    finally:
        for child in found:
            child.unpack()


def _packable(module: nn.Module, rows: int) -> list[Linear]:
    return [child for child in module.modules() if isinstance(child, Linear) and child.packable(rows)]
