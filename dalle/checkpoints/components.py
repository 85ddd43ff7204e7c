"""Loads a model with its components (tokenizers, CLIP): from one folder of ours, or from published files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dalle.checkpoints.build import build_published, build_published_model
from dalle.checkpoints.folder_config import WEIGHTS
from dalle.checkpoints.hub import SHIPPED, resolve
from dalle.checkpoints.image_codes import recorded_codes
from dalle.checkpoints.load import load_clip, load_image_tokenizer, load_model, load_text_tokenizer
from dalle.checkpoints.model_folder import ModelFolder
from dalle.checkpoints.published.files import weights_hash
from dalle.checkpoints.published.image_tokenizers import resize_tokenizer
from dalle.checkpoints.published.models import PublishedModel, read_model
from dalle.checkpoints.source import open_source
from dalle.config import from_dict
from dalle.generation.options import SamplingConfig
from dalle.image_tokenizers import ImageCodes, ImageTokenizer, build, check_codes
from dalle.models.clip import CLIP
from dalle.models.dalle import DALLE
from dalle.text_tokenizers import TextTokenizer
from dalle.text_tokenizers.t5 import T5Encoder

_Source = str | Path | None
_GIVE = " (--image-tokenizer, image_tokenizer)"


@dataclass(frozen=True)
class Components:
    """A transformer with its tokenizers and CLIP, in evaluation mode."""

    model: DALLE
    text_tokenizer: TextTokenizer | T5Encoder
    image_tokenizer: ImageTokenizer
    clip: CLIP | None
    sampling: SamplingConfig  # default sampling options
    model_hash: str  # sha256 of the model folder (`ModelFolder.sha256`), or of a published file's bytes


def load_components(
    source: _Source,
    device: torch.device,
    dtype: torch.dtype | None = None,
    *,
    family: str | None = None,
    image_tokenizer: _Source = None,
    text_tokenizer: _Source = None,
    text_encoder: _Source = None,
    clip: _Source = None,
    given: dict[str, Any] | None = None,
) -> Components:
    """Load a model with its components.

    Args:
        source: local file or folder, or hub id; a model folder of ours or published files. None is the model that
            ships with the repository.
        device: where to put all modules.
        dtype: dtype of the transformer and of a text encoder; None is float32. torch.int8 is for the transformer
            alone, on a CPU. The image tokenizer and CLIP stay in float32.
        family: family of published files, see `load_model`.
        image_tokenizer: replaces the model's own.
        text_tokenizer: replaces the model's own.
        text_encoder: text encoder of models that read its features.
        clip: replaces the model's own CLIP; if there is neither, nothing is ranked.
        given: what published files do not record, see `load_model`.

    Raises:
        ValueError: the source does not exist, components do not match, one is missing and has to be given, or the
            device does not compute in the dtype.
    """
    if source is None and not (SHIPPED / WEIGHTS).is_file():
        raise ValueError(f"the model that ships with the repository is not at {SHIPPED}: give the folder of a model")
    if dtype == torch.int8 and device.type != "cpu":
        raise ValueError(f"int8 is for sampling on a CPU, the device is {device}: give bfloat16, or device cpu")
    source = SHIPPED if source is None else source
    path = open_source(source, family)
    if isinstance(path, ModelFolder):
        return _from_model_folder(path, device, dtype, image_tokenizer, text_tokenizer, text_encoder, clip, given or {})
    found = read_model(path, family, given)
    model = build_published_model(found.model, str(source), device, dtype)
    _check_given(model, text_tokenizer, text_encoder)
    return Components(
        model,
        _published_text_tokenizer(found, model, text_tokenizer, text_encoder, device, dtype),
        _published_image_tokenizer(found, model, image_tokenizer, device),
        None if clip is None else load_clip(clip, device),
        found.sampling,
        weights_hash(found.file),
    )


def _from_model_folder(
    folder: ModelFolder,
    device: torch.device,
    dtype: torch.dtype | None,
    images: _Source,
    words: _Source,
    encoder: _Source,
    clip: _Source,
    given: dict[str, Any],
) -> Components:
    model = load_model(folder, device=device, dtype=dtype, **given)
    _check_given(model, words, encoder)
    components = folder.components
    read: TextTokenizer | T5Encoder
    if model.config.text_features is not None:
        read = _load_text_encoder(encoder or folder.config.get("text_encoder"), device, dtype)
    elif words is None and "text_tokenizer" not in components:
        raise ValueError(f"{folder.path} has no text tokenizer: give the one it was trained with (text_tokenizer)")
    else:
        read = load_text_tokenizer(folder.component("text_tokenizer") if words is None else words)
    own = folder.component("image_tokenizer") if images is None and "image_tokenizer" in components else None
    sampling: SamplingConfig = from_dict(SamplingConfig, folder.config.get("sampling") or {}, folder.origin)
    if clip is not None:  # agreement is in units of the scores of the model's own, and others have another scale
        sampling = sampling.updated(agreement=0.0)
    return Components(
        model,
        read,
        _load_images(own or images, None if own else recorded_codes(folder), model, str(folder.path), device),
        load_clip(clip or folder.component("clip"), device) if clip is not None or "clip" in components else None,
        sampling,
        folder.sha256,
    )


def _check_given(model: DALLE, words: _Source, encoder: _Source) -> None:
    """Refuse the source of a text tokenizer or encoder that the model does not read."""
    if encoder is not None and model.config.text_features is None:
        raise ValueError("this model reads tokens and no features of a T5: leave text_encoder out")
    if words is not None and model.config.text_features is not None:
        raise ValueError("this model reads features of a T5 and no tokens: leave text_tokenizer out")


def _published_text_tokenizer(
    found: PublishedModel,
    model: DALLE,
    words: _Source,
    encoder: _Source,
    device: torch.device,
    dtype: torch.dtype | None,
) -> TextTokenizer | T5Encoder:
    if model.config.text_features is not None:
        return _load_text_encoder(encoder or found.text_source, device, dtype)
    if words is not None:
        return load_text_tokenizer(words, found.add_special_tokens)
    if found.text_tokenizer is not None:
        return found.text_tokenizer
    if not found.text_source:
        raise ValueError(
            f"{found.file} does not contain its text tokenizer: give it (text_tokenizer); if it was trained with the "
            "default, that is bpe_simple_vocab_16e6.txt.gz of github.com/openai/CLIP"
        )
    try:
        return load_text_tokenizer(found.text_source, found.add_special_tokens)
    except ValueError as error:
        raise ValueError(f"{error}; give the text tokenizer (text_tokenizer), or put it beside {found.file}") from error


def _published_image_tokenizer(
    found: PublishedModel, model: DALLE, images: _Source, device: torch.device
) -> ImageTokenizer:
    rows = model.config.grid[0]
    if images is None and found.image_tokenizer is not None:
        check_codes(found.codes, found.image_tokenizer.config, f"the image tokenizer in the files of {found.file}")
        return build_published(build, resize_tokenizer(found.image_tokenizer, rows), str(found.file), device, None)
    return _load_images(images, found.codes, model, str(found.file), device)


def _load_images(
    images: _Source | ModelFolder, codes: ImageCodes | None, model: DALLE, name: str, device: torch.device
) -> ImageTokenizer:
    """Load the image tokenizer that is given, or else where the model's is published; for the model's grid.

    Raises:
        ValueError: it is neither given nor known or there, or has other codes than the model draws.
    """
    source = images or (None if codes is None else codes.source)
    if not source:
        raise ValueError(f"{name} does not contain its image tokenizer: give the one it was trained with{_GIVE}")
    try:
        # A published one does not know the grid of this model; its convolutions work at any
        found = load_image_tokenizer(source, device, rows=model.config.grid[0])
    except ValueError as error:
        if images:
            raise
        raise ValueError(f"{error}; give the image tokenizer of {name}{_GIVE}") from error
    check_codes(codes, found.config, str(source.path if isinstance(source, ModelFolder) else source))
    return found


def _load_text_encoder(source: _Source, device: torch.device, dtype: torch.dtype | None) -> T5Encoder:
    if not source:
        raise ValueError(
            "this model reads the features of a text encoder: give it (text_encoder), such as google/flan-t5-xl"
        )
    # A text encoder is never in 8 bits
    return T5Encoder.load(str(resolve(source)), device, None if dtype == torch.int8 else dtype)
