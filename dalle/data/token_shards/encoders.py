"""Encoders of images: an image tokenizer, to codes; or a CLIP, to embeddings, perhaps beside the images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dalle.data.token_shards.provenance import (
    EmbeddedImageProvenance,
    EmbeddingProvenance,
    Provenance,
    TokenProvenance,
)
from dalle.image_tokenizers import ImageTokenizer
from dalle.images.transforms import resize_batch


@dataclass(frozen=True)
class ImageEncoder:
    """A function of images, and what the shards record of it."""

    image_size: int
    """Height and width of its images in pixels."""
    device: torch.device
    """Where it runs."""
    encode: Callable[[Tensor], Tensor]
    """Maps float32 [B, 3, H, W] in [0, 1] to B rows of numbers; called without gradients."""
    provenance: Callable[..., Provenance]
    """Makes the provenance, given all that does not depend on the encoder."""


def token_encoder(tokenizer: ImageTokenizer, sha256: str) -> ImageEncoder:
    """Encoder to the codes of an image tokenizer, which is in evaluation mode; `sha256` is the hash of its folder."""
    made = partial(TokenProvenance, image_tokenizer=sha256, codebook_size=tokenizer.codebook_size, grid=tokenizer.grid)
    return ImageEncoder(tokenizer.image_size, next(tokenizer.parameters()).device, tokenizer.encode, made)


def embedding_encoder(
    encode: Callable[[Tensor], Tensor], sha256: str, image_size: int, embed_dim: int, device: torch.device
) -> ImageEncoder:
    """Encoder to the embeddings of a CLIP, before normalization.

    Args:
        encode: maps float32 [B, 3, H, W] in [0, 1] to float32 [B, D].
        sha256: hash of the CLIP's folder.
        image_size: height and width of its images in pixels.
        embed_dim: dimensions D.
        device: where it runs.
    """
    return ImageEncoder(image_size, device, encode, partial(EmbeddingProvenance, clip=sha256, embed_dim=embed_dim))


def embedded_image_encoder(
    encode: Callable[[Tensor], Tensor], sha256: str, clip_size: int, embed_dim: int, side: int, device: torch.device
) -> ImageEncoder:
    """Encoder to embeddings of a CLIP, before normalization, and images in the size of a decoder.

    Args:
        encode: maps float32 [B, 3, S, S] in [0, 1] to float32 [B, D].
        sha256: hash of the CLIP's folder.
        clip_size: height and width S of its images in pixels.
        embed_dim: dimensions D.
        side: height and width of the decoder's images in pixels.
        device: where it runs.
    """

    def both(images: Tensor) -> Tensor:
        embeds = encode(resize_batch(images, clip_size)).float().contiguous()
        small = (resize_batch(images, side).clamp(0, 1) * 255).round().byte()
        return torch.cat((embeds.view(torch.uint8), small.flatten(1)), dim=1)

    made = partial(EmbeddedImageProvenance, clip=sha256, embed_dim=embed_dim, side=side)
    return ImageEncoder(max(clip_size, side), device, both, made)
