"""The state dict in the content of a published file: found, and its names freed of what wrappers put into them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from dalle.checkpoints.published.others import reject_unsupported
from dalle.checkpoints.published.unpickler import OpaqueObject

# Wrappers whose names may stand anywhere, and those that are in front of all names
_INFIX_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_PREFIX_WRAPPERS = ("module.", "model.")


def named_tensors(tree: Any) -> dict[str, Tensor]:
    """The named tensors of a checkpoint, without wrappers (`strip_wrappers`).

    Args:
        tree: a state dict; a dict with one under `state_dict`, `model` or `weights`; a pickled module; or the content
            of a TorchScript archive.

    Raises:
        ValueError: it is none of these.
    """
    return strip_wrappers(stored_state(tree))


def strip_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors to the names in the bare module.

    DistributedDataParallel, torch.compile, FSDP, activation checkpointing and Lightning insert parts into names.
    """
    names = list(tensors)
    for wrapper in find_wrappers(names):
        front = wrapper in _PREFIX_WRAPPERS
        names = [name.removeprefix(wrapper) if front else name.replace(wrapper, "") for name in names]
    return dict(zip(names, tensors.values(), strict=True))


def find_wrappers(names: Iterable[str]) -> list[str]:
    """The wrapper parts in names, in the order in which to remove them."""
    names = list(names)
    # Infixes first: they may hide a prefix
    found = [wrapper for wrapper in _INFIX_WRAPPERS if any(wrapper in name for name in names)]
    for wrapper in found:
        names = [name.replace(wrapper, "") for name in names]
    # A prefix is a wrapper's only if all names have it
    while names and (wrapper := next((w for w in _PREFIX_WRAPPERS if all(name.startswith(w) for name in names)), "")):
        reject_unsupported(names)  # checked first: language models' own names begin with "model."
        found.append(wrapper)
        names = [name.removeprefix(wrapper) for name in names]
    return found


def stored_state(tree: Any) -> dict[str, Tensor]:
    """Like `named_tensors`, but by the exact names in the file."""
    if isinstance(tree, OpaqueObject) and isinstance(tree.state, dict):
        found = dict(_of_module(tree, "") if "_modules" in tree.state else _of_script(tree, ""))  # a pickled nn.Module
        if found:
            return found
    if isinstance(tree, dict):
        for key in ("state_dict", "model", "weights"):
            if isinstance(tree.get(key), dict):
                return stored_state(tree[key])
        tensors = {str(name): value for name, value in tree.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise ValueError("it holds no named tensors")


def training_options(tree: Any) -> dict[str, Any]:
    """The training options stored beside the weights as an argparse.Namespace; {} if there are none."""
    arguments = tree.get("args") if isinstance(tree, dict) else None
    state = arguments.state if isinstance(arguments, OpaqueObject) else arguments
    return state if isinstance(state, dict) else {}


def _of_module(module: OpaqueObject, prefix: str) -> list[tuple[str, Tensor]]:
    own = module.state if isinstance(module.state, dict) else {}
    found = [
        (prefix + name, value)
        for part in ("_parameters", "_buffers")
        for name, value in (own.get(part) or {}).items()
        if isinstance(value, Tensor)
    ]
    for name, child in (own.get("_modules") or {}).items():
        if isinstance(child, OpaqueObject):
            found += _of_module(child, f"{prefix}{name}.")
    return found


def _of_script(module: OpaqueObject, prefix: str) -> list[tuple[str, Tensor]]:
    """Tensors of a TorchScript module, where parameters, buffers and submodules are plain attributes."""
    found: list[tuple[str, Tensor]] = []
    for name, value in module.state.items() if isinstance(module.state, dict) else ():
        if isinstance(value, Tensor):
            found.append((f"{prefix}{name}", value))
        elif isinstance(value, OpaqueObject):
            found += _of_script(value, f"{prefix}{name}.")
    return found
