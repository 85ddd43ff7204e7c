"""Tensors of ours that are computed from several published ones, such as convolutions that are one for an image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.published.state import SHAPE_ERRORS, derived

Part = tuple[str, Sequence[str], Callable[..., Tensor]]
"""Our name, the published names, and how their tensors, in float32, become ours; `same` takes one as it is."""


class Folded(NamedTuple):
    """The result of `fold`."""

    tensors: dict[str, Tensor | LazyTensor]
    """Ours, as far as the published ones are there."""
    rules: list[tuple[str, str]]
    """(published names, our name), for messages."""
    unknown: list[str]
    """Published names that no part has, sorted."""


def fold(published: Mapping[str, Tensor], parts: Iterable[Part]) -> Folded:
    """Compute our tensors, in float32, when they are read.

    Raises:
        ValueError: tensors have shapes that do not fit together.
    """
    tensors: dict[str, Tensor | LazyTensor] = {}
    rules: list[tuple[str, str]] = []
    names: set[str] = set()
    for ours, sources, make in parts:
        names.update(sources)
        rules.append((" and ".join(sources), ours))
        if all(source in published for source in sources):
            try:
                tensors[ours] = _made([published[source] for source in sources], make)
            except SHAPE_ERRORS:
                shapes = ", ".join(f"{source} {list(published[source].shape)}" for source in sources)
                raise ValueError(f"its tensors do not have the expected shapes: {shapes:.200}") from None
    return Folded(tensors, rules, sorted(set(published) - names))


def same(tensor: Tensor) -> Tensor:
    """The tensor itself."""
    return tensor


def plain(names: Iterable[tuple[str, str]]) -> Iterator[Part]:
    """Weights and biases that are as published, by pairs of names of their modules, ours and theirs."""
    for ours, theirs in names:
        yield from conv(ours, theirs, same)


def conv(
    ours: str, theirs: str, kernel: Callable[..., Tensor], bias: Callable[..., Tensor] | None = None
) -> Iterator[Part]:
    """Weight and bias of one module."""
    yield f"{ours}.weight", [f"{theirs}.weight"], kernel
    yield f"{ours}.bias", [f"{theirs}.bias"], bias or same


def _made(sources: list[Tensor], make: Callable[..., Tensor]) -> Tensor | LazyTensor:
    if make is same:
        return sources[0]
    with torch.device("meta"):  # the shape alone
        size = make(*(torch.empty(source.shape) for source in sources)).shape
    # Sums of 16-bit numbers have more than 16 bits
    lazy = derived(sources, size, lambda: make(*(source.float() for source in sources)).contiguous())
    return LazyTensor(size, torch.float32, lazy.make)
