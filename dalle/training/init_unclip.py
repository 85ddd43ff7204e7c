"""Fine-tuning the parts of an unCLIP: where `init_from` of a prior, decoder or upsampler finds config and weights.

`init_from` names a folder of the part itself, of a whole unCLIP, or of a published one, which is converted first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dalle.checkpoints.model_folder import ModelFolder
from dalle.checkpoints.published.unclip import read_unclip
from dalle.checkpoints.source import open_source
from dalle.config import to_dict


class InitialPart(NamedTuple):
    """What a recipe takes over from the part that `init_from` names."""

    model: Mapping[str, Any]
    sampling: Mapping[str, Any] | None
    clip: str | None


def part_name(data: Mapping[str, Any]) -> str:
    """Which part of an unCLIP a recipe, as plain data, trains: "prior", "decoder" or "upsampler"."""
    if data.get("stage") == "prior":
        return "prior"
    model = data.get("model")
    return "upsampler" if isinstance(model, Mapping) and model.get("kind") == "upsampler" else "decoder"


def initial_part(data: Mapping[str, Any], source: str, converted: Path) -> InitialPart:
    """Read the config of the part that a recipe goes on from. Opens no weights.

    Args:
        data: recipe as plain data.
        source: its `init_from`.
        converted: where a published unCLIP will be converted to.

    Raises:
        ValueError: nothing is there, it has no such part, or it cannot be trained.
    """
    name = part_name(data)
    opened = open_source(source)
    if isinstance(opened, ModelFolder):
        folder = part_folder(opened, name)
        model, sampling = folder.config.get("model") or {}, folder.config.get("sampling")
        clip = str(folder.component("clip").path) if "clip" in folder.components else None
    else:
        published = read_unclip(opened)
        if name not in published.parts:
            raise ValueError(f"init_from: {source} has no {name}, but {', '.join(published.parts)}")
        model, sampling = to_dict(published.parts[name].config), published.sampling.get(name)
        # An upsampler reads no embeddings, so that it has no CLIP
        clip = None if name == "upsampler" else str(converted / "clip")
    if model.get("kind") == "latents":
        raise ValueError(
            f"init_from: {source} decodes to latents, which cannot be trained; its prior can (stage prior)"
        )
    return InitialPart(model, sampling, clip)


def part_folder(folder: ModelFolder, name: str) -> ModelFolder:
    """The folder of a part: itself, or that inside the folder of a whole unCLIP.

    Raises:
        ValueError: it is something else, or has no such part.
    """
    stage = folder.config.get("stage")
    if stage == "unclip":
        if name not in folder.components:
            raise ValueError(f"init_from: {folder.path} has no {name}")
        return folder.component(name)
    wanted = "prior" if name == "prior" else "diffusion"
    if stage != wanted:
        raise ValueError(f"init_from: {folder.path} is of stage {stage!r}; expected {wanted}, or a whole unclip")
    return folder
