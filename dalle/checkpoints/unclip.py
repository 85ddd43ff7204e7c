"""An unCLIP as one folder: prior, decoder, upsampler, and the CLIP that they stand on, once."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dalle.checkpoints import model_folder
from dalle.checkpoints.load import Source, load_clip, load_diffusion, load_prior, open_source
from dalle.checkpoints.model_folder import ModelFolder
from dalle.config import from_dict
from dalle.files import atomic_folder
from dalle.generation.decoder import DiffusionSamplingConfig
from dalle.generation.prior import PriorSamplingConfig
from dalle.models.autoregressive_prior import AutoregressivePrior
from dalle.models.clip import CLIP
from dalle.models.diffusion_decoder import DiffusionDecoder
from dalle.models.diffusion_prior import DiffusionPrior
from dalle.models.upsampler import Upsampler


@dataclass(frozen=True)
class UnCLIPParts:
    """All of an unCLIP, in evaluation mode.

    Attributes:
        upsampler: None: images are as large as the decoder makes them.
        prior_sampling: how each part is sampled if nothing else is said, as the three that follow.
        judge: what scores images: the CLIP itself, or another.
        model_hash: sha256 of the folder.
    """

    clip: CLIP
    prior: DiffusionPrior | AutoregressivePrior
    decoder: DiffusionDecoder
    upsampler: Upsampler | None
    prior_sampling: PriorSamplingConfig
    decoder_sampling: DiffusionSamplingConfig
    upsampler_sampling: DiffusionSamplingConfig
    judge: CLIP
    model_hash: str


def assemble(
    out: Path, prior: str | Path, decoder: str | Path, upsampler: str | Path | None = None, card: str | None = None
) -> None:
    """Write the folder of an unCLIP from those of its parts.

    Raises:
        ValueError: a part is something else, prior and decoder are of different CLIPs, or the upsampler does not begin
            where the decoder ends.
    """
    sources = {"prior": prior, "decoder": decoder} | ({} if upsampler is None else {"upsampler": upsampler})
    folders = {name: _opened(source) for name, source in sources.items()}
    clip = _checked(folders)
    with atomic_folder(out) as new:
        shutil.copytree(clip.path, new / "clip", ignore=shutil.ignore_patterns("README.md", "*.png"))
        recorded = {"clip": {"path": "clip", "sha256": clip.sha256}}
        for name, folder in folders.items():
            shutil.copytree(folder.path, new / name, ignore=shutil.ignore_patterns("README.md", "*.png", "clip"))
            if "clip" in folder.components:  # it lies beside them, once
                shared = {"parts": {"clip": {"path": "../clip", "sha256": clip.sha256}}}
                model_folder.write_config(new / name, folder.config | shared)
            recorded[name] = {"path": name, "sha256": ModelFolder(new / name).sha256}
        model_folder.write_config(new, {"stage": "unclip", "model": {}, "parts": recorded})
        if card is not None:
            (new / "README.md").write_text(card, encoding="utf-8")


def load_unclip(
    source: Source,
    prior: Source | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    clip: Source | None = None,
) -> UnCLIPParts:
    """Load an unCLIP.

    Args:
        source: folder that `assemble` wrote, or its hub id.
        prior: another prior, of the same CLIP; None is its own.
        device: where all of it goes.
        dtype: arithmetic of decoder and upsampler; None is float32. Prior and CLIP stay in float32.
        clip: another CLIP, which scores the images; None: its own does.

    Raises:
        ValueError: nothing is there, it is something else, or its parts do not fit each other.
    """
    folder = _opened(source)
    if folder.config.get("stage") != "unclip":
        raise ValueError(
            f"{folder.path} is of stage {folder.config.get('stage')!r}, expected 'unclip': "
            "`python -m dalle assemble` puts its parts together"
        )
    names = ("prior", "decoder", "upsampler")
    folders: dict[str, ModelFolder] = {name: folder.component(name) for name in names if name in folder.components}
    if prior is not None:
        folders["prior"] = _opened(prior)
    own = load_clip(_checked(folders), device)
    decoder = load_diffusion(folders["decoder"], device, dtype)
    upsampler = load_diffusion(folders["upsampler"], device, dtype) if "upsampler" in folders else None
    assert isinstance(decoder, DiffusionDecoder) and isinstance(upsampler, (Upsampler, type(None)))
    return UnCLIPParts(
        own,
        load_prior(folders["prior"], device),
        decoder,
        upsampler,
        _sampling(PriorSamplingConfig, folders["prior"]),
        _sampling(DiffusionSamplingConfig, folders["decoder"]),
        _sampling(DiffusionSamplingConfig, folders.get("upsampler")),
        own if clip is None else load_clip(clip, device),
        folder.sha256,
    )


def is_unclip(source: Source) -> bool:
    """Whether a source names an unCLIP of ours.

    Raises:
        ValueError: nothing is there.
    """
    found = open_source(source)
    return isinstance(found, ModelFolder) and found.config.get("stage") == "unclip"


def _opened(source: Source) -> ModelFolder:
    found = open_source(source)
    if isinstance(found, Path):
        raise ValueError(f"{source} has no config.yaml: give a folder made by train.py or `python -m dalle assemble`")
    return found


def _checked(folders: dict[str, ModelFolder]) -> ModelFolder:
    """The CLIP of the parts, which must fit each other."""
    for name in ("prior", "decoder"):
        if name not in folders:
            raise ValueError(f"there is no {name}: an unCLIP has a prior and a decoder, and perhaps an upsampler")
    for name, folder in folders.items():
        found, kind = folder.config.get("stage"), (folder.config.get("model") or {}).get("kind")
        if (found, kind) not in {("prior", "diffusion"), ("prior", "autoregressive"), ("diffusion", name)} or (
            (found == "prior") != (name == "prior")
        ):
            raise ValueError(f"{folder.path} is of stage {found!r} and kind {kind!r}: it cannot be the {name}")
    clips = {name: folders[name].component("clip") for name in ("prior", "decoder")}
    hashes = {name: clip.sha256 for name, clip in clips.items()}
    if hashes["prior"] != hashes["decoder"]:
        raise ValueError(
            f"prior and decoder are of different CLIPs (sha256 {hashes['prior'][:12]}... and "
            f"{hashes['decoder'][:12]}...): train both on one"
        )
    if "upsampler" in folders:
        size = folders["decoder"].config["model"].get("image_size")
        low = folders["upsampler"].config["model"].get("low_size")
        if size != low:
            raise ValueError(f"the decoder makes images of {size} pixels a side, the upsampler takes {low}")
    return clips["decoder"]


def _sampling(schema: type, folder: ModelFolder | None) -> Any:
    found = {} if folder is None else folder.config.get("sampling") or {}
    return from_dict(schema, found, "sampling" if folder is None else folder.origin)
