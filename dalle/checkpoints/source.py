"""Finds out what a source of weights is, a model folder of ours or published files, and whether of the wanted stage."""

from __future__ import annotations

from pathlib import Path

from dalle.checkpoints.folder_config import WEIGHTS, check_no_run
from dalle.checkpoints.hub import resolve
from dalle.checkpoints.model_folder import ModelFolder
from dalle.checkpoints.published import ibq, mindalle

Source = str | Path | ModelFolder
"""Local file or folder, hub id, or a model folder that is already open."""

# stage in config.yaml -> description and loader, for error messages
_STAGES = {
    "text_tokenizer": ("a text tokenizer", "dalle.load_text_tokenizer"),
    "image_tokenizer": ("an image tokenizer", "dalle.load_image_tokenizer"),
    "clip": ("a CLIP", "dalle.load_clip"),
    "dalle": ("a DALL-E", "dalle.load_model"),
    "prior": ("a prior of unCLIP", "dalle.load_prior"),
    "diffusion": ("a decoder or an upsampler of unCLIP", "dalle.load_diffusion"),
    "autoencoder": ("an autoencoder of latents", "dalle.checkpoints.load_unclip.load_autoencoder"),
    "unclip": ("an unCLIP with all its parts", "dalle.UnCLIP.from_pretrained"),
}


def open_source(source: Source, family: str | None = None, weights: bool = True) -> ModelFolder | Path:
    """Resolve a source: an open model folder of ours, or the path of published files (always, if `family` is given).

    Args:
        source: what to open.
        family: family of published files; None: it may also be a folder of ours.
        weights: False: of a repository of the hub only small files are fetched, as in `resolve`.

    Raises:
        ValueError: the source does not exist, or is the folder of a run.
    """
    if isinstance(source, ModelFolder):
        return source
    path = resolve(source, weights)
    check_no_run(path)
    parts = [path / name for name in ("text_tokenizer", "image_tokenizer", "clip")]
    if (
        family is None
        and not (path / "config.yaml").exists()
        and any((part / "config.yaml").is_file() for part in parts)
    ):
        raise ValueError(f"{path} has parts of a model folder but no config.yaml: copy the folder whole")
    return ModelFolder(path) if family is None and is_model_folder(path) else path


def is_model_folder(path: Path) -> bool:
    """Whether a folder is a model folder as train.py and `convert` write it.

    A published minDALL-E folder also has a config.yaml, of another kind, and so has Emu3.5's image tokenizer.
    """
    if not (path / "config.yaml").is_file() or mindalle.is_there(path):
        return False
    # Weights of ours tell at once: an IBQ has a model.ckpt, and is known by what its config.yaml says
    return (path / WEIGHTS).is_file() or not ibq.is_there(path)


def open_own(source: Source, stage: str, what: str) -> ModelFolder:
    """Open one of our own model folders, of a stage that has no published form here."""
    folder = open_source(source)
    if isinstance(folder, Path):
        raise ValueError(f"{source} has no config.yaml: give the folder of {what} made by train.py")
    check_stage(folder, stage)
    return folder


def check_stage(folder: ModelFolder, stage: str) -> None:
    """Check that a folder's config.yaml has the expected stage."""
    found = folder.config.get("stage")
    wanted, _ = _STAGES[stage]
    if found in _STAGES and found != stage:
        what, loader = _STAGES[found]
        raise ValueError(
            f"{folder.path} holds {what}, expected {wanted}: load it with {loader}, or give another folder"
        )
    if found != stage:
        raise ValueError(
            f"{folder.origin} says stage: {found!r}, expected {stage!r}: give the folder of {wanted} made by train.py"
        )
    if not isinstance(folder.config.get("model"), dict):
        raise ValueError(f"{folder.origin} has no section `model:`: expected the architecture of {wanted} there")
