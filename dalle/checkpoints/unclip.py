"""An unCLIP as one folder: prior, decoder, upsampler, and the CLIP that they stand on, once."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dalle.checkpoints import model_folder
from dalle.checkpoints.build import DIFFUSIONS, build_diffusion, build_prior, build_published
from dalle.checkpoints.folder_config import read_config
from dalle.checkpoints.load import load_clip
from dalle.checkpoints.load_unclip import load_autoencoder, load_diffusion, load_prior
from dalle.checkpoints.model_folder import ModelFolder
from dalle.checkpoints.published.unclip import is_there, read_unclip
from dalle.checkpoints.source import Source, open_source
from dalle.config import from_dict, renamed
from dalle.files import atomic_folder
from dalle.generation.diffusion_decoder import DiffusionSamplingConfig
from dalle.generation.prior import PriorSamplingConfig
from dalle.models.autoregressive_prior import AutoregressivePrior
from dalle.models.clip import CLIP
from dalle.models.diffusion_decoder import DiffusionDecoder
from dalle.models.diffusion_prior import DiffusionPrior
from dalle.models.latent_decoder import LatentDecoder, LatentDecoderConfig
from dalle.models.movq import MoVQ
from dalle.models.upsampler import Upsampler

# What the parts of a folder may be: stage and kind of each
_KINDS = {
    "prior": (("prior", "diffusion"), ("prior", "autoregressive")),
    "decoder": (("diffusion", "decoder"), ("diffusion", "latents")),
    "upsampler": (("diffusion", "upsampler"),),
    "upsampler_last": (("diffusion", "upsampler"),),
    "autoencoder": (("autoencoder", "movq"),),
}


@dataclass(frozen=True)
class UnCLIPParts:
    """All of an unCLIP, in evaluation mode.

    Attributes:
        clip: what embeddings are of; it may have no image tower.
        prior: None: images are made of images alone.
        upsampler: None: images are as large as the decoder makes them.
        upsampler_last: the network of the upsampler's last step; None: the upsampler itself.
        autoencoder: to images, where the decoder makes latents.
        prior_sampling: how each part is sampled if nothing else is said, as the three that follow.
        judge: what scores images: the CLIP itself, or another; None: nothing does.
        model_hash: sha256 of the folder; "" of published files.
    """

    clip: CLIP
    prior: DiffusionPrior | AutoregressivePrior | None
    decoder: DiffusionDecoder | LatentDecoder
    upsampler: Upsampler | None
    upsampler_last: Upsampler | None
    autoencoder: MoVQ | None
    prior_sampling: PriorSamplingConfig
    decoder_sampling: DiffusionSamplingConfig
    upsampler_sampling: DiffusionSamplingConfig
    judge: CLIP | None
    model_hash: str


def assemble(
    out: Path, prior: str | Path, decoder: str | Path, upsampler: str | Path | None = None, card: str | None = None
) -> bool:
    """Write the folder of an unCLIP from those of its parts; of one that is there already the README.md is kept.

    Returns:
        Whether an unCLIP that was there is replaced.

    Raises:
        ValueError: a part is something else or damaged, prior and decoder are of different CLIPs, the upsampler does
            not begin where the decoder ends, or `out` is there and is no unCLIP that may be replaced.
    """
    sources = {"prior": prior, "decoder": decoder} | ({} if upsampler is None else {"upsampler": upsampler})
    folders = {name: _opened(source) for name, source in sources.items()}
    clip = _checked(folders)
    replaced = _check_target(out, folders.values())
    for folder in folders.values():
        folder.check()  # each gets a new hash, by which damage would pass for whole
    with atomic_folder(out) as new:
        # Cards and pictures are of the parts alone, and would describe another model here
        shutil.copytree(clip.path, new / "clip", ignore=shutil.ignore_patterns("README.md", "*.png"))
        recorded = {"clip": {"path": "clip", "sha256": clip.sha256}}
        for name, folder in folders.items():
            shutil.copytree(folder.path, new / name, ignore=shutil.ignore_patterns("README.md", "*.png", "clip"))
            if "clip" in folder.components:  # it lies beside them, once
                shared = {"parts": {"clip": {"path": "../clip", "sha256": clip.sha256}}}
                model_folder.write_config(new / name, folder.config | shared)
            recorded[name] = {"path": name, "sha256": ModelFolder(new / name).sha256}
        model_folder.write_config(new, {"stage": "unclip", "model": {}, "parts": recorded})
        model_folder.write_card(new, card, out)
    return replaced


def _check_target(out: Path, parts: Iterable[ModelFolder]) -> bool:
    """Whether an unCLIP is there; anything else is not replaced, such as one of the parts, which took long to train."""
    place = out.resolve()
    for part in parts:
        source = part.path.resolve()
        # Copying a folder into itself, or replacing what is copied, would lose it
        if place == source or place in source.parents or source in place.parents:
            raise ValueError(f"{out} is, or holds, or lies in {part.path}, a part that is copied: give another folder")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / "config.yaml").is_file() or read_config(out).get("stage") != "unclip":
        raise ValueError(f"{out} is there already and is no unCLIP, so it is not replaced: give another folder")
    return True


def load_unclip(
    source: Source,
    prior: Source | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    clip: Source | None = None,
) -> UnCLIPParts:
    """Load an unCLIP.

    Args:
        source: folder that `assemble` or `python -m dalle convert` wrote, folder of a published one, or a hub id.
        prior: another prior, of the same CLIP; of Kandinsky 2.2, the folder of its prior. None is its own.
        device: where all of it goes.
        dtype: arithmetic of decoder and upsampler; None is float32. Prior and CLIP stay in float32.
        clip: another CLIP, which scores the images; None: its own does, if it has both towers.

    Raises:
        ValueError: nothing is there, it is something else, or its parts do not fit each other.
    """
    found = open_source(source)
    if isinstance(found, Path) and is_there(found):
        return _load_published(found, prior, device, dtype, clip)
    folder = _opened(source)
    if folder.config.get("stage") != "unclip":
        raise ValueError(
            f"{folder.path} is of stage {folder.config.get('stage')!r}, expected 'unclip': "
            "`python -m dalle assemble` puts its parts together"
        )
    if "decoder" not in folder.components:
        raise ValueError(f"{folder.origin}: parts has no decoder, and an unCLIP has one: restore the original")
    # In a fixed order, whatever the order in config.yaml
    folders: dict[str, ModelFolder] = {name: folder.component(name) for name in _KINDS if name in folder.components}
    if prior is not None:
        folders["prior"] = _opened(prior)
    own = load_clip(_checked(folders), device)
    loaded = {
        name: load_diffusion(folders[name], device, dtype)
        for name in ("decoder", "upsampler", "upsampler_last")
        if name in folders
    }
    return UnCLIPParts(
        own,
        load_prior(folders["prior"], device) if "prior" in folders else None,
        **_typed(loaded),
        autoencoder=load_autoencoder(folders["autoencoder"], device, dtype) if "autoencoder" in folders else None,
        prior_sampling=_sampling(PriorSamplingConfig, folders.get("prior")),
        decoder_sampling=_sampling(DiffusionSamplingConfig, folders["decoder"]),
        upsampler_sampling=_sampling(DiffusionSamplingConfig, folders.get("upsampler")),
        judge=_judge(own, clip, device),
        model_hash=folder.sha256,
    )


def _load_published(
    path: Path, prior: Source | None, device: str | torch.device, dtype: torch.dtype | None, clip: Source | None
) -> UnCLIPParts:
    """Load a published unCLIP as it lies there."""
    where = None if prior is None else open_source(prior)
    if isinstance(where, ModelFolder):
        raise ValueError(f"{where.path} is a prior of another CLIP than {path} stands on: leave it out")
    found = read_unclip(path, where)
    own = build_published(CLIP, found.clip, f"{path} (clip)", device)
    own.tokenizer = found.words
    loaded = {
        name: build_published(build_diffusion, found.parts[name], f"{path} ({name})", device, dtype)
        for name in ("decoder", "upsampler", "upsampler_last")
        if name in found.parts
    }
    parts, sampling = found.parts, found.sampling
    return UnCLIPParts(
        own,
        build_published(build_prior, parts["prior"], f"{path} (prior)", device) if "prior" in parts else None,
        **_typed(loaded),
        autoencoder=(
            build_published(MoVQ, parts["autoencoder"], f"{path} (autoencoder)", device, dtype)
            if "autoencoder" in parts
            else None
        ),
        prior_sampling=from_dict(PriorSamplingConfig, sampling.get("prior", {}), str(path)),
        decoder_sampling=from_dict(DiffusionSamplingConfig, sampling["decoder"], str(path)),
        upsampler_sampling=from_dict(DiffusionSamplingConfig, sampling.get("upsampler", {}), str(path)),
        judge=_judge(own, clip, device),
        model_hash="",
    )


def _typed(loaded: Mapping[Any, Any]) -> dict[str, Any]:
    """Decoder, upsampler and the network of its last step, each of the class that it must be."""
    upsamplers = {name: loaded.get(name) for name in ("upsampler", "upsampler_last")}
    assert isinstance(loaded["decoder"], (DiffusionDecoder, LatentDecoder))
    assert all(isinstance(upsampler, (Upsampler, type(None))) for upsampler in upsamplers.values())
    return {"decoder": loaded["decoder"], **upsamplers}


def _judge(own: CLIP, clip: Source | None, device: str | torch.device) -> CLIP | None:
    """What scores images: a given CLIP, or the model's own if it has both towers."""
    if clip is not None:
        return load_clip(clip, device)
    return own if own.config.missing is None else None


def is_unclip(source: Source) -> bool:
    """Whether a source names an unCLIP, of ours or published.

    Raises:
        ValueError: nothing is there, or only a part of an unCLIP.
    """
    found = open_source(source)
    if isinstance(found, Path):
        return is_there(found)
    stage = found.config.get("stage")
    if stage in ("prior", "diffusion"):
        raise ValueError(
            f"{found.path} is of stage {stage!r}, a part of an unCLIP: `python -m dalle assemble` puts its parts "
            "together"
        )
    return bool(stage == "unclip")


def _opened(source: Source) -> ModelFolder:
    found = open_source(source)
    if isinstance(found, Path):
        raise ValueError(f"{source} has no config.yaml: give a folder made by train.py or `python -m dalle assemble`")
    return found


def _checked(folders: dict[str, ModelFolder]) -> ModelFolder:
    """The CLIP of the parts, which must fit each other."""
    for name, folder in folders.items():
        found = folder.config.get("stage"), (folder.config.get("model") or {}).get("kind")
        if found not in _KINDS[name]:
            raise ValueError(f"{folder.path} is of stage {found[0]!r} and kind {found[1]!r}: it cannot be the {name}")
    # An upsampler reads no embeddings
    clips = {name: folders[name].component("clip") for name in ("prior", "decoder") if name in folders}
    hashes = {name: clip.sha256 for name, clip in clips.items()}
    if len(set(hashes.values())) > 1:
        raise ValueError(
            f"prior and decoder are of different CLIPs ({clips['prior'].path} has the sha256 "
            f"{hashes['prior'][:12]}..., {clips['decoder'].path} {hashes['decoder'][:12]}...): train both on one"
        )
    decoder = _diffusion_config(folders["decoder"])
    if isinstance(decoder, LatentDecoderConfig) != ("autoencoder" in folders):
        raise ValueError(
            f"{folders['decoder'].path}: a decoder of latents needs an autoencoder, and another has none: convert the "
            "whole again"
        )
    if "upsampler" in folders:
        size, low = decoder.image_size, _diffusion_config(folders["upsampler"]).low_size
        if size != low:
            raise ValueError(
                f"{folders['decoder'].path} and {folders['upsampler'].path} do not fit: the decoder makes images of "
                f"{size} pixels a side, the upsampler takes {low}"
            )
    return clips["decoder"]


def _diffusion_config(folder: ModelFolder) -> Any:
    """The architecture of a decoder or an upsampler, of which `_checked` has seen the stage and the kind."""
    return from_dict(DIFFUSIONS, renamed(folder.config["model"]), folder.origin)


def _sampling(schema: type, folder: ModelFolder | None) -> Any:
    found = {} if folder is None else folder.config.get("sampling") or {}
    return from_dict(schema, found, "sampling" if folder is None else folder.origin)
