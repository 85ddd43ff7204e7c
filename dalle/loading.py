"""A folder of weights (or a hub id) to a module that is ready to use. Knows nothing of how the weights were trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from dalle import text
from dalle.artifact import load_into, part, read_config, read_tensors
from dalle.clip import CLIP, CLIPConfig
from dalle.config import from_dict
from dalle.hub import resolve
from dalle.image import ImageTokenizer, ImageTokenizerConfig, build
from dalle.model import DALLE, DALLEConfig
from dalle.published.image_tokenizers import read_image_tokenizer
from dalle.text import TextTokenizer

WEIGHTS_FILE = "model.safetensors"

_Module = TypeVar("_Module", bound=nn.Module)
_Device = str | torch.device

# stage in config.yaml -> what it is, and what loads it
_STAGES = {
    "text_tokenizer": ("a text tokenizer", "dalle.load_text_tokenizer"),
    "image_tokenizer": ("an image tokenizer", "dalle.load_image_tokenizer"),
    "clip": ("a CLIP", "dalle.load_clip"),
    "dalle": ("a DALL-E", "dalle.load_model"),
}


def load_text_tokenizer(source: str | Path) -> TextTokenizer:
    """Load a text tokenizer.

    Args:
        source: Local folder or hub id `owner/name`.

    Raises:
        ValueError: Nothing is there, it is something else, or its files are broken.
    """
    folder, _ = _open(source, "text_tokenizer")
    return text.load(folder)


def load_image_tokenizer(
    source: str | Path, device: _Device = "cpu", dtype: torch.dtype | None = None
) -> ImageTokenizer:
    """Load an image tokenizer in evaluation mode.

    Args:
        source: Local folder or hub id `owner/name`; or a file or folder as OpenAI, taming-transformers or LlamaGen have
            published them (docs/checkpoints.md).
        device: Where its weights go.
        dtype: Floating type of its weights; None: float32.

    Raises:
        ValueError: Nothing is there, it is something else, or its weights do not fit its config.
    """
    path = resolve(source)
    if not (path / "config.yaml").is_file():  # none of ours
        found = read_image_tokenizer(path)
        foreign = build(found.config)
        load_into(foreign, found.tensors, str(source))
        return foreign.to(device=device, dtype=dtype).eval()
    folder, content = _open(path, "image_tokenizer")
    module = build(from_dict(ImageTokenizerConfig, content["model"], _origin(folder)))
    return _fill(module, folder, device, dtype)


def load_clip(source: str | Path, device: _Device = "cpu", dtype: torch.dtype | None = None) -> CLIP:
    """Load a CLIP in evaluation mode, with the text tokenizer from its folder, so that it takes strings.

    Args:
        source: Local folder or hub id `owner/name`.
        device: Where its weights go.
        dtype: Floating type of its weights; None: float32.

    Raises:
        ValueError: Nothing is there, it is something else, or its weights do not fit its config.
    """
    folder, content = _open(source, "clip")
    module = _fill(CLIP(from_dict(CLIPConfig, content["model"], _origin(folder))), folder, device, dtype)
    module.tokenizer = load_text_tokenizer(part(folder, "text_tokenizer"))
    return module


def load_model(source: str | Path, device: _Device = "cpu", dtype: torch.dtype | None = None) -> DALLE:
    """Load a DALL-E transformer in evaluation mode; `dalle.TextToImage` loads its tokenizers too.

    Args:
        source: Local folder or hub id `owner/name`.
        device: Where its weights go.
        dtype: Floating type of its weights; None: float32.

    Raises:
        ValueError: Nothing is there, it is something else, or its weights do not fit its config.
    """
    folder, content = _open(source, "dalle")
    return _fill(DALLE(from_dict(DALLEConfig, content["model"], _origin(folder))), folder, device, dtype)


def _open(source: str | Path, stage: str) -> tuple[Path, dict[str, Any]]:
    """The local folder of `source` and its config.yaml, which must say that it is of this stage."""
    folder = resolve(source)
    content = read_config(folder)
    found = content.get("stage")
    wanted, _ = _STAGES[stage]
    if found in _STAGES and found != stage:
        what, loader = _STAGES[found]
        raise ValueError(f"{source} holds {what}, expected {wanted}: load it with {loader}, or give another folder")
    if found != stage:
        raise ValueError(
            f"{_origin(folder)} says stage: {found!r}, expected {stage!r}: give the folder of {wanted} made by train.py"
        )
    if not isinstance(content.get("model"), dict):
        raise ValueError(f"{_origin(folder)} has no `model:` part: expected the architecture of {wanted} there")
    return folder, content


def _origin(folder: Path) -> str:
    return str(folder / "config.yaml")


def _fill(module: _Module, folder: Path, device: _Device, dtype: torch.dtype | None) -> _Module:
    file = folder / WEIGHTS_FILE
    load_into(module, read_tensors(file), str(file))
    return module.to(device=device, dtype=dtype).eval()
