"""Scores images against their prompts with CLIP, and selects the best. Knows nothing of how images are made."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dalle.images.transforms import resize_batch
from dalle.models.clip import CLIP


@torch.inference_mode()
def score(clip: CLIP, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """How well each image matches its own prompt (DALL-E paper, section 2.6).

    Args:
        clip: loaded by `dalle.load_clip`, so that it takes strings.
        images: float [B, 3, H, W] in [0, 1], of any size, on any device.
        prompts: B prompts, one for each image.

    Returns:
        float32 [B], cosine similarities in [-1, 1], on the CPU.

    Raises:
        ValueError: the numbers of prompts and images differ, or an image has a NaN in it.
    """
    if len(prompts) != len(images):
        raise ValueError(f"got {len(images)} images and {len(prompts)} prompts: give one prompt for each image")
    device = clip.logit_scale.device
    image_embeds = clip.encode_image(resize_batch(images.to(device), clip.config.image_size))  # [B, D]
    distinct = list(dict.fromkeys(prompts))  # candidates share prompts: encode each once
    rows = torch.tensor([distinct.index(prompt) for prompt in prompts], dtype=torch.int64, device=device)
    text_embeds = clip.encode_text(distinct)[rows]  # [B, D]
    scores = (image_embeds * text_embeds).sum(dim=-1).cpu()
    # NaN sorts before all numbers: such an image would be the best
    broken = scores.isnan().nonzero().flatten().tolist()
    if broken:
        raise ValueError(
            f"image {broken[0] + 1} of {len(images)} has no score: its values, or the CLIP's, are not finite"
        )
    return scores


def match(clip: CLIP, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """As `score`, on the scale of results: of a SigLIP the probability that an image and its prompt match."""
    cosines = score(clip, images, prompts)
    # A SigLIP's cosines are small even for matching pairs; its sigmoid with the learned bias is a probability
    return clip.probabilities(cosines) if clip.config.sigmoid else cosines


def best(scores: Tensor | Sequence[float], keep: int | None = None) -> list[int]:
    """Indices of the `keep` highest scores (None: all), best first; ties keep their order.

    Raises:
        ValueError: `keep` is below 1 or above the number of scores.
    """
    values = torch.as_tensor(scores)
    keep = len(values) if keep is None else keep
    if not 0 < keep <= len(values):
        raise ValueError(f"cannot keep {keep} of {len(values)} images; give a number from 1 to {len(values)}")
    order: list[int] = values.argsort(descending=True, stable=True)[:keep].tolist()
    return order
