"""A judge of drawings: a CLIP that no part of the model has seen, which names concept and style by zero-shot ranking.

It is trained on all images, the held-out ones too (configs/emoji/judge.yaml), so it knows what each caption looks like.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dalle.apps.embed import embed_texts, fingerprint
from dalle.apps.judging.drawings import Drawings
from dalle.checkpoints.load import load_clip
from dalle.images.transforms import resize_batch
from dalle.models.clip import CLIP

CAPTIONS = 400
"""Captions among which the rank of an image's own one is told, its own one too."""
_AT_ONCE = 64


@dataclass(frozen=True)
class Asked:
    """What an image should show."""

    concept: str
    style: str
    caption: str


class Judge:
    """Ranks concepts, styles and captions for images.

    The probabilities of all canonical captions of a data set (softmax of the CLIP's scaled cosines) are summed over
    styles for a concept, and over concepts for a style.

    Attributes:
        captions: The distinct canonical captions, M of them.
        concepts: The distinct concepts, C of them.
        styles: The distinct styles, S of them.
    """

    def __init__(self, clip: CLIP, drawings: Drawings):
        self.clip = clip
        shown: dict[str, tuple[str, str]] = {}
        for index in range(len(drawings)):
            caption = drawings.canonical_caption(index)
            shown.setdefault(caption, (drawings.concepts[index].phrase, drawings.styles[index]))
        self.captions = list(shown)
        self.concepts = sorted({concept for concept, _ in shown.values()})
        self.styles = sorted({style for _, style in shown.values()})
        self._place = {caption: place for place, caption in enumerate(self.captions)}
        places = {name: place for place, name in enumerate(self.concepts)}
        self._concept = torch.tensor([places[concept] for concept, _ in shown.values()])  # [M]
        self._style = torch.tensor([self.styles.index(style) for _, style in shown.values()])  # [M]
        self._texts = embed_texts(clip, self.captions)  # [M, D]
        others = random.Random(0).sample(range(len(self.captions)), min(CAPTIONS - 1, len(self.captions) - 1))
        self._others = torch.tensor(others)

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Tensor:
        """Unit vectors [N, D] of images [N, 3, H, W] in [0, 1], of any size."""
        size, device = self.clip.config.image_size, self.clip.logit_scale.device
        parts = [self.clip.encode_image(resize_batch(part.to(device), size)).cpu() for part in images.split(_AT_ONCE)]
        return torch.cat(parts)

    def text(self, caption: str) -> Tensor:
        """The unit vector [D] of any caption."""
        return embed_texts(self.clip, [caption])[0]

    def verdicts(self, images: Tensor, asked: Sequence[Asked]) -> list[Verdict]:
        """What the judge sees in images [N, 3, H, W], each beside what was asked for."""
        cosines = self.embed(images) @ self._texts.T  # [N, M]
        chances = (cosines * self.clip.scale.item()).softmax(1)
        of_concept = torch.zeros(len(images), len(self.concepts)).index_add_(1, self._concept, chances)
        of_style = torch.zeros(len(images), len(self.styles)).index_add_(1, self._style, chances)
        found = []
        for row, one in enumerate(asked):
            own = self._place[one.caption]
            rivals = cosines[row, self._others[self._others != own]]
            found.append(
                Verdict(
                    concept_rank=_rank(of_concept[row], self.concepts.index(one.concept)),
                    style_rank=_rank(of_style[row], self.styles.index(one.style)),
                    caption_rank=1 + int((rivals >= cosines[row, own]).sum()),
                )
            )
        return found


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


def load_judge(source: str | Path, ranks: CLIP | None, drawings: Drawings, device: str | torch.device = "cpu") -> Judge:
    """A judge of a model's drawings.

    Args:
        source: The judge's CLIP: a folder (or a hub id), or as published.
        ranks: The CLIP that chooses among the model's candidates.
        drawings: All images, the held-out ones too.
        device: Where the judge computes.

    Raises:
        ValueError: It is no CLIP, or the one that ranks.
    """
    clip = load_clip(source, device)
    if ranks is not None and fingerprint(ranks) == fingerprint(clip):
        raise ValueError(
            f"{source} is the CLIP that ranks the model's drawings: give a judge that it has not seen, trained by "
            "configs/emoji/judge.yaml"
        )
    return Judge(clip, drawings)


def _rank(scores: Tensor, own: int) -> int:
    return int((scores >= scores[own]).sum())


def _share(ranks: Tensor, most: int) -> float:
    return (ranks <= most).double().mean().item()
