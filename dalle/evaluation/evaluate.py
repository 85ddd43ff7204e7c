"""The figures that cards state: of a tokenizer, a CLIP or a DALL-E, over batches of a held-out split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle.checkpoints import model_folder
from dalle.checkpoints.hub import resolve
from dalle.checkpoints.load import load_clip, load_image_tokenizer
from dalle.checkpoints.parts import load_parts
from dalle.data import EncodedConfig, open_data
from dalle.data.loader import Batch, evaluation_batches
from dalle.data.token_shards.dataset import TokensData
from dalle.device import device_of
from dalle.evaluation import metrics
from dalle.image_tokenizers import ImageTokenizer
from dalle.models.clip import CLIP
from dalle.models.dalle import DALLE
from dalle.text_tokenizers import TextTokenizer
from dalle.text_tokenizers.t5 import T5Encoder


@torch.no_grad()
def image_tokenizer_figures(tokenizer: ImageTokenizer, batches: Iterable[Batch]) -> dict[str, float]:
    """PSNR (dB) and SSIM of reconstructions, and use of the codebook (share, perplexity, dead codes)."""
    device = device_of(tokenizer)
    use = metrics.CodebookUse(tokenizer.codebook_size)
    psnr: list[Tensor] = []
    ssim: list[Tensor] = []
    for batch in batches:
        images = batch.unit_images(device)
        codes = tokenizer.encode(images)
        again = tokenizer.decode(codes).float()
        use.update(codes)
        psnr.append(metrics.psnr(again, images))
        ssim.append(metrics.ssim(again, images))
    figures = {"psnr": torch.cat(psnr).mean().item(), "ssim": torch.cat(ssim).mean().item()}
    return figures | use.figures()


@torch.no_grad()
def clip_figures(clip: CLIP, tokenizer: TextTokenizer, batches: Iterable[Batch]) -> dict[str, float]:
    """Retrieval at 1 and 10, from image to text and back, among all pairs of the batches together."""
    device = device_of(clip)
    images: list[Tensor] = []
    text: list[Tensor] = []
    for batch in batches:
        images.append(clip.encode_image(batch.unit_images(device)))
        text.append(clip.encode_text(tokenizer.encode(batch.captions, clip.config.text_length).to(device)))
    return metrics.retrieval(torch.cat(images), torch.cat(text), (1, 10))


@torch.no_grad()
def dalle_figures(
    model: DALLE,
    text_tokenizer: TextTokenizer | T5Encoder,
    image_tokenizer: ImageTokenizer,
    batches: Iterable[Batch],
) -> dict[str, float]:
    """Mean nats per image token, and per text token that is not padding; how often the likeliest code is right.

    Also which share of the codebook the likeliest codes take: a model that guesses the same few has learnt little.
    """
    device = device_of(model)
    guessed = metrics.CodebookUse(model.config.image_vocab)
    image_sum, image_count, text_sum, text_count, hits = 0.0, 0, 0.0, 0, 0
    for batch in batches:
        text = text_tokenizer.encode(batch.captions, model.config.text_length).to(device)
        codes = batch.codes(image_tokenizer, device)
        of_text, of_image, likeliest = model.token_losses_and_likeliest(text, codes)  # [B, T - 1], [B, N], [B, N]
        hits += int((likeliest == codes).sum())
        guessed.update(likeliest)
        image_sum, image_count = image_sum + of_image.sum().item(), image_count + of_image.numel()
        if isinstance(text_tokenizer, TextTokenizer) and of_text.numel():  # not all models predict their text
            real = text[:, text.shape[1] - of_text.shape[1] :] != text_tokenizer.pad_id
            text_sum, text_count = text_sum + of_text[real].sum().item(), text_count + int(real.sum())
    nats = {"image_nats": image_sum / image_count, "text_nats": text_sum / max(text_count, 1)}
    return nats | {"image_accuracy": hits / image_count, "likeliest_used": guessed.used}


def evaluate(
    source: str | Path,
    data: EncodedConfig,
    split: str,
    batch_size: int = 64,
    limit: int | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Figures of a folder of weights on one split of a data set.

    Args:
        source: A folder (or hub id) with an image tokenizer, a CLIP or a DALL-E.
        data: The data set.
        split: Its split, for example "test_pair".
        batch_size: Images at a time; the figures do not depend on it.
        limit: Only so many images, evenly spread over the split.
        device: Where to compute.

    Returns:
        The figures of the folder's stage by name, and "images", how many were looked at.

    Raises:
        ValueError: The folder holds something that has no figures, or a number is out of range.
    """
    for name, number in (("batch_size", batch_size), ("limit", limit)):
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}: look at 1 image at least")
    images = 0

    def held_out(image_size: int) -> Iterator[Batch]:
        nonlocal images
        for batch in evaluation_batches(open_data(data, split, image_size), batch_size, limit=limit):
            images += len(batch.captions)
            yield batch

    folder = resolve(source)
    stage = model_folder.read_config(folder).get("stage")
    if isinstance(data, TokensData):
        if stage != "dalle":
            raise ValueError(f"{data.path} holds codes and no pictures, and {source} is no DALL-E: give it pictures")
        data.check_tokenizer(
            model_folder.folder_hash(model_folder.part(folder, "image_tokenizer")), f"that of {source}"
        )
    if stage == "image_tokenizer":
        tokenizer = load_image_tokenizer(folder, device)
        figures = image_tokenizer_figures(tokenizer, held_out(tokenizer.image_size))
    elif stage == "clip":
        clip = load_clip(folder, device)
        assert clip.tokenizer is not None
        figures = clip_figures(clip, clip.tokenizer, held_out(clip.config.image_size))
    elif stage == "dalle":
        parts = load_parts(folder, torch.device(device))
        images_of = held_out(parts.image_tokenizer.image_size)
        figures = dalle_figures(parts.model, parts.text_tokenizer, parts.image_tokenizer, images_of)
    else:
        raise ValueError(f"{source}: stage is {stage}; eval takes an image tokenizer, a CLIP or a DALL-E")
    return figures | {"images": images}


_MEANING = {
    "psnr": "dB, mean over the images",
    "ssim": "1 is equal",
    "codebook_used": "share of the codes that occur",
    "codebook_perplexity": "codes, if all were as frequent",
    "dead_codes": "codes that never occur",
    "image_nats": "nats per image token",
    "text_nats": "nats per text token",
    "image_accuracy": "share of the image tokens that are the model's likeliest",
    "likeliest_used": "share of the codes that are the likeliest somewhere",
}


def table(figures: dict[str, Any]) -> str:
    """Figures, one a line with its meaning."""
    meaning = dict(_MEANING)
    for name in figures:
        (one, other) = ("captions", "picture") if name.startswith("text_to_image") else ("pictures", "caption")
        meaning.setdefault(name, f"share of {one} whose {other} is among the {name.partition('@')[2]} best")
    return "\n".join(f"  {name:<20} {value:10.4f}  {meaning[name]}" for name, value in figures.items())
