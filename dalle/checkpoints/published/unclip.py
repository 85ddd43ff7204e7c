"""Whole published unCLIPs in diffusers' folders: Karlo, its image variations, and Kandinsky 2.2, as parts of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dalle.checkpoints.published import kandinsky, karlo
from dalle.checkpoints.published.clip import check_text_tokenizer, read_clip
from dalle.checkpoints.published.files import read_json
from dalle.checkpoints.published.prior_transformer import read_prior
from dalle.checkpoints.published.schedulers import Scheduler, read_scheduler
from dalle.checkpoints.published.state import SHAPE_ERRORS, Published
from dalle.checkpoints.published.text_tokenizers import read_text_tokenizer
from dalle.config import to_dict
from dalle.text_tokenizers import TextTokenizer

INDEX = "model_index.json"
_KARLO, _VARIATION = "UnCLIPPipeline", "UnCLIPImageVariationPipeline"
_KANDINSKY, _KANDINSKY_PRIOR = "KandinskyV22Pipeline", "KandinskyV22PriorPipeline"
# Classes of the parts, by their folders
_CLIP = {"tokenizer": "CLIPTokenizer", "text_encoder": "CLIPTextModelWithProjection"}
_KARLO_PARTS = {
    "text_proj": "UnCLIPTextProjModel",
    "decoder": "UNet2DConditionModel",
    "super_res_first": "UNet2DModel",
    "super_res_last": "UNet2DModel",
    "decoder_scheduler": "UnCLIPScheduler",
    "super_res_scheduler": "UnCLIPScheduler",
}
_PARTS: dict[str, dict[str, str]] = {
    _KARLO: {**_CLIP, "prior": "PriorTransformer", "prior_scheduler": "UnCLIPScheduler", **_KARLO_PARTS},
    _VARIATION: {**_CLIP, "image_encoder": "CLIPVisionModelWithProjection", **_KARLO_PARTS},
    _KANDINSKY: {"unet": "UNet2DConditionModel", "movq": "VQModel"},
    _KANDINSKY_PRIOR: {
        **_CLIP,
        "image_encoder": "CLIPVisionModelWithProjection",
        "prior": "PriorTransformer",
        "scheduler": "UnCLIPScheduler",
    },
}
# What their pipelines in diffusers take if nothing else is said; the files do not record it
_PRIOR_STEPS, _KARLO_STEPS, _UPSAMPLER_STEPS, _KANDINSKY_STEPS = 25, 25, 7, 50
_PRIOR_GUIDANCE, _KARLO_GUIDANCE, _KANDINSKY_GUIDANCE = 4.0, 8.0, 4.0


@dataclass(frozen=True)
class PublishedUnCLIP:
    """A published unCLIP, part by part.

    Attributes:
        clip: what it stands on; the image tower may be missing.
        words: its text tokenizer.
        parts: "decoder", and where it has them "prior", "upsampler", "upsampler_last" (the network of the upsampler's
            last step) and "autoencoder" (where the decoder's images are latents).
        sampling: how each part is sampled if nothing else is said, as config.yaml has it.
    """

    clip: Published
    words: TextTokenizer
    parts: Mapping[str, Published]
    sampling: Mapping[str, dict[str, Any]]

    @property
    def family(self) -> str:
        """Name of its family."""
        return self.parts["decoder"].family

    @property
    def license(self) -> str:
        """License of the weights."""
        return self.parts["decoder"].license


def is_there(source: Path) -> bool:
    """Whether a folder holds a pipeline of diffusers, of whatever kind."""
    return (source / INDEX).is_file()


def read_unclip(source: Path, prior: Path | None = None) -> PublishedUnCLIP:
    """Read a published unCLIP.

    Args:
        source: folder of Karlo, of Karlo's image variations, or of Kandinsky 2.2's decoder.
        prior: folder of Kandinsky 2.2's prior.

    Raises:
        ValueError: it is another pipeline, or a part is missing, damaged or of another kind; one line that names it.
    """
    with _naming(source):
        kind = _check_parts(source)
        if kind == _KANDINSKY_PRIOR:
            raise ValueError(
                "it is the prior of Kandinsky 2.2: give kandinsky-2-2-decoder as the model, and this as --prior"
            )
        if kind == _KANDINSKY and prior is None:
            raise ValueError("it is the decoder of Kandinsky 2.2 alone: give kandinsky-2-2-prior as --prior")
        if kind != _KANDINSKY:
            if prior is not None:
                raise ValueError("it has its own prior: leave --prior out")
            return _read_karlo(source, kind)
    assert prior is not None
    return _read_kandinsky(source, prior)


def _check_parts(source: Path) -> str:
    """The class of a pipeline whose parts are all there, each of the class that is read."""
    index = read_json(source / INDEX)
    kind = str(index.get("_class_name"))
    if kind.removesuffix("CombinedPipeline") in ("KandinskyV22", "Kandinsky"):
        raise ValueError(f"it is a {kind}: give the folders of decoder and prior, kandinsky-2-2-decoder and -prior")
    if kind.startswith("Kandinsky") and kind not in _PARTS:
        raise ValueError(
            f"it is a {kind}: Kandinsky 2.1 and the nets for inpainting and hints are not supported, give "
            "kandinsky-2-2-decoder and kandinsky-2-2-prior"
        )
    if kind not in _PARTS:
        raise ValueError(f"its {INDEX} says {kind}; expected one of {', '.join(_PARTS)}")
    for name, wanted in _PARTS[kind].items():
        entry = index.get(name)
        found = str(entry[1]) if isinstance(entry, list) and len(entry) == 2 else None
        if found is None or not (source / name).is_dir():
            raise ValueError(f"it has no part {name}, of {wanted}: fetch the whole folder")
        # CLIPTokenizerFast reads the same files
        if found.removesuffix("Fast") != wanted:
            raise ValueError(f"its part {name} is of the class {found}; {wanted} is read")
    return kind


def _read_karlo(source: Path, kind: str) -> PublishedUnCLIP:
    clip, words = _read_clip(source)
    assert clip.config.text_length is not None
    parts, sampling = {}, {}
    if kind == _KARLO:
        parts["prior"], sampling["prior"] = _read_prior(source, "prior_scheduler", "Karlo", karlo.LICENSE)
    found = _read_scheduler(source / "decoder_scheduler", _KARLO_STEPS)
    with _naming_part(source / "decoder"):
        parts["decoder"] = _scheduled(karlo.read_decoder(source, clip.config.text_length), found)
    sampling["decoder"] = _sampling(found) | {"guidance": _KARLO_GUIDANCE}
    upscaling = _read_scheduler(source / "super_res_scheduler", _UPSAMPLER_STEPS)
    low = parts["decoder"].config.image_size  # the decoder's images are the upsampler's input
    for last, name in enumerate(("upsampler", "upsampler_last")):
        with _naming_part(source / ("super_res_last" if last else "super_res_first")):
            parts[name] = _scheduled(karlo.read_upsampler(source, bool(last), low), upscaling)
    sampling["upsampler"] = _sampling(upscaling)
    _check_clip(clip, parts)
    return PublishedUnCLIP(clip, words, parts, sampling)


def _read_kandinsky(source: Path, prior: Path) -> PublishedUnCLIP:
    parts, sampling = {}, {}
    with _naming(prior):
        if not is_there(prior) or _check_parts(prior) != _KANDINSKY_PRIOR:
            raise ValueError(f"{prior} is no prior of Kandinsky 2.2: give kandinsky-2-2-prior")
        clip, words = _read_clip(prior)
        parts["prior"], sampling["prior"] = _read_prior(prior, "scheduler", kandinsky.FAMILY, kandinsky.LICENSE)
        _check_clip(clip, parts)
    with _naming(source):
        found = _read_scheduler(source / "scheduler", _KANDINSKY_STEPS)
        with _naming_part(source / "unet"):
            parts["decoder"] = _scheduled(kandinsky.read_latent_decoder(source / "unet"), found)
        sampling["decoder"] = _sampling(found) | {"guidance": _KANDINSKY_GUIDANCE}
        with _naming_part(source / "movq"):
            parts["autoencoder"] = kandinsky.read_movq(source / "movq")
        _check_clip(clip, parts)
    return PublishedUnCLIP(clip, words, parts, sampling)


def _read_clip(folder: Path) -> tuple[Published, TextTokenizer]:
    """The CLIP whose towers lie apart; the image tower may be missing."""
    text, words = read_clip(folder / "text_encoder"), read_text_tokenizer(folder / "tokenizer")
    check_text_tokenizer(text, words)
    if text.config.missing != "image":
        raise ValueError(f"{folder / 'text_encoder'} holds more than a text tower")
    if not (folder / "image_encoder").is_dir():
        return text, words
    vision = read_clip(folder / "image_encoder")
    if vision.config.missing != "text" or vision.config.embed_dim != text.config.embed_dim:
        raise ValueError(
            f"{folder / 'image_encoder'} is not the image tower of {folder / 'text_encoder'}: its embeddings have "
            f"{vision.config.embed_dim} dimensions, expected {text.config.embed_dim}"
        )
    names = ("vision", "image_size", "patch_size")
    changed: dict[str, Any] = {name: getattr(vision.config, name) for name in names}
    # Karlo's name, Kandinsky's name
    for place in ("feature_extractor", "image_processor"):
        if (folder / place / "preprocessor_config.json").is_file():
            image = read_json(folder / place / "preprocessor_config.json")
            changed |= {"mean": tuple(image["image_mean"]), "std": tuple(image["image_std"])}
    config = replace(text.config, missing=None, **changed)
    return replace(text, config=config, tensors={**vision.tensors, **text.tensors}), words


def _read_prior(folder: Path, scheduler: str, family: str, terms: str) -> tuple[Published, dict[str, Any]]:
    found = _read_scheduler(folder / scheduler, _PRIOR_STEPS)
    if found.predicts != "sample":
        raise ValueError(f"{folder / scheduler} says that the prior predicts {found.predicts}; expected the embedding")
    with _naming_part(folder / "prior"):
        prior = read_prior(folder / "prior", family, terms)
    config = replace(prior.config, schedule=found.schedule)
    # One sample, as in diffusers; the paper draws two and keeps the better (section 2.2)
    own = {"guidance": _PRIOR_GUIDANCE, "samples": 1, "bound": found.bound, "sampler": to_dict(found.sampler)}
    return replace(prior, config=config), own


def _read_scheduler(folder: Path, steps: int) -> Scheduler:
    with _naming_part(folder):
        return read_scheduler(folder, steps)


@contextmanager
def _naming(folder: Path, known: str | None = None) -> Iterator[None]:
    """Name a folder in errors about its settings and weights, which do not know where they are from.

    Args:
        folder: of a pipeline, or of a part.
        known: what errors have that name a place already; None: the folder.
    """
    try:
        yield
    except ValueError as error:
        reason = str(error)
        named = (str(folder) if known is None else known) in reason
        raise ValueError(reason if named else f"{folder} cannot be loaded: {reason}") from error
    # Settings that contradict the tensors show only when shapes are computed from them
    except SHAPE_ERRORS as error:
        raise ValueError(f"{folder} cannot be loaded: its tensors or settings do not have the shapes of one") from error


def _naming_part(part: Path) -> AbstractContextManager[None]:
    """As `_naming`; what names another part of the pipeline stays as it is."""
    return _naming(part, f"{part.parent}/")


def _scheduled(part: Published, found: Scheduler) -> Published:
    """A part with what its scheduler tells of it."""
    if found.sampler.variance == "learned" and not part.config.learned_variance:
        raise ValueError("a scheduler says that the variance is learned, but the network gives none")
    return replace(part, config=replace(part.config, predicts=found.predicts, schedule=found.schedule))


def _sampling(found: Scheduler) -> dict[str, Any]:
    return {"sampler": to_dict(found.sampler), "percentile": found.percentile, "bound": found.bound}


def _check_clip(clip: Published, parts: Mapping[str, Published]) -> None:
    """Refuse parts that stand on another CLIP."""
    for name in ("prior", "decoder"):
        if name in parts and parts[name].config.embed_dim != clip.config.embed_dim:
            raise ValueError(
                f"its {name} has embeddings of {parts[name].config.embed_dim} dimensions, its CLIP of "
                f"{clip.config.embed_dim}: they do not belong together"
            )
