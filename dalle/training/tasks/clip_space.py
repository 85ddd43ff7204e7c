"""The frozen CLIP that a prior or a decoder is trained on: whether it fits, and its embeddings of a training set."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from dalle.data import EmbeddingDataConfig, open_data
from dalle.data.custom.config import CustomConfig
from dalle.data.loader import evaluation_batches
from dalle.models.clip import CLIP
from dalle.models.diffusion_decoder import DecoderConfig
from dalle.models.prior import PriorShape


def check_clip(model: PriorShape | DecoderConfig, clip: CLIP, source: str) -> None:
    """Refuse a CLIP whose embeddings or text states are of another shape than the model reads."""
    if clip.tokenizer is None:
        raise ValueError(f"{source} has no text tokenizer: it is trained on captions")
    if clip.config.missing is not None:
        raise ValueError(f"{source} has no {clip.config.missing} tower: set clip to one of that CLIP with both towers")
    for key, have, want in (
        ("embed_dim", model.embed_dim, clip.config.embed_dim),
        ("text_width", model.text_width, clip.config.text.width),
        ("text_length", model.text_length, clip.config.text_length),
    ):
        if have != want:
            raise ValueError(f"model.{key} is {have}, but {source} needs {want}: set model.{key}={want}")


@torch.no_grad()
def training_embeddings(
    clip: CLIP, data: EmbeddingDataConfig, limit: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Raw embeddings of images and captions of at most `limit` pairs, spread over the training set, [N, D] each."""
    if isinstance(data, CustomConfig):  # of a stream, a sample of the size that validation takes would be read
        data = replace(data, stream_validation=limit)
    images: list[Tensor] = []
    texts: list[Tensor] = []
    # Unnormalized, as the prior predicts them: it is these whose mean and deviation models standardize by
    for batch in evaluation_batches(open_data(data, "train", clip.config.image_size), 64, limit=limit):  # evenly spread
        images.append(batch.embeddings(partial(clip.encode_image, normalize=False), device))
        texts.append(clip.encode_text(batch.captions, normalize=False))
    return torch.cat(images), torch.cat(texts)
