"""Puts state dicts into modules: strictly, tensor by tensor, without initializing what is overwritten."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dalle.checkpoints.lazy_tensor import LazyTensor, NotFiniteError, Tensors, is_finite
from dalle.checkpoints.mapped_files import drop_pages
from dalle.checkpoints.quantization import EXACT
from dalle.config import flat, to_dict
from dalle.kernels.linear import Int8Linear, Linear

_Module = TypeVar("_Module", bound=nn.Module)
_DEPTHS = ("depth", "layers", "blocks")  # names of configs' numbers of layers


@contextmanager
def skip_init() -> Iterator[None]:
    """Skips parameter initialization of modules built in this block; `load_weights` overwrites the values.

    Memory is allocated but not touched. (Building on the meta device instead makes torch import 100 MB of Python to
    "initialize" meta tensors.)
    """
    # torch.nn.init is patched and not each class, as modules call it by name from anywhere
    functions = init_functions()
    try:
        for name in functions:
            setattr(nn.init, name, lambda tensor, *_, **__: tensor)
        yield
    finally:
        for name, function in functions.items():
            setattr(nn.init, name, function)


def init_functions() -> dict[str, Callable[..., Any]]:
    """The functions of `torch.nn.init` that fill a tensor in place, by name."""
    return {name: getattr(nn.init, name) for name in dir(nn.init) if name.endswith("_") and name[0] != "_"}


def load_weights(
    module: _Module, tensors: Tensors, source: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> _Module:
    """Load a state dict strictly into a module, and put it on a device in evaluation mode.

    Args:
        module: built under `skip_init`, or on the meta device within `training.distributed.sharded_init`.
        tensors: its state dict; values are copied, so that their file may change afterward.
        source: name of the source in error messages.
        device: where to put the module.
        dtype: floating-point dtype of its weights; None keeps the module's (float32). torch.int8 replaces each `Linear`
            by an `Int8Linear` as soon as its weight is read (sampling only), and keeps all else in float32.

    Raises:
        NotFiniteError: a weight is nan or infinite.
        ValueError: keys are missing or unexpected, or shapes differ; or `dtype` is none, such as its name.
    """
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype is {dtype!r}: give one of torch, such as torch.bfloat16")
    check_fit(module, tensors, source)
    eight, dtype = dtype == torch.int8, None if dtype == torch.int8 else dtype
    # On the meta device only while FSDP shards are built (`sharded_init`): there the whole value never stays
    sharded = any(parameter.is_meta for parameter in module.parameters())
    for name, own in module.state_dict(keep_vars=True).items():  # keep_vars: parameters, not copies of their data
        place, _, leaf = name.rpartition(".")
        value = tensors[name]
        value = value() if isinstance(value, LazyTensor) else value
        if not is_finite(value):
            raise NotFiniteError(
                f"{source}: {name} is nan or infinite: its run has diverged (use an earlier checkpoint), or "
                "the file is damaged (download it again)"
            )
        owner = module.get_submodule(place)
        if eight and leaf == "weight" and isinstance(owner, Linear):
            _quantize(module, place, owner, value.to(device))
            drop_pages(value)
            # A bias follows and is registered in the layer that stands there then
            continue
        kept = dtype is None or not own.is_floating_point() or leaf in EXACT
        kind = own.dtype if dtype is None or kept else dtype
        made = own.detach()
        if sharded and isinstance(
            own, nn.Parameter
        ):  # `register_parameter` is patched there and keeps this rank's shard
            made = value.to(kind)
        else:
            if (made.dtype, made.device) != (kind, torch.device(device)):
                made = torch.empty(own.shape, dtype=kind, device=device)
            made.copy_(value)
        # Replaced rather than filled: dtype, device and (of a shard) the shape may differ from what was built
        if isinstance(own, nn.Parameter):
            owner.register_parameter(leaf, nn.Parameter(made, own.requires_grad))
        else:
            owner._buffers[leaf] = made
        drop_pages(value)  # at most one tensor of the file stays resident
    # FSDP moves and casts shards itself
    return module.eval() if sharded else module.to(device=device, dtype=dtype).eval()


def _quantize(module: nn.Module, place: str, linear: Linear, weight: Tensor) -> None:
    """Put an 8-bit layer with this weight in place of a linear one, whose bias is kept."""
    linear.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
    above, _, name = place.rpartition(".")
    setattr(module.get_submodule(above), name, Int8Linear(linear))


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict strictly into an initialized module; values are cast to the module's dtypes.

    Args:
        module: the module to load into.
        tensors: the state dict.
        source: name of the source in error messages.

    Raises:
        ValueError: keys are missing or unexpected, or shapes differ.
    """
    check_fit(module, tensors, source)
    module.load_state_dict(dict(tensors))


def check_depth(config: Any, tensors: Tensors, source: str) -> None:
    """Compare the numbers of layers in a config with the weights, before any is built: 100,000 blocks take minutes.

    Args:
        config: config of the module, a dataclass.
        tensors: its state dict.
        source: name of what has the config, in error messages.

    Raises:
        ValueError: a number of layers is larger than the number of tensors, of which each layer has at least one.
    """
    for key, value in flat(to_dict(config)).items():
        most = max(value, default=0) if isinstance(value, list) else value
        if key.rpartition(".")[2] in _DEPTHS and isinstance(most, int) and most > len(tensors):
            raise ValueError(
                f"{source}: {key} is {most:,}, but the weights have only {len(tensors)} tensors: restore the original"
            )


def check_fit(
    module: nn.Module,
    tensors: Tensors,
    source: str,
    display_name: Callable[[str], str] = str,
    causes: tuple[str, str] = ("", ""),
) -> None:
    """Check that a state dict matches a module, which may be on the meta device.

    Args:
        module: the module.
        tensors: the state dict.
        source: name of the source in error messages.
        display_name: maps a tensor's name to the one to show.
        causes: likely causes to add to the message, of different keys and of different shapes.

    Raises:
        ValueError: keys are missing or unexpected, shapes differ, or weights are whole numbers.
    """
    own = module.state_dict()
    wrong = [
        f"{display_name(name)} is {list(tensors[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    whole = [  # copied into weights they would be rounded to nothing, in silence
        f"{display_name(name)} is {tensors[name].dtype}, expected {own[name].dtype}"
        for name in own
        if name in tensors and own[name].is_floating_point() and not tensors[name].dtype.is_floating_point
    ]
    missing = [f"{display_name(name)} {list(own[name].shape)}" for name in own if name not in tensors]
    unexpected = [display_name(name) for name in tensors if name not in own]
    problems = [
        f"{title}: {_some(names)}"
        for title, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", wrong),
            ("of another dtype", whole),
        )
        if names
    ]
    if problems:
        cause = causes[0] if missing or unexpected else causes[1] if wrong else ""
        raise ValueError(
            f"{source} does not fit this architecture; {'; '.join([*problems, cause] if cause else problems)}"
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
