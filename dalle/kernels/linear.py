"""Linear layers that are fast on a CPU, at the few rows of a decode step and in training; and their int8 version."""

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
from dalle.kernels.switches import allows_native, switch

# From this many rows on, products with weights packed in oneDNN's layout are faster (docs/log.md).
_MIN_PACKED_ROWS = {torch.float32: 17, torch.bfloat16: 17}


@accelerated
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
    """`x @ (scale * weight).T + bias`.

    Args:
        x: [..., K].
        weight: [N, K], of x's dtype or int8.
        bias: [N].
        scale: [N] float32, one factor for each row of an int8 weight.

    Returns:
        [..., N] in x's dtype.
    """
    # Correct on every device but slow: the matrix is dequantized anew at each call
    return F.linear(x, weight if scale is None else (weight * scale[:, None]).to(x.dtype), bias)


class Linear(nn.Linear):
    """`nn.Linear` that on a CPU picks the fastest implementation for the number of rows."""

    _packed: Tensor | None = None  # the weight in oneDNN's layout, inside `packed`

    def packable(self, rows: int) -> bool:
        """Whether packing makes products with this many rows faster."""
        weight = self.weight
        return (
            weight.device.type == "cpu"
            and rows >= _MIN_PACKED_ROWS.get(weight.dtype, rows + 1)  # other dtypes: never
            and torch.backends.mkldnn.is_available()
            and (weight.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
            and switch("native") == "on"
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
        )

    def pack(self, rows: int) -> None:
        """Copy the weight into oneDNN's layout for about this many rows; until `unpack`, only the copy is used."""
        self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), rows)

    def unpack(self) -> None:
        """Drop the packed copy."""
        self._packed = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        copy = self._packed  # read once: another thread may drop it meanwhile
        if copy is not None:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, copy, self.bias, "none", [], "")
            return y
        dtype = self._training_dtype(x)
        if dtype is not None:
            made: Tensor = _TrainingLinear.apply(x.to(dtype), self.weight, self.bias)
            return made
        return linear(x, self.weight, self.bias)

    def _training_dtype(self, x: Tensor) -> torch.dtype | None:
        """Compute dtype if training on a CPU has enough rows for `matmul` to be faster; None: use `linear`."""
        weight, dtype = self.weight, x.dtype
        if torch.is_autocast_enabled("cpu") and dtype != torch.float64:  # autocast leaves float64 alone
            dtype = torch.get_autocast_dtype("cpu")
        elif dtype != torch.float32:
            return None
        wanted = (
            torch.is_grad_enabled()
            and weight.requires_grad
            and weight.dtype == torch.float32
            and x.shape[-1] == self.in_features
            and all(allows_native(t) for t in (x, weight))
            and matmul.usable(x.numel() // self.in_features, self.in_features, dtype)
        )
        return dtype if wanted else None


class _TrainingLinear(torch.autograd.Function):
    """A linear layer, forward and backward, by `dalle.kernels.matmul`; in bfloat16 it computes what autocast does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # The same cast that autocast makes; the cast copy is kept, so that the backward pass need not repeat it
        matrix = weight.to(x.dtype)
        offset = None if bias is None else bias.to(x.dtype)
        ctx.save_for_backward(x, matrix)
        return matmul.forward(x.reshape(-1, x.shape[-1]), matrix, offset).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, matrix = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad, states = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
        return (
            matmul.backward(grad, states, matrix).view_as(x) if needs_x else None,
            (grad.t() @ states).float() if needs_weight else None,  # [N, K]
            grad.sum(0).float() if needs_bias else None,
        )


_QUANTIZED_AT_ONCE = 1 << 16  # weights: 256 kB of float32


class Int8Linear(nn.Module):
    """A linear layer with int8 weights in [-127, 127] and one float32 scale per output channel.

    Activations, accumulation and biases keep their precision: only the memory read per step shrinks.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        """Quantize the weight [N, K] of a linear layer, rounding to nearest; each row's largest value becomes 127."""
        super().__init__()
        source = linear.weight.detach()
        self.register_buffer("weight", torch.empty_like(source, dtype=torch.int8))
        self.register_buffer("scale", torch.empty_like(source[:, 0], dtype=torch.float32))
        # Some rows at a time, so that a large matrix needs no whole copies in float32
        step = max(1, _QUANTIZED_AT_ONCE // max(1, source.shape[1]))
        for start in range(0, len(source), step):
            rows = slice(start, start + step)
            part = source[rows].float()
            # A row of zeros keeps a tiny scale, as 0 / 0 would be nan
            self.scale[rows] = part.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
            self.weight[rows] = (part / self.scale[rows, None]).round_().to(torch.int8)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        return linear(x, self.weight, self.bias, self.scale)


def quantize(module: nn.Module) -> None:
    """Replace every `Linear` in a module by an `Int8Linear`, for sampling only: it can be neither trained nor saved."""
    for name, child in module.named_children():
        if isinstance(child, Linear):
            setattr(module, name, Int8Linear(child))
        else:
            quantize(child)


def packed_bytes(module: nn.Module, rows: int) -> int:
    """Memory that `packed` needs: a second copy of all weights that it packs, in bytes; 0 if it packs none."""
    return sum(child.weight.nbytes for child in _packable(module, rows))


@contextmanager
def packed(module: nn.Module, rows: int) -> Iterator[None]:
    """Within this context, use copies of the weights in oneDNN's own layout, if that is faster for this many rows."""
    found = _packable(module, rows)
    try:
        for child in found:
            child.pack(rows)
        yield
    finally:
        # Also after a failure half-way, such as too little memory for all copies
        for child in found:
            child.unpack()


def _packable(module: nn.Module, rows: int) -> list[Linear]:
    return [child for child in module.modules() if isinstance(child, Linear) and child.packable(rows)]
