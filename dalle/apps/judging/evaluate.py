"""Metrics of a model's samples for the captions of a split and for scenes, beside real images and baselines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dalle.apps.judging import scenes
from dalle.apps.judging.cache import cached_tensors
from dalle.apps.judging.candidates import Candidates, decode_images, sample_candidates
from dalle.apps.judging.drawings import Drawings, choose_baselines, choose_images, load_images, open_plain
from dalle.apps.judging.judge import Judge, Target, rank_metrics
from dalle.apps.judging.memorization import Neighbors, diversity, downsample, nearest_neighbors
from dalle.apps.judging.sheets import write_images, write_neighbors, write_sheet
from dalle.checkpoints.published.efficientnet import EfficientNetLite0
from dalle.config import to_dict
from dalle.data import AnyDataConfig
from dalle.data.drawings.config import check_languages
from dalle.evaluation.metrics import frechet_distance
from dalle.generation.rerank import score
from dalle.models.clip import CLIP
from dalle.pipelines.request import check_count, check_seed
from dalle.pipelines.text_to_image import TextToImage

Rows = dict[str, dict[str, float | None]]
"""Title of a row -> metric -> value; None where there is nothing to measure."""
_BATCH = 64
_DIVERSITY_CANDIDATES = 4  # of each prompt


@dataclass(frozen=True)
class SampleOptions:
    """What is sampled for the evaluation."""

    count: int
    """Number of prompts of each split, and of each kind of scene."""
    candidates: int = 16
    """Number of candidates per prompt; the one that the pipeline ranks first is evaluated besides that of
    the first seed."""
    seed: int = 0
    """Seed of the first candidate, and of the choice of prompts."""
    languages: tuple[str, ...] = ("en",)
    """Languages of the prompts: en, hi, ne."""
    out: Path = Path("runs/evaluation")
    """Folder for codes, features of the training images, and sheets."""

    def __post_init__(self) -> None:
        check_count("draw", self.count, 2)
        check_count("candidates", self.candidates)
        check_seed(self.seed, self.candidates)
        check_languages(self.languages)


@dataclass(frozen=True)
class _ImageSet:
    """Images of one row of the table, and which of the prompts they belong to."""

    images: Tensor  # [N, 3, H, W] in [0, 1]
    prompts: list[int]  # N indices


class SampleEvaluation:
    """Evaluates the samples of one model.

    Args:
        pipe: the model; its `sampling` holds the sampling options.
        judge: a classifier that was trained independently of the model.
        features: the network of Fréchet distances, diversity and nearest neighbors.
        data: the data set; the model was trained on its split "train".
        options: what to sample.
        scorer: a CLIP for the CLIP score, perhaps a published one; None leaves it out.
        progress: called with the number of prompts done after each group of them.
    """

    def __init__(
        self,
        pipe: TextToImage,
        judge: Judge,
        features: EfficientNetLite0,
        data: AnyDataConfig,
        options: SampleOptions,
        scorer: CLIP | None = None,
        progress: Callable[[int], object] | None = None,
    ):
        self.pipe, self.judge, self.network, self.data, self.options = pipe, judge, features, data, options
        self.scorer, self.progress = scorer, progress
        self.training = open_plain(data, "train", pipe.image_size)

    def evaluate_split(self, name: str, language: str = "en") -> Rows:
        """Metrics of samples for captions of a split, and of the baselines; writes sheets of both.

        Raises:
            ValueError: the split has fewer than 2 captions in the language.
        """
        drawings = open_plain(self.data, name, self.pipe.image_size)
        chosen = choose_images(drawings, self.options.count, self.options.seed)
        indices = [index for index in chosen if drawings.caption_in(index, language)]
        if len(indices) < 2:
            raise ValueError(f"split {name} has {len(indices)} captions in {language}: at least 2 are needed")
        prompts = [drawings.caption_in(index, language) or "" for index in indices]
        targets = [_target(drawings, index) for index in indices]
        candidates = self._sample(prompts)
        image_sets = self._image_sets(drawings, indices, candidates)
        real_features = self._features(image_sets["real"].images)
        rows: Rows = {}
        neighbors: dict[str, Neighbors] = {}
        for title, image_set in image_sets.items():
            features = self._features(image_set.images)
            neighbors[title] = nearest_neighbors(
                image_set.images, features, self._known["small"], self._known["features"]
            )
            metrics: dict[str, float | None] = {"images": len(image_set.images)}
            metrics |= rank_metrics(self.judge.ranks(image_set.images, [targets[i] for i in image_set.prompts]))
            metrics["frechet_lite0"] = frechet_distance(features, real_features) if title != "real" else None
            if self.scorer is not None:
                cosines = score(self.scorer, image_set.images, [prompts[i] for i in image_set.prompts])
                # CLIPScore counts negative cosines as 0 (Hessel et al. 2021, arXiv 2104.08718)
                metrics["clip_score"] = 100 * cosines.clamp(min=0).mean().item()
            metrics["near_copies"] = neighbors[title].near_copies
            metrics["neighbor_rmse"] = neighbors[title].errors.median().item()
            rows[title] = metrics
        if self.options.candidates > 1:
            rows["n = 1"]["diversity"] = self._diversity(candidates)
        self._write_sheets(f"{name}-{language}", prompts, image_sets, neighbors)
        return rows

    def evaluate_scenes(self) -> Rows:
        """Accuracy of background colors, colors of one-color icons, and spatial relations of two objects.

        What the chosen images give no prompts for is left out.
        """
        chosen = choose_images(self.training, self.options.count, self.options.seed)
        rows: Rows = {}
        backgrounds = scenes.background_prompts(self.training, chosen, self.options.seed)
        if backgrounds:  # there are none where no image leaves its border free
            for title, images in self._first_and_best([item.prompt for item in backgrounds]).items():
                rows[title] = {"background": scenes.background_accuracy(images, backgrounds)}
        icons = scenes.icon_prompts(self.training, self.options.count, self.options.seed)
        if icons:
            for title, images in self._first_and_best([item.prompt for item in icons]).items():
                rows.setdefault(title, {})["icon_color"] = scenes.icon_color_accuracy(images, icons)
        relations = scenes.relation_prompts(self.training, chosen, self.options.seed)
        if relations:
            for title, images in self._first_and_best([item.prompt for item in relations]).items():
                rows.setdefault(title, {})["relation"] = scenes.relation_accuracy(self.judge, images, relations)
            real = scenes.compose_scenes(self.training, relations)
            reconstructed = decode_images(self.pipe, self._encode(real))
            rows["real"] = {"relation": scenes.relation_accuracy(self.judge, real, relations)}
            rows["reconstruction"] = {"relation": scenes.relation_accuracy(self.judge, reconstructed, relations)}
        return rows

    def _image_sets(self, drawings: Drawings, indices: list[int], candidates: Candidates) -> dict[str, _ImageSet]:
        """Samples and baselines by the titles of their rows."""
        every_prompt = list(range(len(indices)))
        real = load_images(drawings, indices)
        baselines = choose_baselines(drawings, indices, self.training, self.options.seed)
        image_sets = {
            title: _ImageSet(images, every_prompt) for title, images in self._decode_first_and_best(candidates).items()
        }
        image_sets["real"] = _ImageSet(real, every_prompt)
        image_sets["reconstruction"] = _ImageSet(decode_images(self.pipe, self._encode(real)), every_prompt)
        styled = {prompt: other for prompt, other in enumerate(baselines.other_style) if other is not None}
        if styled:
            image_sets["other style"] = _ImageSet(load_images(self.training, list(styled.values())), list(styled))
        image_sets["random"] = _ImageSet(load_images(self.training, baselines.random), every_prompt)
        return image_sets

    def _first_and_best(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Images of the first and the best candidate of each prompt, by the titles of their rows."""
        return self._decode_first_and_best(self._sample(prompts))

    def _decode_first_and_best(self, candidates: Candidates) -> dict[str, Tensor]:
        images = {"n = 1": decode_images(self.pipe, candidates.first())}
        best = candidates.best() if self.options.candidates > 1 else None
        if best is not None:
            images[f"best of {self.options.candidates}"] = decode_images(self.pipe, best)
        return images

    def _sample(self, prompts: Sequence[str]) -> Candidates:
        options = self.options
        return sample_candidates(self.pipe, prompts, options.candidates, options.out, options.seed, self.progress)

    def _encode(self, images: Tensor) -> Tensor:
        device = self.pipe.image_tokenizer.last_layer.device
        parts = [self.pipe.image_tokenizer.encode(part.to(device)).cpu() for part in images.split(_BATCH)]
        return torch.cat(parts)

    def _features(self, images: Tensor) -> Tensor:
        device = next(self.network.parameters()).device
        return torch.cat([self.network(part.to(device)).cpu() for part in images.split(_BATCH)])

    def _diversity(self, candidates: Candidates) -> float:
        codes = candidates.codes[:, :_DIVERSITY_CANDIDATES]  # [P, 4, h, w]
        features = self._features(decode_images(self.pipe, codes.flatten(0, 1)))
        return diversity(features.view(*codes.shape[:2], -1))

    @cached_property
    def _known(self) -> dict[str, Tensor]:
        """Training images at 32x32 ("small") and their "features"; kept in a file, as 10,000 images take minutes."""
        key = json.dumps([to_dict(self.data), self.pipe.image_size, len(self.training)], default=str)
        file = self.options.out / f"training-{hashlib.sha256(key.encode()).hexdigest()[:20]}.safetensors"

        def compute() -> dict[str, Tensor]:
            small, features = [], []
            bar = tqdm(range(0, len(self.training), _BATCH), "features of training images", disable=None, leave=False)
            for first in bar:
                images = load_images(self.training, range(first, min(first + _BATCH, len(self.training))))
                small.append(downsample(images))
                features.append(self._features(images))
            return {"small": torch.cat(small), "features": torch.cat(features)}

        # In float16: comparisons need no more, and the file is half as large
        found = cached_tensors(file, compute, ["small", "features"], "float16")
        return {name: tensor.float() for name, tensor in found.items()}

    def _write_sheets(
        self, name: str, prompts: Sequence[str], image_sets: dict[str, _ImageSet], neighbors: dict[str, Neighbors]
    ) -> None:
        """Write samples beside real images and beside their nearest training images, and each image as a file."""
        out = self.options.out
        titles = [title for title in image_sets if title.startswith(("n = 1", "best", "real", "recon"))]
        for title in titles:
            folder_name = title.replace(" ", "-").replace("=-", "")  # "n = 1" is n-1
            write_images(out / "images" / name / folder_name, image_sets[title].images)
        write_sheet(out / f"{name}.png", prompts, {title: image_sets[title].images for title in titles})
        sampled = titles[1] if titles[1].startswith("best") else titles[0]
        found = neighbors[sampled]
        images = load_images(self.training, found.indices.tolist())
        captions = [self.training.canonical_caption(index) for index in found.indices.tolist()]
        write_neighbors(out / f"{name}-neighbors.png", prompts, image_sets[sampled].images, images, captions, found)


def _target(drawings: Drawings, index: int) -> Target:
    return Target(drawings.concepts[index].phrase, drawings.styles[index], drawings.canonical_caption(index))
