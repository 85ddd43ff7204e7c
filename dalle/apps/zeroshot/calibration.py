"""How probable it is that none of the labels fits an image: temperature and bias of a softmax, fitted to known images.

CLIP's learned scale is that of its training, with hundreds of captions per image, and a softmax knows of no labels but
those given. Temperature scaling (Guo et al. 2017, arXiv 1706.04599) with one more parameter, the bias of "none".

Shapes: N images, L labels, W null words, K draws.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.apps.embed import embed_images, fingerprint
from dalle.checkpoints.target import CALIBRATION
from dalle.data.labeled import LabeledImages
from dalle.files import expand_home, write_text
from dalle.models.clip import CLIP

if TYPE_CHECKING:
    from dalle.apps.zeroshot.classifier import ZeroShotClassifier

_DRAWS = 16  # sets of labels for each image
_MOST_LABELS = 10  # in one of them
_MOST_IMAGES = 2048  # more would hardly change two numbers
_BINS = 10


@dataclass(frozen=True)
class Calibration:
    """Makes probabilities of labels and of none from cosines.

    Attributes:
        temperature: divides all logits.
        none_bias: added to the logit of none, in nats.
        images: number of images that it was fitted to.
        clip: `fingerprint` of its CLIP; null: any.
    """

    temperature: float = 1.0
    none_bias: float = 0.0
    images: int = 0
    clip: str | None = None

    def probabilities(self, labels: Tensor, null: Tensor) -> Tensor:
        """The softmax over labels and none.

        Args:
            labels: logits of the labels, float [N, L]; -inf for those that an image is not asked about.
            null: logits of the null words, float [N, W].

        Returns:
            float [N, L + 1], the last column none. Rows sum to 1.
        """
        return _logits(labels, null, torch.tensor(self.temperature), torch.tensor(self.none_bias)).softmax(-1)

    def write(self, file: Path) -> None:
        """Write it as JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(asdict(self), indent=2) + "\n")


def read_calibration(file: Path, clip: CLIP) -> Calibration:
    """Read what `Calibration.write` wrote.

    Raises:
        ValueError: there is no such file, it is something else, or it was fitted to another CLIP.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file; `dalle eval classify IMAGES --calibrate {file}` writes one")
    try:
        found = Calibration(**json.loads(file.read_text(encoding="utf-8")))
        good = 0 < found.temperature < math.inf and math.isfinite(found.none_bias)
    except (ValueError, TypeError):
        good = False
    if not good:
        raise ValueError(
            f"{file} is no calibration: expected the JSON of `dalle eval classify IMAGES --calibrate FILE`"
        )
    if found.clip not in (None, fingerprint(clip)):
        raise ValueError(f"{file} was fitted to another CLIP: fit one to this by `dalle eval classify --calibrate`")
    return found


def calibration_beside(source: str | Path, clip: CLIP) -> Calibration | None:
    """The calibration in the folder that a CLIP was loaded from; None if there is none.

    Raises:
        ValueError: it is damaged, or was fitted to another CLIP.
    """
    file = expand_home(source) / CALIBRATION
    return read_calibration(file, clip) if file.is_file() else None


@dataclass(frozen=True)
class Trials:
    """Images, each asked about a few labels, with or without its own.

    Attributes:
        labels: logits of up to A labels, float [K, A]; -inf where there are fewer.
        null: logits of the null words, float [K, W].
        targets: int64 [K], the column of the right label; A where it is not among them.
    """

    labels: Tensor
    null: Tensor
    targets: Tensor

    def of(self, rows: Tensor) -> Trials:
        """Those in some rows."""
        return Trials(self.labels[rows], self.null[rows], self.targets[rows])


def draw_trials(labels: Tensor, null: Tensor, targets: Tensor, seed: int = 0) -> Trials:
    """Ask about each image several times: about 2 to 10 labels at random, half of the time with its own.

    Args:
        labels: logits of all labels, float [N, L], at least 3.
        null: logits of the null words, float [N, W].
        targets: the right label of each image, int64 [N].
        seed: of the draws.

    Returns:
        16 trials for each image, those of one image in a row.
    """
    most = min(_MOST_LABELS, labels.shape[1] - 1)
    generator = torch.Generator().manual_seed(seed)
    own = targets.repeat_interleave(_DRAWS)
    # Of each trial all labels in a random order, but the image's own first
    order = torch.rand(len(own), labels.shape[1], generator=generator).scatter(1, own[:, None], -1.0).argsort(1)
    sizes = torch.randint(2, most + 1, (len(own), 1), generator=generator)
    with_own = torch.rand(len(own), generator=generator) < 0.5
    asked = torch.where(with_own[:, None], order[:, :most], order[:, 1 : most + 1])
    logits = labels.repeat_interleave(_DRAWS, 0).gather(1, asked)
    logits = logits.masked_fill(torch.arange(most) >= sizes, -math.inf)
    return Trials(logits, null.repeat_interleave(_DRAWS, 0), torch.where(with_own, 0, most))


def fit(trials: Trials, images: int = 0, clip: str | None = None) -> Calibration:
    """The temperature and bias with the lowest cross-entropy of trials.

    The temperature is kept from 0.01 to 100, for trials that any sharper softmax would suit better.
    """
    # Finite, or the gradient by the temperature would be 0 times infinity
    labels, null, targets = trials.labels.double().clamp(min=-1e6), trials.null.double(), trials.targets
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # log of the temperature, bias
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        temperature = parameters[0].clamp(math.log(0.01), math.log(100)).exp()
        value = F.cross_entropy(_logits(labels, null, temperature, parameters[1]), targets)
        value.backward()
        return value

    optimizer.step(loss)
    temperature, bias = parameters.detach().tolist()
    return Calibration(math.exp(min(max(temperature, math.log(0.01)), math.log(100))), bias, images, clip)


def _logits(labels: Tensor, null: Tensor, temperature: Tensor, bias: Tensor) -> Tensor:
    none = (null / temperature).logsumexp(-1, keepdim=True) + bias
    return torch.cat([labels / temperature, none], dim=-1)


def measure(trials: Trials, calibration: Calibration) -> dict[str, float]:
    """How far the answers to trials can be trusted.

    Returns:
        `right`, the fraction of trials whose most probable answer, a label or none, is right; `calibration_error`, the
        mean difference of probability and accuracy of that answer in 10 bins, weighted by their sizes (expected
        calibration error); `nats`, the mean cross-entropy.
    """
    probabilities = calibration.probabilities(trials.labels, trials.null)
    confidence, answer = probabilities.max(-1)
    right = (answer == trials.targets).float()
    bins = (confidence * _BINS).long().clamp(max=_BINS - 1)
    sums = torch.zeros(_BINS).index_add_(0, bins, confidence - right)
    own = probabilities.gather(1, trials.targets[:, None]).clamp(min=1e-12)
    return {
        "right": right.mean().item(),
        "calibration_error": (sums.abs().sum() / len(right)).item(),
        "nats": -own.log().mean().item(),
    }


def check_fit(classifier: ZeroShotClassifier) -> None:
    """Check that a calibration can be fitted to a CLIP and labels, before images are read.

    Raises:
        ValueError: fewer than 3 labels, or the CLIP is a SigLIP.
    """
    if classifier.clip.config.sigmoid:
        raise ValueError("a SigLIP gives each label a probability of its own, trained as such: there is nothing to fit")
    count = len(classifier.labels)
    if count < 3:
        raise ValueError(f"{count} labels: give 3 at least, as images of one must be asked about two others")


def calibrate(
    classifier: ZeroShotClassifier,
    data: LabeledImages,
    batch_size: int = 64,
    workers: int = 0,
    progress: Callable[[int], object] | None = None,
) -> tuple[Calibration, dict[str, float]]:
    """Fit a calibration to images with known classes.

    Args:
        classifier: its labels must include all classes of the data.
        data: the images; best of a kind that the CLIP was not trained on, as those that it will be asked about are.
        batch_size: images at a time.
        workers: processes that read images; 0 reads them in this one.
        progress: called with the number of images of each batch.

    Returns:
        The calibration, fitted to all images, or to 2,048 of more, chosen at random. Before that, one is fitted to four
        fifths of them and measured on the others: these are the metrics, those of `measure`, and without calibration
        the same with `_before`.

    Raises:
        ValueError: fewer than 3 labels or 10 images, or the CLIP is a SigLIP.
    """
    check_fit(classifier)
    number_of = {label: number for number, label in enumerate(classifier.labels)}
    logits, null, targets = [], [], []
    for batch in embed_images(classifier.clip, data.records, batch_size, workers):
        names = [data.classes[number] for number in batch.numbers]
        there = [row for row, name in enumerate(names) if name in number_of]
        own, other = classifier.logits(batch.vectors[there])
        logits.append(own)
        null.append(other)
        targets += [number_of[str(names[row])] for row in there]
        if progress is not None:
            progress(len(batch.numbers) + len(batch.broken))
    if len(targets) < 10:
        raise ValueError(f"{len(targets)} usable images of known classes: give 10 at least")
    images = torch.randperm(len(targets), generator=torch.Generator().manual_seed(1))[:_MOST_IMAGES]
    trials = draw_trials(torch.cat(logits)[images], torch.cat(null)[images], torch.tensor(targets)[images])
    held = torch.arange(len(images)).repeat_interleave(_DRAWS) < len(images) // 5
    after = measure(trials.of(held), fit(trials.of(~held)))
    before = {f"{name}_before": value for name, value in measure(trials.of(held), Calibration()).items()}
    return fit(trials, len(images), fingerprint(classifier.clip)), after | before
