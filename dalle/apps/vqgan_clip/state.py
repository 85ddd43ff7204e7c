"""The state of a painting as one safetensors file, to go on from; and the hash by which it knows its models."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn, uint8

from dalle.apps.vqgan_clip.optimize import Painter
from dalle.apps.vqgan_clip.options import PaintOptions
from dalle.config import from_dict, to_dict
from dalle.files import atomic_file

_KEY = "dalle.paint"
_TENSORS = ("values", "average", "start")


@dataclass(frozen=True)
class State:
    """What a file holds."""

    source: Path
    options: dict[str, Any]  # of PaintOptions, as plain data
    models: dict[str, str]
    step: int
    since_moved: int
    tensors: dict[str, Tensor]


def save_state(painter: Painter, path: Path) -> None:
    """Write the file whole or not at all."""
    tensors = {name: getattr(painter.drawer, name).detach().cpu().contiguous() for name in _TENSORS}
    if painter.mask is not None and painter.kept is not None:
        tensors |= {"mask": painter.mask.cpu().contiguous(), "kept": painter.kept.cpu().contiguous()}
    for name, value in painter.optimizer.state.get(painter.drawer.values, {}).items():
        tensors[f"optimizer.{name}"] = value.detach().cpu().contiguous()
    content = {
        "options": to_dict(painter.options),
        "models": painter.models,
        "step": painter.step,
        "since_moved": painter.since_moved,
    }
    try:
        with atomic_file(path) as part:
            save_file(tensors, part, {_KEY: json.dumps(content, ensure_ascii=False)})
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(f"{path} cannot be written ({error})") from error


def read_state(path: Path) -> State:
    """Read a file that `save_state` has written.

    Raises:
        ValueError: there is none, or it is something else or broken.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such state; give the state.safetensors that a painting has left")
    try:
        with safe_open(path, "pt") as file:
            content = json.loads((file.metadata() or {}).get(_KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except SafetensorError as error:
        raise ValueError(f"{path} is no state of a painting, or a truncated one ({error}): give another") from error
    if content is None or not set(_TENSORS) <= set(tensors):
        raise ValueError(f"{path} is no state of a painting: give the state.safetensors that one has left")
    return State(path, content["options"], content["models"], content["step"], content["since_moved"], tensors)


def changed(state: State, given: dict[str, Any]) -> PaintOptions:
    """The options of a state, with some of them changed.

    Raises:
        ValueError: one is unknown or out of range, or belongs to the beginning of a painting.
    """
    for name in ("init", "mask", "start"):
        if name in given:
            raise ValueError(
                f"{name} is of the beginning, and {state.source} goes on: begin anew with it, or leave it out"
            )
    options: PaintOptions = from_dict(PaintOptions, state.options | given, str(state.source))
    return options


def restore(painter: Painter, state: State) -> None:
    """Bring a painter to where the state was left.

    Raises:
        ValueError: it was painted with other models, in another size or by another drawer.
    """
    for name, found in painter.models.items():
        if state.models.get(name) != found:
            raise ValueError(
                f"{state.source} was painted with another {name} ({state.models.get(name, 'none')[:12]}, here "
                f"{found[:12]}): give the one that it was painted with"
            )
    for name in _TENSORS:
        target = getattr(painter.drawer, name)
        if target.shape != state.tensors[name].shape:
            raise ValueError(
                f"{state.source} holds values of shape {list(state.tensors[name].shape)}, here they are "
                f"{list(target.shape)}: go on with the size and the drawer that it was painted with"
            )
        target.data.copy_(state.tensors[name])
    prefix = "optimizer."
    kept = {name.removeprefix(prefix): t for name, t in state.tensors.items() if name.startswith(prefix)}
    if kept and painter.options.optimizer == state.options["optimizer"]:
        groups = painter.optimizer.state_dict()["param_groups"]
        painter.optimizer.load_state_dict({"state": {0: kept}, "param_groups": groups})
    painter.step, painter.since_moved = state.step, state.since_moved


def fingerprint(module: nn.Module) -> str:
    """sha256 of a module's weights by name, as they were loaded: the same for all sources of the same weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(uint8).numpy().tobytes())
    return digest.hexdigest()
