"""Which implementations run: the variable DALLE_KERNELS=native=off,graphs=off,sparse=dense, or `force_backend`."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")

VARIABLE = "DALLE_KERNELS"
_VALUES = {
    "native": ("on", "off"),  # C++ compiled for this machine's CPU
    "graphs": ("on", "off"),  # CUDA graphs of decode steps
    "sparse": ("auto", "dense", "blocked", "flex"),  # the implementation of sparse attention
}
_forced: dict[str, str] = {}


def switch(name: str) -> str:
    """The value of a switch: "native", "graphs" or "sparse".

    Raises:
        ValueError: DALLE_KERNELS has an unknown switch or value.
    """
    return _forced.get(name) or _from_environment().get(name, _VALUES[name][0])  # the first value is the default


@contextmanager
def force_backend(**values: str) -> Iterator[None]:
    """Override switches within this context: `force_backend(native="off", sparse="dense")`."""
    before = dict(_forced)  # contexts may be nested
    _forced.update(_checked(values, "force_backend"))
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


@functools.cache
def _from_environment() -> dict[str, str]:
    pairs = [part.partition("=") for part in os.environ.get(VARIABLE, "").replace(" ", "").split(",") if part]
    return _checked({name: value for name, _, value in pairs}, VARIABLE)


def _checked(values: dict[str, str], source: str) -> dict[str, str]:
    for name, value in values.items():
        if value not in _VALUES.get(name, ()):
            listed = "; ".join(f"{known}={'|'.join(choices)}" for known, choices in _VALUES.items())
            raise ValueError(f"{source} has {name}={value}; the switches are {listed}")
    return values


def allows_native(x: Tensor) -> bool:
    """Whether native operations, which bring their own gradients, may read x: on a CPU, not traced or transformed."""
    return (
        switch("native") == "on"
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and x.numel() > 0
        and type(x) in (Tensor, nn.Parameter)  # fake tensors and other subclasses may have no memory of their own
        and torch._C._functorch.peek_interpreter_stack() is None  # nor do tensors inside vmap and jvp
    )


def allows_native_inference(x: Tensor) -> bool:
    """Whether native operations without gradients may read x: no autograd, autocast, tracing or transform is active."""
    return allows_native(x) and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
