"""Loads weights into ready-to-use modules: from our model folders or published files, local or on a hub.

Knows nothing of how the weights were trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dalle import text_tokenizers
from dalle.checkpoints.build import build_own, build_published, build_published_model
from dalle.checkpoints.published.clip import check_text_tokenizer, read_clip
from dalle.checkpoints.published.image_tokenizers import read_image_tokenizer, resize_tokenizer
from dalle.checkpoints.published.models import read_model
from dalle.checkpoints.published.text_tokenizers import MissingTokenizer, clip_text_tokenizer, read_text_tokenizer
from dalle.checkpoints.source import Source, check_stage, open_source
from dalle.image_tokenizers import ImageTokenizer, ImageTokenizerConfig, build
from dalle.models.clip import CLIP, CLIPConfig
from dalle.models.dalle import DALLE
from dalle.models.dalle_config import DALLEConfig
from dalle.text_tokenizers import TextTokenizer

_Device = str | torch.device


def load_text_tokenizer(source: Source, add_special_tokens: bool = True) -> TextTokenizer:
    """Load a text tokenizer.

    Args:
        source: local file or folder, or hub id; ours or published (docs/checkpoints.md); also a model's with one in it.
        add_special_tokens: whether a published tokenizer adds begin and end tokens (False for DALLE-pytorch).

    Raises:
        ValueError: the source does not exist, is something else, or is damaged.
    """
    found = open_source(source)
    if isinstance(found, Path):
        return read_text_tokenizer(found, add_special_tokens)
    if "text_tokenizer" in found.components:  # of a DALL-E or a CLIP
        found = found.component("text_tokenizer")
    elif "text_encoder" in found.config:
        raise ValueError(
            f"{found.path} has no text tokenizer: it reads captions through the T5 {found.config['text_encoder']}"
        )
    check_stage(found, "text_tokenizer")
    loaded = text_tokenizers.load(found.path, found.config)
    found.check()
    return loaded


def load_image_tokenizer(
    source: Source, device: _Device = "cpu", dtype: torch.dtype | None = None, rows: int | None = None
) -> ImageTokenizer:
    """Load an image tokenizer in evaluation mode.

    Args:
        source: local file or folder, or hub id; ours or published (docs/checkpoints.md).
        device: where to put its weights.
        dtype: floating-point dtype of its weights; None is float32.
        rows: for a published one, rows of codes per image; None is the size it was trained on.

    Raises:
        ValueError: the source does not exist, is something else, or its weights do not match its config.
    """
    folder = open_source(source)
    if isinstance(folder, Path):
        found = read_image_tokenizer(folder)
        found = found if rows is None else resize_tokenizer(found, rows)
        return build_published(build, found, str(source), device, dtype)
    check_stage(folder, "image_tokenizer")
    return build_own(build, ImageTokenizerConfig, folder, device, dtype)


def load_clip(source: Source, device: _Device = "cpu", dtype: torch.dtype | None = None, **given: Any) -> CLIP:
    """Load a CLIP in evaluation mode, with its text tokenizer attached, so that it accepts strings.

    Published weights without a text tokenizer, here or on the hub, embed images and ids; strings are then an error that
    says what is missing. Of a model of one tower, the other's methods raise ValueError.

    Args:
        source: local file or folder, or hub id; ours or published (docs/checkpoints.md).
        device: where to put its weights.
        dtype: floating-point dtype of its weights; None is float32.
        given: what a published file does not record: `feed_forward`, `heads`, `text_heads`.

    Raises:
        ValueError: the source does not exist, is something else, or its weights do not match its config.
    """
    folder = open_source(source)
    if isinstance(folder, Path):
        found = read_clip(folder, given)
        module = build_published(CLIP, found, str(source), device, dtype)
        if found.config.missing != "text":
            try:
                words = clip_text_tokenizer(folder, found.config.towers)
            except MissingTokenizer as error:
                module.no_tokenizer = str(error)
            else:
                check_text_tokenizer(found, words)
                module.tokenizer = words
        return module
    folder.check_none_given(given)
    check_stage(folder, "clip")
    module = build_own(CLIP, CLIPConfig, folder, device, dtype)
    if module.config.missing != "text":
        module.tokenizer = load_text_tokenizer(folder.component("text_tokenizer"))
    return module


def load_model(
    source: Source,
    family: str | None = None,
    device: _Device = "cpu",
    dtype: torch.dtype | None = None,
    **given: Any,
) -> DALLE:
    """Load a DALL-E transformer in evaluation mode; `dalle.TextToImage` loads its tokenizers too.

    Args:
        source: local file or folder, or hub id; ours or published (docs/checkpoints.md).
        family: family of published files, one of `dalle.checkpoints.published.models.FAMILIES`; None detects it.
        device: where to put its weights.
        dtype: floating-point dtype of its weights; None is float32. torch.int8 quantizes linear layers as they are
            read, for sampling on a CPU.
        given: what a published file does not record: `heads`, `convention` (ruDALL-E), `grid` (LlamaGen).

    Raises:
        ValueError: the source does not exist, is something else, or its weights do not match its config.
    """
    folder = open_source(source, family)
    if isinstance(folder, Path):
        return build_published_model(read_model(folder, family, given).model, str(source), device, dtype)
    folder.check_none_given(given)
    check_stage(folder, "dalle")
    module = build_own(DALLE, DALLEConfig, folder, device, dtype)
    module.detect_sparse_masks()  # stored masks are known only now, with the weights
    return module
