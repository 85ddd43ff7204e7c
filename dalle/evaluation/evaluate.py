"""Metrics of an image tokenizer, a CLIP or a DALL-E over batches of a split, also used to validate in training."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dalle.data.batch import Batch
from dalle.device import device_of
from dalle.evaluation import metrics
from dalle.image_tokenizers import ImageTokenizer
from dalle.models.clip import CLIP
from dalle.models.dalle import DALLE
from dalle.text_tokenizers import TextTokenizer
from dalle.text_tokenizers.t5 import T5Encoder


class ReconstructionMetrics:
    """PSNR (dB) and SSIM of reconstructions, and codebook usage (fraction, perplexity, dead codes), over batches."""

    def __init__(self, codebook_size: int):
        self.codebook = metrics.CodebookUsage(codebook_size)
        self.psnr: list[Tensor] = []
        self.ssim: list[Tensor] = []

    def update(self, images: Tensor, codes: Tensor, reconstructions: Tensor) -> None:
        """Add images [B, 3, H, W] in [0, 1], their codes, and reconstructions decoded from the codes."""
        self.codebook.update(codes)
        self.psnr.append(metrics.psnr(reconstructions, images))
        self.ssim.append(metrics.ssim(reconstructions, images))

    def metrics(self) -> dict[str, float]:
        """Means over all images, and codebook usage."""
        means = {"psnr": torch.cat(self.psnr).mean().item(), "ssim": torch.cat(self.ssim).mean().item()}
        return means | self.codebook.metrics()


@torch.no_grad()
def image_tokenizer_metrics(tokenizer: ImageTokenizer, batches: Iterable[Batch]) -> dict[str, float]:
    """PSNR (dB) and SSIM of reconstructions, and codebook usage."""
    device = device_of(tokenizer)
    metrics = ReconstructionMetrics(tokenizer.codebook_size)
    for batch in batches:
        images = batch.unit_images(device)
        codes = tokenizer.encode(images)
        metrics.update(images, codes, tokenizer.decode(codes).float())
    return metrics.metrics()


@torch.no_grad()
def retrieval_metrics(clip: CLIP, tokenizer: TextTokenizer, batches: Iterable[Batch]) -> dict[str, float]:
    """Recall at 1 and 10 of image-to-text and text-to-image retrieval, among all pairs of all batches."""
    device = device_of(clip)
    images: list[Tensor] = []
    text: list[Tensor] = []
    for batch in batches:
        images.append(clip.encode_image(batch.unit_images(device)))
        text.append(clip.encode_text(tokenizer.encode(batch.captions, clip.config.text_length).to(device)))
    return metrics.retrieval(torch.cat(images), torch.cat(text), (1, 10))


@torch.no_grad()
def token_metrics(
    model: DALLE,
    text_tokenizer: TextTokenizer | T5Encoder,
    image_tokenizer: ImageTokenizer,
    batches: Iterable[Batch],
) -> dict[str, float]:
    """Nats per image token and per text token that is not padding; accuracy of the predicted codes.

    "text_nats" is left out of a model that predicts no text.
    "likeliest_used" is the fraction of the codebook that is predicted (most likely) somewhere: a model that always
    predicts the same few codes has learned little.
    """
    device = device_of(model)
    predicted_codes = metrics.CodebookUsage(model.config.image_vocab)
    image_sum, image_count, text_sum, text_count, correct = 0.0, 0, 0.0, 0, 0
    for batch in batches:
        text = text_tokenizer.encode(batch.captions, model.config.text_length).to(device)
        codes = batch.codes(image_tokenizer, device)
        text_nats, image_nats, predicted = model.token_losses_and_predictions(text, codes)  # [B, T - 1], [B, N], [B, N]
        correct += int((predicted == codes).sum())
        predicted_codes.update(predicted)
        image_sum, image_count = image_sum + image_nats.sum().item(), image_count + image_nats.numel()
        if isinstance(text_tokenizer, TextTokenizer) and text_nats.numel():  # not all models predict their text
            # Losses are those of the last tokens, as the first is given and has none
            not_padding = text[:, text.shape[1] - text_nats.shape[1] :] != text_tokenizer.pad_id
            text_sum, text_count = text_sum + text_nats[not_padding].sum().item(), text_count + int(not_padding.sum())
    nats = {"image_nats": image_sum / image_count} | ({"text_nats": text_sum / text_count} if text_count else {})
    return nats | {"image_accuracy": correct / image_count, "likeliest_used": predicted_codes.used}
