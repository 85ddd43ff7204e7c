"""Drawings of a model beside real images and other baselines, judged by what has had no part in the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dalle.apps.judging import scenes
from dalle.apps.judging.copies import Neighbors, diversity, nearest, small
from dalle.apps.judging.draw import Candidates, decoded, draw
from dalle.apps.judging.drawings import Drawings, beside, chosen, images_of, open_plain
from dalle.apps.judging.judge import Asked, Judge, verdict_metrics
from dalle.apps.judging.sheets import write_images, write_neighbors, write_sheet
from dalle.checkpoints.published.efficientnet import EfficientNetLite0
from dalle.checkpoints.tensors import read_tensors, write_tensors
from dalle.config import to_dict
from dalle.data import AnyDataConfig
from dalle.evaluation.metrics import frechet_distance
from dalle.files import atomic_file
from dalle.generation.rerank import score
from dalle.models.clip import CLIP
from dalle.pipelines.text_to_image import TextToImage

Rows = dict[str, dict[str, float | None]]
_BATCH = 64
_DIVERSE = 4  # candidates of each prompt that diversity is measured on


@dataclass(frozen=True)
class DrawOptions:
    """How many drawings are judged, and how they come about."""

    count: int
    """Prompts of each split, and of each kind of scene."""
    candidates: int = 16
    """Of each prompt; the best by the model's CLIP is judged beside the first."""
    seed: int = 0
    """Of the first candidate, and of the choice of prompts."""
    languages: tuple[str, ...] = ("en",)
    """Of the prompts: en, hi, ne."""
    out: Path = Path("runs/evaluation")
    """Folder for codes, features of the training images, and sheets."""

    def __post_init__(self) -> None:
        for name, least in (("count", 2), ("candidates", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: at least {least}")


class Examination:
    """All that one model is judged with.

    Args:
        pipe: The model, its `sampling` as it is to draw.
        judge: Has had no part in it.
        features: The network of Frechet distances, diversity and neighbors.
        data: The data set that the model was trained on part of.
        options: How much is drawn.
        scorer: A CLIP whose CLIP score is told too, a published one perhaps.
        progress: Called with a number of prompts after these were drawn.
    """

    def __init__(
        self,
        pipe: TextToImage,
        judge: Judge,
        features: EfficientNetLite0,
        data: AnyDataConfig,
        options: DrawOptions,
        scorer: CLIP | None = None,
        progress: Callable[[int], object] | None = None,
    ):
        self.pipe, self.judge, self.network, self.data, self.options = pipe, judge, features, data, options
        self.scorer, self.progress = scorer, progress
        self.known = open_plain(data, "train", pipe.image_size)
        stored = self._training_images()
        self.known_small, self.known_features = stored["small"], stored["features"]

    def split(self, name: str, language: str = "en") -> Rows:
        """Drawings for captions of a split, and the baselines: one row of measures each.

        Raises:
            ValueError: The split has fewer than 2 captions in the language.
        """
        drawings = open_plain(self.data, name, self.pipe.image_size)
        indices = [
            i for i in chosen(drawings, self.options.count, self.options.seed) if drawings.caption_in(i, language)
        ]
        if len(indices) < 2:
            raise ValueError(f"split {name} has {len(indices)} captions in {language}: at least 2 are needed")
        prompts = [drawings.caption_in(index, language) or "" for index in indices]
        asked = [_asked(drawings, index) for index in indices]
        made = self._draw(prompts)
        real = images_of(drawings, indices)
        others = beside(drawings, indices, self.known, self.options.seed)
        there = [place for place, other in enumerate(others.other_style) if other is not None]
        sets: dict[str, tuple[Tensor, list[int]]] = {}
        everything = list(range(len(indices)))
        sets["n = 1"] = decoded(self.pipe, made.first()), everything
        best = made.best() if self.options.candidates > 1 else None
        if best is not None:
            sets[f"best of {self.options.candidates}"] = decoded(self.pipe, best), everything
        sets["real"] = real, everything
        sets["reconstruction"] = decoded(self.pipe, self._encoded(real)), everything
        if there:
            styled = images_of(self.known, [index for index in others.other_style if index is not None])
            sets["other style"] = styled, there
        sets["random"] = images_of(self.known, others.random), everything
        rows: Rows = {}
        real_features = self._features(real)
        neighbors: dict[str, Neighbors] = {}
        for title, (images, places) in sets.items():
            found = self._features(images)
            neighbors[title] = nearest(images, found, self.known_small, self.known_features)
            metrics: dict[str, float | None] = {"images": len(images)}
            metrics |= verdict_metrics(self.judge.verdicts(images, [asked[place] for place in places]))
            metrics["frechet_lite0"] = frechet_distance(found, real_features) if title != "real" else None
            if self.scorer is not None:
                cosines = score(self.scorer, images, [prompts[place] for place in places])
                metrics["clip_score"] = 100 * cosines.clamp(min=0).mean().item()
            metrics["near_copies"] = neighbors[title].near_copies
            metrics["neighbor_rmse"] = neighbors[title].errors.median().item()
            rows[title] = metrics
        if self.options.candidates > 1:
            rows["n = 1"]["diversity"] = self._diversity(made)
        self._sheets(f"{name}-{language}", prompts, sets, neighbors)
        return rows

    def scenes(self) -> Rows:
        """Colors of backgrounds and of one-color icons, and relations of two things: shares that are right."""
        indices = chosen(self.known, self.options.count, self.options.seed)
        rows: Rows = {}
        backgrounds = scenes.background_prompts(self.known, indices, self.options.seed)
        for title, images in self._both([one.prompt for one in backgrounds]).items():
            rows[title] = {"background": scenes.background_right(images, backgrounds)}
        icons = scenes.icon_prompts(self.known, self.options.count, self.options.seed)
        if icons:
            for title, images in self._both([one.prompt for one in icons]).items():
                rows[title]["icon_color"] = scenes.icon_right(images, icons)
        relations = scenes.relation_prompts(self.known, indices, self.options.seed)
        if relations:
            for title, images in self._both([one.prompt for one in relations]).items():
                rows[title]["relation"] = scenes.relation_right(self.judge, images, relations)
            real = scenes.real_scenes(self.known, relations)
            again = decoded(self.pipe, self._encoded(real))
            rows["real"] = {"relation": scenes.relation_right(self.judge, real, relations)}
            rows["reconstruction"] = {"relation": scenes.relation_right(self.judge, again, relations)}
        return rows

    def _both(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The first and the best drawing of each prompt."""
        made = self._draw(prompts)
        found = {"n = 1": decoded(self.pipe, made.first())}
        best = made.best() if self.options.candidates > 1 else None
        if best is not None:
            found[f"best of {self.options.candidates}"] = decoded(self.pipe, best)
        return found

    def _draw(self, prompts: Sequence[str]) -> Candidates:
        options = self.options
        return draw(self.pipe, prompts, options.candidates, options.out, options.seed, self.progress)

    def _encoded(self, images: Tensor) -> Tensor:
        device = self.pipe.image_tokenizer.last_layer.device
        parts = [self.pipe.image_tokenizer.encode(part.to(device)).cpu() for part in images.split(_BATCH)]
        return torch.cat(parts)

    def _features(self, images: Tensor) -> Tensor:
        device = next(self.network.parameters()).device
        return torch.cat([self.network(part.to(device)).cpu() for part in images.split(_BATCH)])

    def _diversity(self, made: Candidates) -> float:
        few = made.codes[:, :_DIVERSE]
        return diversity(self._features(decoded(self.pipe, few.flatten(0, 1))).view(*few.shape[:2], -1))

    def _training_images(self) -> dict[str, Tensor]:
        """Training images at 32x32, and their features; kept on disk, as they take a minute for 10,000."""
        told = json.dumps([to_dict(self.data), self.pipe.image_size, len(self.known)], default=str)
        file = self.options.out / f"training-{hashlib.sha256(told.encode()).hexdigest()[:20]}.safetensors"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            smaller, found = [], []
            for first in range(0, len(self.known), _BATCH):
                images = images_of(self.known, range(first, min(first + _BATCH, len(self.known))))
                smaller.append(small(images))
                found.append(self._features(images))
            with atomic_file(file) as part:
                write_tensors({"small": torch.cat(smaller), "features": torch.cat(found)}, part, "float16")
        return {name: tensor.float() for name, tensor in read_tensors(file).items()}

    def _sheets(
        self,
        name: str,
        prompts: Sequence[str],
        sets: dict[str, tuple[Tensor, list[int]]],
        neighbors: dict[str, Neighbors],
    ) -> None:
        """Drawings beside real images, and beside their nearest training images; and each as a file of its own."""
        shown = [title for title in sets if title.startswith(("n = 1", "best", "real", "recon"))]
        for title in shown:
            write_images(self.options.out / "images" / name / title.replace(" ", "-").replace("=-", ""), sets[title][0])
        write_sheet(self.options.out / f"{name}.png", prompts, {title: sets[title][0] for title in shown})
        drawn = shown[1] if shown[1].startswith("best") else shown[0]
        close = neighbors[drawn]
        images = images_of(self.known, close.indices.tolist())
        captions = [self.known.canonical_caption(index) for index in close.indices.tolist()]
        write_neighbors(self.options.out / f"{name}-neighbors.png", prompts, sets[drawn][0], images, captions, close)


def _asked(drawings: Drawings, index: int) -> Asked:
    return Asked(drawings.concepts[index].phrase, drawings.styles[index], drawings.canonical_caption(index))
