"""Whether a DALL-E uses its caption: image nats with the own, no or another image's caption; and calibration."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from dalle.data.batch import Batch
from dalle.device import device_of
from dalle.evaluation.calibration import Temperatures
from dalle.evaluation.metrics import CodebookUsage
from dalle.image_tokenizers import ImageTokenizer
from dalle.models.dalle import DALLE
from dalle.text_tokenizers import TextTokenizer
from dalle.text_tokenizers.t5 import T5Encoder

_LOGITS = 2**26  # logits of one forward pass: 256 MiB of float32, whatever the vocabulary


@torch.no_grad()
def caption_metrics(
    model: DALLE,
    text_tokenizer: TextTokenizer | T5Encoder,
    image_tokenizer: ImageTokenizer,
    batches: Iterable[Batch],
    batch_size: int = 64,
) -> dict[str, float | None]:
    """All measures of one split (docs/evaluation.md).

    Args:
        model: in evaluation mode.
        text_tokenizer: encodes the captions.
        image_tokenizer: encodes the images to the codes that the model predicts.
        batches: images with captions.
        batch_size: images at a time.

    Returns:
        Each measure by name; None where there is nothing to measure (a single image has no other caption; a text
        encoder has no text tokens). Nats without a caption are measured even if the model was not trained with one.
    """
    device = device_of(model)
    captions: list[str] = []
    codes: list[Tensor] = []
    for batch in batches:
        captions += batch.captions
        codes.append(batch.codes(image_tokenizer, device))
    all_codes = torch.cat(codes)  # [M, N]
    others = deranged(len(captions))
    own, rest = _Sums(model), {"none": [0.0, 0], "other": [0.0, 0]}
    size = max(1, min(batch_size, _LOGITS // (model.config.image_vocab * all_codes.shape[1])))
    for first in range(0, len(captions), size):
        part = slice(first, first + size)
        text = _read(text_tokenizer, captions[part], model)
        own.update(text, all_codes[part], text_tokenizer)
        for name in rest:
            if name == "none":
                condition = model.null_text(text)
            elif others is None:
                continue
            else:
                condition = _read(text_tokenizer, [captions[index] for index in others[part]], model)
            nats = model.token_losses(condition, all_codes[part])[1]
            rest[name][0] += nats.sum().item()
            rest[name][1] += nats.numel()
    metrics = own.metrics()
    none, other = (total / count if count else None for total, count in rest.values())
    metrics |= {"image_nats_none": none, "image_nats_other": other}
    own_nats = metrics["image_nats"]
    assert none is not None and own_nats is not None
    return metrics | {"own_minus_none": own_nats - none, "own_minus_other": None if other is None else own_nats - other}


def deranged(count: int) -> Sequence[int] | None:
    """For each of `count` images another one, each once: a cycle through all in an order drawn with a fixed seed."""
    if count < 2:
        return None
    order = random.Random(0).sample(range(count), count)
    others = [0] * count
    for place, index in enumerate(order):
        others[index] = order[(place + 1) % count]
    return others


class _Sums:
    """Sums over the forward passes with the own captions."""

    def __init__(self, model: DALLE):
        self.model = model
        self.temperatures = Temperatures()
        self.guessed = CodebookUsage(model.config.image_vocab)
        self.image, self.text = [0.0, 0], [0.0, 0]
        self.correct = 0

    def update(self, text: Tensor, codes: Tensor, tokenizer: TextTokenizer | T5Encoder) -> None:
        """Add text [B, T] (features: [B, T, C]) and codes [B, N]."""
        of_text, of_image, predicted = self.model.token_losses_and_predictions(text, codes)
        self.temperatures.update(self.model(text, codes).flatten(0, 1), codes.flatten())
        self.guessed.update(predicted)
        self.correct += int((predicted == codes).sum())
        self.image[0] += of_image.sum().item()
        self.image[1] += of_image.numel()
        if isinstance(tokenizer, TextTokenizer) and of_text.numel():  # not all models predict their text
            real = text[:, text.shape[1] - of_text.shape[1] :] != tokenizer.pad_id
            self.text[0] += of_text[real].sum().item()
            self.text[1] += int(real.sum())

    def metrics(self) -> dict[str, float | None]:
        """Means over all tokens."""
        temperature, nats = self.temperatures.best()
        return {
            "image_nats": self.image[0] / self.image[1],
            "text_nats": self.text[0] / self.text[1] if self.text[1] else None,
            "image_accuracy": self.correct / self.image[1],
            "likeliest_used": self.guessed.used,
            "best_temperature": temperature,
            "image_nats_calibrated": nats,
        }


def _read(tokenizer: TextTokenizer | T5Encoder, captions: Sequence[str], model: DALLE) -> Tensor:
    text: Tensor = tokenizer.encode(captions, model.config.text_length)
    return text.to(device_of(model))
