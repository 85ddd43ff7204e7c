"""From codes to results: images are decoded, kept pixels put back, and candidates scored by CLIP.

Shapes: B candidates of all requests, H W pixels, h w codes of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from dalle.generation.rerank import match
from dalle.image_tokenizers import ImageTokenizer
from dalle.images.transforms import to_images
from dalle.models.clip import CLIP
from dalle.pipelines.request import Request
from dalle.pipelines.result import Result

_DECODE_BATCH = 32  # images at a time through the image tokenizer and CLIP, whose activations outweigh the codes'


def finished(tokenizer: ImageTokenizer, clip: CLIP | None, codes: Tensor, requests: Sequence[Request]) -> list[Result]:
    """Decode and score the codes [B, h, w] of all requests' candidates; without a CLIP nothing is scored."""
    owners = [request for request in requests for _ in request.seeds]  # [B], the request of each candidate
    decoded: list[Image.Image] = []
    scores: list[float | None] = []
    for first in range(0, len(codes), _DECODE_BATCH):
        own = owners[first : first + _DECODE_BATCH]
        images = _decode(tokenizer, codes[first : first + _DECODE_BATCH])
        # Requests of one batch may start from different images, or from none
        for number, owner in enumerate(own):
            if owner.init_image is not None:
                images[number] = owner.init_image.paste(images[number])
        decoded += to_images(images)
        scores.extend(_scores(clip, images, own))
    results, start = [], 0
    for request in requests:
        part = slice(start, start + len(request.seeds))
        start = part.stop
        # A request is scored as a whole or not at all
        own_scores = [value for value in scores[part] if value is not None] or None
        weight, own_codes, seeds = request.sampling.agreement, codes[part].cpu(), list(request.seeds)
        results.append(Result(request.prompt, decoded[part], own_scores, own_codes, seeds, weight))
    return results


def _decode(tokenizer: ImageTokenizer, codes: Tensor) -> Tensor:
    """Pixels [B, 3, H, W] of codes [B, h, w].

    On a CPU one by one: convolutions of a batch round otherwise, and an image of a batch must be the one that it is
    alone to the last bit.
    """
    parts = codes.split(1 if codes.device.type == "cpu" else len(codes))
    return torch.cat([tokenizer.decode(part).float() for part in parts])


def _scores(clip: CLIP | None, images: Tensor, owners: Sequence[Request]) -> list[float | None]:
    """CLIP's score of each image [B, 3, H, W]; None where the request does not ask for one."""
    # Only images to be scored go through CLIP: a server's client that wants one image needs no ranking
    rows = [i for i, owner in enumerate(owners) if owner.scored]
    found: list[float | None] = [None] * len(owners)
    if clip is None or not rows:
        return found
    values = match(clip, images[rows], [owners[i].prompt for i in rows])
    for i, value in zip(rows, values.tolist(), strict=True):
        found[i] = value
    return found
