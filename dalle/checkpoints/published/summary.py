"""Describes weights, published or ours, without loading them: for `python -m dalle inspect` and for cards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dalle.checkpoints.folder_config import WEIGHTS, check_no_run
from dalle.checkpoints.hub import resolve
from dalle.checkpoints.image_codes import KEY
from dalle.checkpoints.model_folder import ModelFolder
from dalle.checkpoints.published import cosmos, dalle_pytorch, ibq, llamagen, mindalle, openai_dvae, rudalle, unclip
from dalle.checkpoints.published.clip import read_clip
from dalle.checkpoints.published.files import read_stored_state
from dalle.checkpoints.published.image_tokenizers import read_image_tokenizer
from dalle.checkpoints.published.language_models import family_of
from dalle.checkpoints.published.models import PublishedModel, read_model, transformer_file
from dalle.checkpoints.published.others import reject_models
from dalle.checkpoints.published.pickles import read_pickled
from dalle.checkpoints.published.state import Published
from dalle.checkpoints.published.stored_state import find_wrappers, named_tensors, stored_state
from dalle.checkpoints.tensors import stored_tensors
from dalle.config import from_dict, renamed, to_dict
from dalle.image_tokenizers import ImageTokenizer, ImageTokenizerConfig, build
from dalle.models.autoregressive_prior import AutoregressivePrior, AutoregressivePriorConfig
from dalle.models.clip import CLIP, CLIPConfig
from dalle.models.dalle import DALLE
from dalle.models.dalle_config import DALLEConfig
from dalle.models.diffusion_decoder import DecoderConfig, DiffusionDecoder
from dalle.models.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from dalle.models.latent_decoder import LatentDecoder, LatentDecoderConfig
from dalle.models.movq import MoVQ, MoVQConfig
from dalle.models.upsampler import Upsampler, UpsamplerConfig

Stage = Literal["image_tokenizer", "clip", "dalle", "unclip"]
_SCHEMAS: dict[str, Any] = {
    "image_tokenizer": ImageTokenizerConfig,
    "clip": CLIPConfig,
    "dalle": DALLEConfig,
    "prior": DiffusionPriorConfig | AutoregressivePriorConfig,
    "diffusion": DecoderConfig | LatentDecoderConfig | UpsamplerConfig,
    "autoencoder": MoVQConfig,
}


def inspect(source: str | Path, given: Mapping[str, Any] | None = None, prior: str | Path | None = None) -> str:
    """Describe a published source or a model folder in a few lines.

    Args:
        source: file, folder or hub id.
        given: what published files do not record.
        prior: source of Kandinsky 2.2's prior, if `source` is its decoder.

    Raises:
        ValueError: it is of no known kind, or damaged, or something is given that its kind does not use.
    """
    path = resolve(source)
    check_no_run(path)
    if (path / "config.yaml").is_file() and not mindalle.is_there(path) and not ibq.is_there(path):
        folder = ModelFolder(path)
        folder.check_none_given(given or {})
        if prior is not None:
            raise ValueError(f"--prior is for a published unCLIP, and {source} is a model folder: leave it out")
        return f"{source}: {_describe_model_folder(folder)}"
    stage = stage_of(path)
    if given and stage in ("unclip", "image_tokenizer"):
        raise ValueError(f"{next(iter(given))} is not to be given: {source} is described by its files alone")
    if stage == "unclip":
        return unclip_summary(str(source), path, prior)
    if prior is not None:
        raise ValueError(f"--prior is for an unCLIP, and {source} is none: leave it out")
    if stage == "dalle":
        model = read_model(path, None, given)
        return f"{source}: {model.model.family}\n{model_summary(model)}{_describe_wrappers(path)}"
    found = read_clip(path, given) if stage == "clip" else read_image_tokenizer(path)
    return f"{source}: {found.family}\n{summary(found)}{_describe_wrappers(path)}"


def _describe_wrappers(source: Path) -> str:
    """A line on the wrapper parts removed from a file's tensor names."""
    if mindalle.is_there(source) or openai_dvae.is_there(source) or cosmos.is_alone(source) or ibq.is_there(source):
        return ""
    file = transformer_file(source)
    if file.suffix == ".safetensors" or file.name.endswith(".json"):
        names: Mapping[str, Any] = read_stored_state(file)
    else:
        tree = read_pickled(file)
        names = tree["weights"] if dalle_pytorch.is_of(tree) else stored_state(tree)
    if family_of(names, file.parent) is not None:  # their own names begin with "model."
        return ""
    found = find_wrappers(names)
    return f"\n- removed from its names: {', '.join(found)} (wrappers of training code)" if found else ""


def stage_of(source: Path) -> Stage:
    """Detect what kind of weights published files hold, by tensor names.

    Raises:
        ValueError: there is no such file, or it is damaged; one line that names it.
    """
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    if mindalle.is_there(source):
        return "dalle"
    if ibq.is_there(source):
        return "image_tokenizer"
    if unclip.is_there(source):
        return "unclip"
    if (source / "config.yaml").is_file():
        raise ValueError(f"{source} has a config.yaml: it is already a model folder")
    if openai_dvae.is_there(source) or cosmos.is_alone(source):
        return "image_tokenizer"
    try:
        file = transformer_file(source)
        if file.suffix == ".safetensors" or file.name.endswith(".json"):
            stored: Any = read_stored_state(file)
        else:
            stored = read_pickled(file)
            if dalle_pytorch.is_of(stored):
                return "dalle"
        if family_of(stored_state(stored), file.parent) is not None:
            return "dalle"
        reject_models(stored_state(stored))
        names = named_tensors(stored)
    except ValueError as error:
        reason = str(error)
        raise ValueError(reason if str(source) in reason else f"{source} cannot be loaded: {reason}") from error
    if rudalle.is_of(names) or llamagen.is_of(names):
        return "dalle"
    # OpenAI's and open_clip's prefix, and Hugging Face's two
    towers = ("visual.", "vision_model.", "text_model.")
    # Whose reader refuses the rest
    return "clip" if any(name.startswith(towers) for name in names) else "image_tokenizer"


def summary(found: Published) -> str:
    """Describe a published image tokenizer or CLIP."""
    module = without_weights(found.config)
    return _format(_architecture(found.config, module) | _terms(found))


def model_summary(found: PublishedModel) -> str:
    """Describe a published text-to-image model, and where its tokenizers are."""
    module = without_weights(found.model.config)
    places = {
        "text tokenizer": _place(found.text_tokenizer, found.text_source),
        "image tokenizer": _place(found.image_tokenizer, found.image_source),
        "sampled with": ", ".join(f"{k} {v:g}" for k, v in to_dict(found.sampling).items() if v is not None),
    }
    return _format(_architecture(found.model.config, module) | places | _terms(found.model))


def unclip_summary(name: str, source: Path, prior: str | Path | None) -> str:
    """Describe a published unCLIP part by part."""
    found = unclip.read_unclip(source, None if prior is None else resolve(prior))
    lines = [f"{name}: {found.family}, an unCLIP", f"- license: {found.license}, as stated by its project"]
    for part, published in {"clip": found.clip, **found.parts}.items():
        module = without_weights(published.config)
        published.check(module, str(source))
        lines.append(f"{part}:\n{_format(_architecture(published.config, module))}")
        if part in found.sampling:
            sampler, guidance = found.sampling[part]["sampler"], found.sampling[part].get("guidance", 1.0)
            lines.append(f"- sampled with: {sampler['sampler']}, {sampler['steps']} steps, guidance {guidance:g}")
    return "\n".join(lines)


def without_weights(config: Any) -> nn.Module:
    """Build the module of a config on the meta device."""
    with torch.device("meta"):
        if isinstance(config, DALLEConfig):
            return DALLE(config)
        if isinstance(config, DiffusionPriorConfig):
            return DiffusionPrior(config)
        if isinstance(config, AutoregressivePriorConfig):
            return AutoregressivePrior(config)
        if isinstance(config, DecoderConfig):
            return DiffusionDecoder(config)
        if isinstance(config, LatentDecoderConfig):
            return LatentDecoder(config)
        if isinstance(config, UpsamplerConfig):
            return Upsampler(config)
        if isinstance(config, MoVQConfig):
            return MoVQ(config)
        return CLIP(config) if isinstance(config, CLIPConfig) else build(config)


def _describe_model_folder(folder: ModelFolder) -> str:
    """Describe a model folder made by train.py or `convert`."""
    if folder.config.get("stage") != "unclip":
        return _describe_model(folder)
    parts = (f"{name}: {_describe_model(folder.unchecked_component(name))}" for name in folder.components)
    return "\n".join(["unclip", *parts])


def _describe_model(folder: ModelFolder) -> str:
    """Describe a model folder that is no unCLIP."""
    content = folder.config
    stage = content.get("stage")
    if stage not in _SCHEMAS:
        raise ValueError(f"{folder.origin} says stage: {stage!r}; expected one of {', '.join(_SCHEMAS)}")
    config = from_dict(_SCHEMAS[stage], renamed(content.get("model") or {}), folder.origin)
    lines = _architecture(config, without_weights(config))
    lines["components"] = ", ".join(folder.components) or "none"
    if KEY in content:
        lines["image tokenizer"] = _place(None, str((content[KEY] or {}).get("source", "")))
    lines["license"] = "see its README.md" if (folder.path / "README.md").is_file() else "not stated"
    try:
        stored_tensors(folder.path / WEIGHTS)  # its header only; whether the file is whole
    except ValueError as error:
        lines["damage"] = str(error)
    return f"{stage.replace('_', ' ')}, {content.get('origin') or 'made by train.py'}\n{_format(lines)}"


def _architecture(config: Any, module: nn.Module) -> dict[str, str]:
    """Lines on architecture and size."""
    lines = {}
    if isinstance(config, DALLEConfig):
        shape, (rows, columns) = config.transformer, config.grid
        lines["architecture"] = f"{shape.depth} layers, width {shape.width}, {shape.heads} heads"
        words = f"tokens of {config.text_vocab:,}"
        if config.text_features is not None:
            words = f"features of {config.text_features:,} channels"
        lines["text"] = f"{config.text_length} {words}"
        lines["images"] = f"{rows}x{columns} codes of {config.image_vocab:,}"
        if config.grids is not None:
            sides = "squares" if config.grids.ratio == 1 else "grids"
            steps = f", sides in multiples of {config.grids.multiple}" if config.grids.multiple > 1 else ""
            lines["images"] += f", or other {sides} of at most {config.grids.most:,} codes{steps}"
    elif isinstance(config, CLIPConfig):
        if config.missing != "image":
            lines["images"] = f"{config.image_size}x{config.image_size} in patches of {config.patch_size}"
        if config.missing != "text":
            lines["captions"] = f"{config.text_length} tokens of {config.text_vocab:,}; {config.embed_dim} dimensions"
    elif isinstance(module, ImageTokenizer):
        rows, columns = module.grid
        size = module.image_size
        lines["images"] = f"{size}x{size} to {rows}x{columns} codes of {module.codebook_size:,}"
    count = sum(parameter.numel() for parameter in module.parameters())
    memory = f"{count * 4 / 1e9:.2f} GB in float32, {count * 2 / 1e9:.2f} GB in bfloat16"
    return lines | {"parameters": f"{count:,}, {memory}"}


def _terms(found: Published) -> dict[str, str]:
    return {
        "license": f"{found.license}, as stated by its project",
        "left out": f"{len(found.dropped):,} tensors that only training needs" if found.dropped else "nothing",
    }


def _place(part: object, source: str) -> str:
    return "in these files" if part is not None else f"read from {source}" if source else "not found, has to be given"


def _format(lines: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {text}" for name, text in lines.items())
