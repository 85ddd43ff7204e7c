"""Zero-shot classification: texts and labels to CLIP's unit vectors, and its accuracy on labeled images.

Letters: N texts, L labels, D dimensions of the vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


@torch.no_grad()
def zero_shot_metrics(
    clip: CLIP, labels: dict[str, tuple[str, ...]], templates: Sequence[str], batches: Iterable[Batch]
) -> dict[str, float]:
    """Accuracy of the label that is nearest to each image.

    Args:
        clip: has a text tokenizer.
        labels: L labels, with the words that each goes by.
        templates: K sentences with {}.
        batches: images whose captions are their labels (`dalle.data.labeled.LabeledPairs`).

    Returns:
        Those of `metrics.classification`, with zero_shot_ before their names.
    """
    vectors = label_embeds(clip, list(labels.values()), templates)
    number_of = {name: number for number, name in enumerate(labels)}
    device, cosines, targets = device_of(clip), [], []
    for batch in batches:
        cosines.append(clip.encode_image(batch.unit_images(device)).float().cpu() @ vectors.T)  # [B, L]
        targets += [number_of[name] for name in batch.captions]
    found = metrics.classification(torch.cat(cosines), torch.tensor(targets))
    return {f"zero_shot_{name}": value for name, value in found.items()}
