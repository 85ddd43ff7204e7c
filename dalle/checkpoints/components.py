"""A model with its components (tokenizers, CLIP): our own from one folder, published ones from wherever they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dalle.checkpoints.hub import resolve
from dalle.checkpoints.load import (
    image_tokenizer_of,
    load_clip,
    load_image_tokenizer,
    load_model,
    load_text_tokenizer,
    model_of,
    open_source,
)
from dalle.checkpoints.model_folder import ModelFolder
from dalle.checkpoints.published.image_tokenizers import sized
from dalle.checkpoints.published.models import PublishedModel, read_model
from dalle.config import from_dict
from dalle.files import sha256
from dalle.generation.sampling import SamplingConfig
from dalle.image_tokenizers import ImageTokenizer
from dalle.models.clip import CLIP
from dalle.models.dalle import DALLE
from dalle.text_tokenizers import TextTokenizer
from dalle.text_tokenizers.t5 import T5Encoder

_Source = str | Path | None


@dataclass(frozen=True)
class Components:
    """A transformer with its tokenizers and CLIP, in evaluation mode."""

    model: DALLE
    text_tokenizer: TextTokenizer | T5Encoder
    image_tokenizer: ImageTokenizer
    clip: CLIP | None
    sampling: SamplingConfig  # how it is drawn with if nothing else is said
    model_hash: str  # sha256: of ours of the weights and all they stand on, of a published file of its bytes


def load_components(
    source: str | Path,
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
        source: local file or folder, or hub id; ours, or as published.
        device: where all of it goes.
        dtype: arithmetic of the transformer and of a text encoder; None is float32. The image tokenizer and CLIP stay
            in float32.
        family: of published files, see `load_model`.
        image_tokenizer: in place of the model's own.
        text_tokenizer: in place of the model's own.
        text_encoder: of models that read features.
        clip: in place of the model's own; None and no own: none.
        given: what published files do not tell, see `load_model`.

    Raises:
        ValueError: nothing is there, something does not fit, or a part has to be given.
    """
    path = open_source(source, family)
    if isinstance(path, ModelFolder):
        return _ours(path, device, dtype, image_tokenizer, text_tokenizer, text_encoder, clip, given or {})
    found = read_model(path, family, given)
    model = model_of(found.model, str(source), device, dtype)
    return Components(
        model,
        _text_of(found, model, text_tokenizer, text_encoder, device, dtype),
        _images_of(found, model, image_tokenizer, device),
        None if clip is None else load_clip(clip, device),
        found.sampling,
        sha256(found.file),
    )


def _ours(
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
    has = folder.components
    if images is None and "image_tokenizer" not in has:
        raise ValueError(f"{folder.path} has no image tokenizer: give the one it was trained with (image_tokenizer)")
    read: TextTokenizer | T5Encoder
    if model.config.text_features is not None:
        read = _encoder(encoder or folder.config.get("text_encoder"), device, dtype)
    elif words is None and "text_tokenizer" not in has:
        raise ValueError(f"{folder.path} has no text tokenizer: give the one it was trained with (text_tokenizer)")
    else:
        read = load_text_tokenizer(folder.component("text_tokenizer") if words is None else words)
    rows = model.config.grid[0]
    return Components(
        model,
        read,
        load_image_tokenizer(folder.component("image_tokenizer") if images is None else images, device, rows=rows),
        load_clip(clip or folder.component("clip"), device) if clip is not None or "clip" in has else None,
        from_dict(SamplingConfig, folder.config.get("sampling") or {}, folder.origin),
        folder.sha256,
    )


def _text_of(
    found: PublishedModel,
    model: DALLE,
    words: _Source,
    encoder: _Source,
    device: torch.device,
    dtype: torch.dtype | None,
) -> TextTokenizer | T5Encoder:
    if model.config.text_features is not None:
        return _encoder(encoder or found.text_source, device, dtype)
    if words is not None:
        return load_text_tokenizer(words, found.text_ends)
    if found.text_tokenizer is not None:
        return found.text_tokenizer
    if not found.text_source:
        raise ValueError(
            f"{found.file} does not hold its text tokenizer: give it (text_tokenizer), bpe_simple_vocab_16e6.txt.gz of "
            "github.com/openai/CLIP if it was trained without another"
        )
    try:
        return load_text_tokenizer(found.text_source, found.text_ends)
    except ValueError as error:
        raise ValueError(f"{error}; give the text tokenizer (text_tokenizer), or put it beside {found.file}") from error


def _images_of(found: PublishedModel, model: DALLE, images: _Source, device: torch.device) -> ImageTokenizer:
    rows = model.config.grid[0]
    if images is None and found.image_tokenizer is not None:
        return image_tokenizer_of(sized(found.image_tokenizer, rows), str(found.file), device, None)
    if images is None and not found.image_source:
        raise ValueError(f"{found.file} does not hold its image tokenizer: give it (image_tokenizer)")
    return load_image_tokenizer(images or found.image_source, device, rows=rows)


def _encoder(source: _Source, device: torch.device, dtype: torch.dtype | None) -> T5Encoder:
    if not source:
        raise ValueError("this model reads the features of a text encoder: give it (text_encoder), google/flan-t5-xl")
    return T5Encoder.load(str(resolve(source)), device, dtype)
