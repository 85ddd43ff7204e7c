"""The dtypes in which weights are stored, and 8-bit storage: tensors to what a file holds, and back.

"int8" storage is symmetric quantization per output channel: each row of a matrix or kernel is stored as 8-bit integers
with one float32 scale, its largest magnitude / 127 (an error of at most 1/254 of that magnitude).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor, Tensors
from dalle.checkpoints.mapped_files import drop_pages

Storage = Literal["float32", "bfloat16", "float16", "int8"]
STORAGE: tuple[str, ...] = get_args(Storage)
SCALE = ".int8_scale"
"""Suffix of the name of an int8 tensor's scales."""
EXACT = ("rope_cos", "rope_sin")
"""Last names of tensors that stay in float32: rounded rotary angles would shift all positions."""


def pack(tensors: Tensors, storage: Storage | None) -> dict[str, Tensor]:
    """Tensors on the CPU in their storage dtype; with "int8", vectors stay in float32."""
    return {name: lazy() for key, tensor in tensors.items() for name, lazy in storage_entries(key, tensor, storage)}


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `pack`: int8 tensors are dequantized, others returned as they are."""
    whole = {name: dequantized(name, tensors) for name in tensors if not name.endswith(SCALE)}
    return {name: value() if isinstance(value, LazyTensor) else value for name, value in whole.items()}


def storage_entries(name: str, tensor: Tensor | LazyTensor, storage: Storage | None) -> list[tuple[str, LazyTensor]]:
    """The file entries that store one tensor: itself, or its int8 values and scales."""
    source = _lazy(tensor)
    exact = name.rpartition(".")[2] in EXACT
    # Vectors (biases, norms) are few numbers that scale or shift whole channels: they stay exact
    if storage == "int8" and source.dtype.is_floating_point and len(source.shape) >= 2 and not exact:
        return [
            (name, _converted(source, torch.int8, _to_int8, source.shape)),
            (name + SCALE, _converted(source, torch.float32, _scales, source.shape[:1])),
        ]
    dtype = source.dtype
    if storage is not None and dtype.is_floating_point:
        # Integers and booleans keep their dtype in every storage
        dtype = torch.float32 if storage == "int8" or exact else getattr(torch, storage)
    return [(name, _converted(source, dtype, lambda value: value.to(dtype), source.shape))]


def _converted(
    source: LazyTensor, dtype: torch.dtype, form: Callable[[Tensor], Tensor], shape: torch.Size
) -> LazyTensor:
    """A lazy tensor: `form` applied to `source` on the CPU, after which mapped pages of the source are released."""

    def make() -> Tensor:
        value = source()
        made = form(value.detach().cpu().contiguous())
        # Where nothing had to be converted, `made` is the mapped source itself, whose pages are still needed
        if made.data_ptr() != value.data_ptr():
            drop_pages(value)
        return made

    return LazyTensor(shape, dtype, make)


def _lazy(tensor: Tensor | LazyTensor) -> LazyTensor:
    return tensor if isinstance(tensor, LazyTensor) else LazyTensor(tensor.shape, tensor.dtype, lambda: tensor)


def _scales(value: Tensor) -> Tensor:
    return value.float().flatten(1).abs().amax(1).clamp(min=1e-12) / 127  # the clamp is for channels that are all zero


def _to_int8(value: Tensor) -> Tensor:
    rows = value.float().flatten(1)
    return (rows / _scales(value)[:, None]).round().to(torch.int8).view(value.shape)


def dequantized(name: str, stored: Mapping[str, Tensor]) -> Tensor | LazyTensor:
    """A stored tensor; an int8 one with scales as a lazy float32 tensor."""
    packed, scale = stored[name], stored.get(name + SCALE)  # scales exist for int8 only
    if scale is None:
        return packed
    return LazyTensor(packed.shape, torch.float32, lambda: _dequantize(packed, scale))


def _dequantize(packed: Tensor, scale: Tensor) -> Tensor:
    made = packed.float().mul_(scale.view(-1, *[1] * (packed.ndim - 1)))
    drop_pages(packed)
    return made
