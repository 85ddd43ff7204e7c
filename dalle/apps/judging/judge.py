"""A judge of drawings that no part of the model has seen: what it takes concept, style and caption of an image to be.

It is a small CNN, trained from pixels on all images, the held-out ones too (`python -m dalle judge`), and used for
nothing but judging. The features of EfficientNet-Lite0 would not do: an image tokenizer may be trained to keep them.
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
"""Captions among which the rank of an image's own one is told, its own one too."""


@dataclass(frozen=True)
class Asked:
    """What an image should show."""

    concept: str
    style: str
    caption: str


@dataclass(frozen=True)
class Verdict:
    """Ranks of what was asked for, 1 for the best; one that ties with another stands behind it.

    Attributes:
        concept_rank: Among all concepts.
        style_rank: Among all styles.
        caption_rank: Among 400 canonical captions: its own, and 399 drawn once from all.
    """

    concept_rank: int
    style_rank: int
    caption_rank: int


class Judge:
    """Ranks concepts, styles and captions for images; a caption's score is the sum of those of its concept and style.

    Args:
        classifier: Knows all concepts and styles of the drawings.
        drawings: All images, for their captions.

    Raises:
        ValueError: The classifier was trained on another data set.
    """

    def __init__(self, classifier: Classifier, drawings: Drawings):
        self.classifier = classifier
        self._concepts = {name: place for place, name in enumerate(classifier.concepts)}
        self._styles = {name: place for place, name in enumerate(classifier.styles)}
        shown: dict[str, tuple[int, int]] = {}
        for index in range(len(drawings)):
            concept, style = drawings.concepts[index].phrase, drawings.styles[index]
            if concept not in self._concepts or style not in self._styles:
                raise ValueError(
                    f"the judge does not know {concept!r} in style {style!r}: train one on this data set (dalle judge)"
                )
            shown.setdefault(drawings.canonical_caption(index), (self._concepts[concept], self._styles[style]))
        captions = sorted(shown)
        chosen = random.Random(0).sample(captions, min(CAPTIONS - 1, len(captions)))
        self._rivals = {caption: shown[caption] for caption in chosen}

    def verdicts(self, images: Tensor, asked: Sequence[Asked]) -> list[Verdict]:
        """What the judge sees in images [N, 3, H, W] in [0, 1], each beside what was asked for."""
        of_concept, of_style = self.classifier.chances(images)
        places = torch.tensor(list(self._rivals.values()))  # [399, 2]
        rivals = of_concept[:, places[:, 0]] + of_style[:, places[:, 1]]  # [N, 399]
        others = torch.tensor([[one.caption != caption for caption in self._rivals] for one in asked])
        found = []
        for row, one in enumerate(asked):
            concept, style = self._concepts[one.concept], self._styles[one.style]
            own = of_concept[row, concept] + of_style[row, style]
            found.append(
                Verdict(
                    concept_rank=_rank(of_concept[row], concept),
                    style_rank=_rank(of_style[row], style),
                    caption_rank=1 + int(((rivals[row] >= own) & others[row]).sum()),
                )
            )
        return found

    def concept_scores(self, images: Tensor, concepts: Sequence[str]) -> Tensor:
        """Logarithms of the probabilities of some concepts, [N, len(concepts)], for images [N, 3, H, W]."""
        return self.classifier.chances(images)[0][:, [self._concepts[name] for name in concepts]]


def verdict_metrics(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Shares of images: concept among the 1 and 5 best, style right, own caption among the 1 and 10 best; its rank."""
    ranks = {name: torch.tensor([getattr(one, name) for one in verdicts]).double() for name in Verdict.__annotations__}
    return {
        "concept_top1": _share(ranks["concept_rank"], 1),
        "concept_top5": _share(ranks["concept_rank"], 5),
        "style": _share(ranks["style_rank"], 1),
        "caption_top1": _share(ranks["caption_rank"], 1),
        "caption_top10": _share(ranks["caption_rank"], 10),
        "caption_median_rank": ranks["caption_rank"].median().item(),
    }


def _rank(scores: Tensor, own: int) -> int:
    return int((scores >= scores[own]).sum())


def _share(ranks: Tensor, most: int) -> float:
    return (ranks <= most).double().mean().item()
