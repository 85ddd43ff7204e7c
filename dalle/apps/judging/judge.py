"""Ranks the prompted concept, style and caption of an image by a classifier that no part of the model has seen.

The classifier is a small CNN trained from pixels on all images, the held-out ones too (`python -m dalle judge`), and
is used for evaluation only. Features of EfficientNet-Lite0 would not do: an image tokenizer may be trained on them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dalle.apps.judging.classifier import Classifier
from dalle.apps.judging.drawings import Drawings

CAPTIONS = 400
"""Number of captions among which an image's own one is ranked: itself and 399 distractors."""


@dataclass(frozen=True)
class Target:
    """What an image should show."""

    concept: str
    style: str
    caption: str


@dataclass(frozen=True)
class Ranks:
    """Ranks of the target, from 1, the best; ties count against it.

    Attributes:
        concept_rank: among all concepts.
        style_rank: among all styles.
        caption_rank: among `CAPTIONS` canonical captions.
    """

    concept_rank: int
    style_rank: int
    caption_rank: int


class Judge:
    """Ranks targets by a classifier; the score of a caption is the log probability of its concept and its style.

    Args:
        classifier: trained on all concepts and styles of the drawings.
        drawings: all images, whose captions the distractors are drawn from.

    Raises:
        ValueError: the classifier was trained on another data set.
    """

    def __init__(self, classifier: Classifier, drawings: Drawings):
        self.classifier = classifier
        self._concept_ids = {name: number for number, name in enumerate(classifier.concepts)}
        self._style_ids = {name: number for number, name in enumerate(classifier.styles)}
        classes: dict[str, tuple[int, int]] = {}  # caption -> ids of concept and style
        for index in range(len(drawings)):
            concept, style = drawings.concepts[index].phrase, drawings.styles[index]
            if concept not in self._concept_ids or style not in self._style_ids:
                raise ValueError(
                    f"the judge does not know {concept!r} in style {style!r}: train one on this data set (dalle judge)"
                )
            classes.setdefault(drawings.canonical_caption(index), (self._concept_ids[concept], self._style_ids[style]))
        captions = sorted(classes)
        # The same distractors for every model, so that tables can be compared
        chosen = random.Random(0).sample(captions, min(CAPTIONS - 1, len(captions)))
        self._distractors = {caption: classes[caption] for caption in chosen}

    def ranks(self, images: Tensor, targets: Sequence[Target]) -> list[Ranks]:
        """Ranks of the target of each of the images [N, 3, H, W] in [0, 1]."""
        concepts, styles = self.classifier.log_probs(images)
        ids = torch.tensor(list(self._distractors.values()))  # [399, 2]
        distractors = concepts[:, ids[:, 0]] + styles[:, ids[:, 1]]  # [N, 399]
        differs = torch.tensor([[target.caption != caption for caption in self._distractors] for target in targets])
        ranks = []
        for row, target in enumerate(targets):
            concept, style = self._concept_ids[target.concept], self._style_ids[target.style]
            score = concepts[row, concept] + styles[row, style]
            ranks.append(
                Ranks(
                    concept_rank=_rank(concepts[row], concept),
                    style_rank=_rank(styles[row], style),
                    caption_rank=1 + int(((distractors[row] >= score) & differs[row]).sum()),
                )
            )
        return ranks

    def concept_log_probs(self, images: Tensor, concepts: Sequence[str]) -> Tensor:
        """Log probabilities [N, len(concepts)] of some concepts for images [N, 3, H, W]."""
        return self.classifier.log_probs(images)[0][:, [self._concept_ids[name] for name in concepts]]


def rank_metrics(ranks: Sequence[Ranks]) -> dict[str, float]:
    """Top-1 and top-5 accuracy of concepts, accuracy of styles, top-1, top-10 and median rank of captions."""
    by_kind = {name: torch.tensor([getattr(item, name) for item in ranks]).double() for name in Ranks.__annotations__}
    return {
        "concept_top1": _top_k(by_kind["concept_rank"], 1),
        "concept_top5": _top_k(by_kind["concept_rank"], 5),
        "style": _top_k(by_kind["style_rank"], 1),
        "caption_top1": _top_k(by_kind["caption_rank"], 1),
        "caption_top10": _top_k(by_kind["caption_rank"], 10),
        "caption_median_rank": by_kind["caption_rank"].median().item(),
    }


def _rank(scores: Tensor, target: int) -> int:
    return int((scores >= scores[target]).sum())  # the target counts itself


def _top_k(ranks: Tensor, k: int) -> float:
    return (ranks <= k).double().mean().item()
