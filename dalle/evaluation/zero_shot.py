"""Zero-shot classification: texts and labels to CLIP's unit vectors, and its accuracy on labeled images.

Letters: N texts, L labels, W words of all labels, B images, D dimensions of the vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.data.batch import Batch
from dalle.device import device_of
from dalle.evaluation import metrics
from dalle.models.clip import CLIP


@torch.inference_mode()
def embed_texts(clip: CLIP, texts: Sequence[str], batch_size: int = 256) -> Tensor:
    """The vectors of texts.

    Returns:
        float32 [N, D], unit length, on the CPU.
    """
    parts = [clip.encode_text(list(texts[at : at + batch_size])) for at in range(0, len(texts), batch_size)]
    return torch.cat([part.float().cpu() for part in parts]) if parts else torch.empty(0, clip.config.embed_dim)


def label_embeds(clip: CLIP, synonyms: Sequence[Sequence[str]], templates: Sequence[str]) -> Tensor:
    """The normalized mean of the unit embeddings of each label's prompts.

    Args:
        clip: loaded by `dalle.load_clip`.
        synonyms: for each of L labels its synonyms.
        templates: prompt templates with {}.

    Returns:
        float32 [L, D], unit length.
    """
    prompts = [[template.replace("{}", word) for word in words for template in templates] for words in synonyms]
    embeds = embed_texts(clip, [prompt for of_label in prompts for prompt in of_label])  # [all prompts, D]
    means = [part.mean(dim=0) for part in embeds.split([len(of_label) for of_label in prompts])]  # [D] each
    return F.normalize(torch.stack(means), dim=-1)


class LabelScores:
    """How well labels fit images.

    A label goes by words. They are synonyms, whose prompts are averaged to one vector (CLIP paper, section 3.1.4); or
    subclasses, each with a vector of its own, of which an image need fit one: a label's share of the softmax is the sum
    of its subclasses' (CHiLS, Novack et al. 2023, arXiv 2302.02551, without its reweighting).

    Attributes:
        vectors: float32 [L, D], or with subclasses [W, D]; unit length.
    """

    def __init__(
        self, clip: CLIP, labels: Mapping[str, Sequence[str]], templates: Sequence[str], subclasses: bool = False
    ):
        self.clip, words = clip, list(labels.values())
        self.counts = [len(of_label) if subclasses else 1 for of_label in words]
        groups = [(word,) for of_label in words for word in of_label] if subclasses else words
        self.vectors = label_embeds(clip, groups, templates)

    def logits(self, image_embeds: Tensor) -> Tensor:
        """Float32 [B, L] whose softmax is the labels' probabilities, for unit vectors [B, D] on the CPU."""
        scaled = self.clip.scale.detach().cpu().float() * (image_embeds @ self.vectors.T)
        if len(self.vectors) == len(self.counts):
            return scaled
        return torch.stack([part.logsumexp(1) for part in scaled.split(self.counts, dim=1)], dim=1)

    def probabilities(self, image_embeds: Tensor) -> Tensor:
        """Float32 [B, L], a SigLIP's probability that any word of a label fits, each on its own.

        Raises:
            ValueError: the CLIP was trained with a softmax.
        """
        found = self.clip.probabilities(image_embeds @ self.vectors.T)
        if len(self.vectors) == len(self.counts):
            return found
        # 1 less the product of what each word leaves; by logarithms, as most probabilities are far below a float's step
        return torch.stack([-part.neg().log1p().sum(1).expm1() for part in found.split(self.counts, dim=1)], dim=1)


@torch.no_grad()
def zero_shot_metrics(
    clip: CLIP,
    labels: Mapping[str, Sequence[str]],
    templates: Sequence[str],
    batches: Iterable[Batch],
    subclasses: bool = False,
) -> dict[str, float]:
    """Accuracy of the label that fits each image best.

    Args:
        clip: has a text tokenizer.
        labels: L labels, with the words that each goes by.
        templates: K sentences with {}.
        batches: images whose captions are their labels (`dalle.data.labeled.LabeledPairs`).
        subclasses: whether the words are subclasses, see `LabelScores`.

    Returns:
        Those of `metrics.classification`, with zero_shot_ before their names.
    """
    scores = LabelScores(clip, labels, templates, subclasses)
    number_of = {name: number for number, name in enumerate(labels)}
    device, logits, targets = device_of(clip), [], []
    for batch in batches:
        logits.append(scores.logits(clip.encode_image(batch.unit_images(device)).float().cpu()))  # [B, L]
        targets += [number_of[name] for name in batch.captions]
    found = metrics.classification(torch.cat(logits), torch.tensor(targets))
    return {f"zero_shot_{name}": value for name, value in found.items()}
