"""The state of a painting as one safetensors file, to resume from; it names its models by the hash of their weights."""

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
_CANVAS_TENSORS = {"values": "values", "average": "average", "initial": "start"}  # attribute -> name in the file
_MASK, _KNOWN_IMAGE = "mask", "kept"  # names in the file
_OPTIMIZER = "optimizer."  # prefix of names in the file


@dataclass(frozen=True)
class State:
    """The content of a state file."""

    source: Path
    options: dict[str, Any]  # of PaintOptions, as plain data
    models: dict[str, str]
    step: int
    steps_since_reset: int
    canvas: dict[str, Tensor]  # by attribute of `Canvas`
    optimizer: dict[str, Tensor]  # by name, for the values of the canvas
    mask: Tensor | None
    known_image: Tensor | None


def save_state(painter: Painter, path: Path) -> None:
    """Write the state of a painter, atomically."""
    tensors = {name: getattr(painter.canvas, attribute).detach() for attribute, name in _CANVAS_TENSORS.items()}
    if painter.mask is not None and painter.known_image is not None:
        tensors |= {_MASK: painter.mask, _KNOWN_IMAGE: painter.known_image}
    optimizer_state = painter.optimizer.state.get(painter.canvas.values, {})  # {} before the first step
    tensors |= {_OPTIMIZER + name: value.detach() for name, value in optimizer_state.items()}
    content = {
        "options": to_dict(painter.options),
        "models": painter.models,
        "step": painter.step,
        "since_moved": painter.steps_since_reset,
    }
    metadata = {_KEY: json.dumps(content, ensure_ascii=False)}
    try:
        with atomic_file(path) as part:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, part, metadata)
    except SafetensorError as error:  # raised in place of OSError, for example on a full disk
        raise OSError(f"{path} cannot be written ({error})") from error


def read_state(path: Path) -> State:
    """Read a file that `save_state` has written.

    Raises:
        ValueError: there is no such file, or it is something else or broken.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such state; give the state.safetensors that a painting has left")
    try:
        with safe_open(path, "pt") as file:
            content = json.loads((file.metadata() or {}).get(_KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is not a dict
    except SafetensorError as error:
        raise ValueError(f"{path} is no state of a painting, or a truncated one ({error}): give another") from error
    if content is None or not set(_CANVAS_TENSORS.values()) <= set(tensors):
        raise ValueError(f"{path} is no state of a painting: give the state.safetensors that one has left")
    options = content["options"]
    if options.get("start") == "grey":  # the name before it was spelled the American way
        options["start"] = "gray"
    return State(
        path,
        options,
        content["models"],
        content["step"],
        content["since_moved"],
        {attribute: tensors[name] for attribute, name in _CANVAS_TENSORS.items()},
        {name.removeprefix(_OPTIMIZER): t for name, t in tensors.items() if name.startswith(_OPTIMIZER)},
        tensors.get(_MASK),
        tensors.get(_KNOWN_IMAGE),
    )


def override_options(state: State, overrides: dict[str, Any]) -> PaintOptions:
    """The options of a state, some of them replaced.

    Raises:
        ValueError: one is unknown or out of range, or has an effect at the beginning of a painting only.
    """
    for name in ("init", "mask", "start"):
        if name in overrides:
            raise ValueError(
                f"{name} is of the beginning, and {state.source} goes on: begin anew with it, or leave it out"
            )
    options: PaintOptions = from_dict(PaintOptions, state.options | overrides, str(state.source))
    return options


def restore(painter: Painter, state: State) -> None:
    """Set a new painter to a state.

    Raises:
        ValueError: the state was painted with other models, in another size or with another drawer.
    """
    for name, digest in painter.models.items():
        if state.models.get(name) != digest:
            raise ValueError(
                f"{state.source} was painted with another {name} ({state.models.get(name, 'none')[:12]}, here "
                f"{digest[:12]}): give the one that it was painted with"
            )
    for attribute, saved in state.canvas.items():
        tensor = getattr(painter.canvas, attribute)
        if tensor.shape != saved.shape:
            raise ValueError(
                f"{state.source} holds values of shape {list(saved.shape)}, here they are {list(tensor.shape)}: go on "
                "with the size and the drawer that it was painted with"
            )
        tensor.data.copy_(saved)
    # Another optimizer starts without the moments of the one before
    if state.optimizer and painter.options.optimizer == state.options["optimizer"]:
        groups = painter.optimizer.state_dict()["param_groups"]
        # 0 is its only parameter
        painter.optimizer.load_state_dict({"state": {0: state.optimizer}, "param_groups": groups})
    painter.step, painter.steps_since_reset = state.step, state.steps_since_reset


def module_hash(module: nn.Module) -> str:
    """sha256 of a module's weights by name: the same for all sources of the same weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(uint8).numpy().tobytes())
    return digest.hexdigest()
