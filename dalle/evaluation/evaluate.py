"""Metrics of a tokenizer, a CLIP or a DALL-E over batches of a split: what a run validates with, and more."""

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


class Reconstructions:
    """PSNR (dB) and SSIM of reconstructions, and use of the codebook (share, perplexity, dead codes), over batches."""

    def __init__(self, codebook_size: int):
        self.use = metrics.CodebookUsage(codebook_size)
        self.psnr: list[Tensor] = []
        self.ssim: list[Tensor] = []

    def update(self, images: Tensor, codes: Tensor, reconstructions: Tensor) -> None:
        """Add images [B, 3, H, W] in [0, 1], their codes, and the images decoded from these."""
        self.use.update(codes)
        self.psnr.append(metrics.psnr(reconstructions, images))
        self.ssim.append(metrics.ssim(reconstructions, images))

    def metrics(self) -> dict[str, float]:
        """Means over all images, and the codebook's use."""
        means = {"psnr": torch.cat(self.psnr).mean().item(), "ssim": torch.cat(self.ssim).mean().item()}
        return means | self.use.metrics()


@torch.no_grad()
def image_tokenizer_metrics(tokenizer: ImageTokenizer, batches: Iterable[Batch]) -> dict[str, float]:
    """PSNR (dB) and SSIM of reconstructions, and use of the codebook: what a run validates with."""
    device = device_of(tokenizer)
    made = Reconstructions(tokenizer.codebook_size)
    for batch in batches:
        images = batch.unit_images(device)
        codes = tokenizer.encode(images)
        made.update(images, codes, tokenizer.decode(codes).float())
    return made.metrics()


@torch.no_grad()
def retrieval_metrics(clip: CLIP, tokenizer: TextTokenizer, batches: Iterable[Batch]) -> dict[str, float]:
    """Retrieval at 1 and 10, from image to text and back, among all pairs of the batches together."""
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
    """Mean nats per image token, and per text token that is not padding; how often the likeliest code is correct.

    Also which share of the codebook the likeliest codes take: a model that guesses the same few has learnt little.
    """
    device = device_of(model)
    guessed = metrics.CodebookUsage(model.config.image_vocab)
    image_sum, image_count, text_sum, text_count, correct = 0.0, 0, 0.0, 0, 0
    for batch in batches:
        text = text_tokenizer.encode(batch.captions, model.config.text_length).to(device)
        codes = batch.codes(image_tokenizer, device)
        of_text, of_image, predicted = model.token_losses_and_predictions(text, codes)  # [B, T - 1], [B, N], [B, N]
        correct += int((predicted == codes).sum())
        guessed.update(predicted)
        image_sum, image_count = image_sum + of_image.sum().item(), image_count + of_image.numel()
        if isinstance(text_tokenizer, TextTokenizer) and of_text.numel():  # not all models predict their text
            real = text[:, text.shape[1] - of_text.shape[1] :] != text_tokenizer.pad_id
            text_sum, text_count = text_sum + of_text[real].sum().item(), text_count + int(real.sum())
    nats = {"image_nats": image_sum / image_count, "text_nats": text_sum / max(text_count, 1)}
    return nats | {"image_accuracy": correct / image_count, "likeliest_used": guessed.used}
