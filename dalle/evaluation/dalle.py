"""Metrics of a DALL-E: cross-entropy with the image's own, no or another image's caption; calibration; accuracy."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from dalle.data.batch import Batch
from dalle.device import device_of
from dalle.evaluation.calibration import TemperatureScaling
from dalle.evaluation.metrics import CodebookUsage
from dalle.image_tokenizers import ImageTokenizer
from dalle.models.dalle import DALLE
from dalle.text_tokenizers import TextTokenizer
from dalle.text_tokenizers.t5 import T5Encoder

_MAX_LOGITS = 2**26  # in one forward pass: 256 MiB of float32


@torch.no_grad()
def caption_metrics(
    model: DALLE,
    text_tokenizer: TextTokenizer | T5Encoder,
    image_tokenizer: ImageTokenizer,
    batches: Iterable[Batch],
    batch_size: int = 64,
) -> dict[str, float | None]:
    """All metrics of one split (docs/evaluation.md).

    Args:
        model: in eval mode.
        text_tokenizer: encodes the captions.
        image_tokenizer: encodes the images to the codes that the model predicts.
        batches: images with captions.
        batch_size: images at a time.

    Returns:
        Metrics by name; None where one is undefined (a single image has no other caption; a text encoder has no text
        tokens). Nats without a caption are computed even if the model was trained without caption dropout.
    """
    device = device_of(model)
    captions: list[str] = []
    codes: list[Tensor] = []
    for batch in batches:
        captions += batch.captions
        codes.append(batch.codes(image_tokenizer, device))
    all_codes = torch.cat(codes)  # [M, N]
    # Other captions are those of the same split, so that all texts have one distribution
    other_captions = derangement(len(captions))
    own_sums = _OwnCaptionSums(model)
    sums = {"none": [0.0, 0], "other": [0.0, 0]}  # nats, tokens
    # Logits of a pass: [size, N, K]
    size = max(1, min(batch_size, _MAX_LOGITS // (model.config.image_vocab * all_codes.shape[1])))
    for first in range(0, len(captions), size):
        part = slice(first, first + size)
        text = _encode(text_tokenizer, captions[part], model)
        own_sums.update(text, all_codes[part], text_tokenizer)
        for name in sums:
            if name == "none":
                condition = model.null_text(text)
            elif other_captions is None:
                continue
            else:
                other_part = [captions[index] for index in other_captions[part]]
                condition = _encode(text_tokenizer, other_part, model)
            nats = model.image_losses(condition, all_codes[part])
            sums[name][0] += nats.sum().item()
            sums[name][1] += nats.numel()
    metrics = own_sums.metrics()
    none, other = (total / count if count else None for total, count in sums.values())
    metrics |= {"image_nats_none": none, "image_nats_other": other}
    own_nats = metrics["image_nats"]
    assert none is not None and own_nats is not None
    return metrics | {"own_minus_none": own_nats - none, "own_minus_other": None if other is None else own_nats - other}


def derangement(count: int) -> Sequence[int] | None:
    """A permutation of `count` indices without fixed points: one random cycle, the same for the same count."""
    if count < 2:
        return None
    cycle = random.Random(0).sample(range(count), count)
    successors = [0] * count
    for position, index in enumerate(cycle):
        successors[index] = cycle[(position + 1) % count]
    return successors


class _OwnCaptionSums:
    """Sums over the forward passes with each image's own caption."""

    def __init__(self, model: DALLE):
        self.model = model
        self.temperature = TemperatureScaling()
        self.predicted_codes = CodebookUsage(model.config.image_vocab)
        self.image, self.text = [0.0, 0], [0.0, 0]  # nats, tokens
        self.correct = 0

    def update(self, text: Tensor, codes: Tensor, tokenizer: TextTokenizer | T5Encoder) -> None:
        """Add text [B, T] (features: [B, T, C]) and codes [B, N]."""
        text_nats, image_nats, predicted = self.model.token_losses_and_predictions(text, codes)
        self.temperature.update(self.model(text, codes).flatten(0, 1), codes.flatten())  # [B N, K], [B N]
        self.predicted_codes.update(predicted)
        self.correct += int((predicted == codes).sum())
        self.image[0] += image_nats.sum().item()
        self.image[1] += image_nats.numel()
        if isinstance(tokenizer, TextTokenizer) and text_nats.numel():  # not all models predict their text
            # Losses are those of the last tokens, as the first may have none
            not_padding = text[:, text.shape[1] - text_nats.shape[1] :] != tokenizer.pad_id
            self.text[0] += text_nats[not_padding].sum().item()
            self.text[1] += int(not_padding.sum())

    def metrics(self) -> dict[str, float | None]:
        """Means over all tokens."""
        temperature, nats = self.temperature.best()
        return {
            "image_nats": self.image[0] / self.image[1],
            "text_nats": self.text[0] / self.text[1] if self.text[1] else None,
            "image_accuracy": self.correct / self.image[1],
            "likeliest_used": self.predicted_codes.used,
            "best_temperature": temperature,
            "image_nats_calibrated": nats,
        }


def _encode(tokenizer: TextTokenizer | T5Encoder, captions: Sequence[str], model: DALLE) -> Tensor:
    text: Tensor = tokenizer.encode(captions, model.config.text_length)
    return text.to(device_of(model))
