"""The model's inputs for a batch of requests: their texts, negative prompts, and the codes that are known.

Shapes: P requests, B candidates of all of them, T text length, C channels of features, h w codes of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dalle.generation.rolling import Candidate
from dalle.models.dalle import DALLE
from dalle.pipelines.init_image import InitImage
from dalle.pipelines.prompts import encode_negatives, encode_prompts
from dalle.pipelines.request import Request
from dalle.text_tokenizers import TextTokenizer
from dalle.text_tokenizers.t5 import T5Encoder


@dataclass(frozen=True)
class ModelInputs:
    """Requests in the form that `generate` takes.

    Attributes:
        text: ids of the prompts, int64 [P, T], or a T5's features of them, float [P, T, C].
        negative: ids of what guidance leads away from, int64 [P, T]; None if no request has a negative prompt.
        known_codes: codes that init images give, int64 [B, h, w], on the CPU; None if no request has an image.
        known_mask: which of them are given, bool [B, h, w], on the CPU; None likewise.
    """

    text: Tensor
    negative: Tensor | None
    known_codes: Tensor | None
    known_mask: Tensor | None


def encode_requests(model: DALLE, tokenizer: TextTokenizer | T5Encoder, requests: Sequence[Request]) -> ModelInputs:
    """Encode requests for one batch.

    Raises:
        ValueError: a negative prompt that the model does not take.
    """
    text = encode_prompts(model, tokenizer, [request.prompt for request in requests])
    negative = encode_negatives(model, tokenizer, text, [request.negative for request in requests])
    return ModelInputs(text, negative, *_known_codes(requests, model.config.grid))


def candidates_of(requests: Sequence[Request], inputs: ModelInputs) -> list[Candidate]:
    """The candidates of requests, each by itself, for a `RollingBatch`.

    Args:
        requests: the requests.
        inputs: of `encode_requests`.
    """
    found: list[Candidate] = []
    for number, request in enumerate(requests):
        # Without a negative prompt of its own a candidate has the null caption, which the batch knows
        own = None if request.negative is None or inputs.negative is None else inputs.negative[number]
        for seed in request.seeds:
            candidate = Candidate(inputs.text[number], seed, request.sampling, own)
            if inputs.known_codes is not None and inputs.known_mask is not None:
                candidate.known_codes = inputs.known_codes[len(found)]
                candidate.known_mask = inputs.known_mask[len(found)]
            found.append(candidate)
    return found


def _known_codes(requests: Sequence[Request], grid: tuple[int, int]) -> tuple[Tensor | None, Tensor | None]:
    """The codes that init images give, and where; see `ModelInputs`."""
    if all(request.init_image is None for request in requests):
        return None, None
    empty = torch.zeros(grid, dtype=torch.int64)
    codes, masks = [], []
    for request in requests:
        init = request.init_image or InitImage(empty, empty.bool())  # nothing is known
        codes.append(init.codes.cpu().expand(len(request.seeds), -1, -1))
        masks.append(init.known_mask.expand(len(request.seeds), -1, -1))
    return torch.cat(codes), torch.cat(masks)
