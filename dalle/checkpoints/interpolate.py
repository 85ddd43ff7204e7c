"""Linear interpolation between the weights of two models: WiSE-FT (Wortsman et al. 2021, arXiv 2109.01903, eq. 1)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dalle.checkpoints.lazy_tensor import LazyTensor, Tensors
from dalle.checkpoints.load import load_clip, load_image_tokenizer, load_model
from dalle.checkpoints.model_folder import ModelFolder
from dalle.checkpoints.modules import check_fit
from dalle.checkpoints.source import open_source

log = logging.getLogger(__name__)

_LOADERS: dict[str, Callable[[str], nn.Module]] = {
    "clip": load_clip,
    "dalle": load_model,
    "image_tokenizer": load_image_tokenizer,
}


def interpolate(folder: Path, tensors: Tensors, source: str, share: float) -> dict[str, Tensor | LazyTensor]:
    """Weights on the straight line from what a training began with to what it came to.

    Between the two a fine-tuned model often keeps most of what it knew and most of what it has learned.

    Args:
        folder: a model folder, as written by train.py.
        tensors: its weights, or those of a checkpoint.
        source: the model to mix with, ours or published.
        share: weight of `tensors`, from 0 (only the source) to 1 (only `tensors`).

    Returns:
        The mixed tensors by name, evaluated lazily; tensors of integers are those of `tensors`.

    Raises:
        ValueError: the share is out of range, or the source has another stage or architecture.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"--interpolate is {share:g}: give a weight from 0 (only the source) to 1 (only the run)")
    stage = str(ModelFolder(folder).config.get("stage"))
    if stage not in _LOADERS:
        raise ValueError(
            f"{folder} has the stage {stage!r}, which has no weights to mix: expected {', '.join(_LOADERS)}"
        )
    other = _LOADERS[stage](source)
    _check_tokenizers(ModelFolder(folder), open_source(source))
    check_fit(other, tensors, str(folder), causes=(f"its architecture differs from that of {source}",) * 2)
    start = other.state_dict()
    return {name: _lerp(start[name], value, share) for name, value in tensors.items()}


def _check_tokenizers(own: ModelFolder, other: ModelFolder | Path) -> None:
    """Refuse to mix weights that read other tokens, and say if they may draw other codes, where both folders tell."""
    if isinstance(other, Path):  # published files
        return
    for name in ("text_tokenizer", "image_tokenizer"):
        both = name in own.components and name in other.components
        if not both or own.unchecked_component(name).sha256 == other.unchecked_component(name).sha256:
            continue
        line = f"{other} has another {name} than {own}: a mean of weights for both would mean nothing"
        if name == "text_tokenizer":
            raise ValueError(line)
        log.warning("%s, unless their codes are the same", line)


def _lerp(start: Tensor, end: Tensor | LazyTensor, share: float) -> Tensor | LazyTensor:
    if not start.is_floating_point():  # counters and masks
        return end

    def make() -> Tensor:
        value = end() if isinstance(end, LazyTensor) else end
        return torch.lerp(start.float(), value.float(), share)

    return LazyTensor(start.shape, torch.float32, make)
