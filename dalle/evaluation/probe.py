"""Linear probe: how well classes can be read off frozen features by logistic regression.

The protocol is that of the CLIP paper (Radford et al. 2021, arXiv 2103.00020, appendix A.3).

Letters: N images, C channels of the features, L classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.evaluation import metrics

DECADES = (-6, 6)
"""Powers of ten between which the strength of the regularization is searched."""
STEPS_PER_DECADE = 8
_MAX_ITERATIONS = 1000  # "maximum 1,000 iterations"
_HELD_OUT = 5  # one image in so many of each class is held out


@dataclass(frozen=True)
class LinearClassifier:
    """Logits x @ weight.T + bias."""

    weight: Tensor
    """[L, C]."""
    bias: Tensor
    """[L]."""

    def logits(self, features: Tensor) -> Tensor:
        """Features [N, C] to logits [N, L]."""
        return features.to(self.weight.dtype) @ self.weight.T + self.bias


@dataclass(frozen=True)
class Probe:
    """Result of a linear probe.

    Attributes:
        classifier: fitted on all training images.
        strength: the regularization that was best on the held-out part of them.
        validation: accuracy there, in [0, 1].
    """

    classifier: LinearClassifier
    strength: float
    validation: float


def fit_logistic(features: Tensor, targets: Tensor, classes: int, strength: float) -> LinearClassifier:
    """Fit multinomial logistic regression by L-BFGS: the sum of cross-entropies plus strength / 2 * |weight|^2.

    That is scikit-learn's LogisticRegression(C=1 / strength) for three classes or more. The bias is not regularized.

    Args:
        features: [N, C].
        targets: int64 [N], from 0 to `classes` - 1.
        classes: L, at least 2.
        strength: of the L2 regularization, above 0.
    """
    x, count = features.double(), len(features)
    # The bias is the last column
    parameters = torch.zeros(classes, x.shape[1] + 1, dtype=torch.float64, device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS(
        [parameters],
        max_iter=_MAX_ITERATIONS,
        tolerance_grad=1e-8,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        weight, bias = parameters[:, :-1], parameters[:, -1]
        # The mean of the losses, so that tolerances do not depend on their number; `strength` is for their sum
        loss = F.cross_entropy(x @ weight.T + bias, targets) + strength / (2 * count) * weight.square().sum()
        loss.backward()
        return loss

    solver.step(objective)
    found = parameters.detach()
    return LinearClassifier(found[:, :-1], found[:, -1])


def fit_probe(features: Tensor, targets: Tensor, classes: int, seed: int = 0) -> Probe:
    """Choose the regularization on a held-out fifth of the images, then fit all of them with it.

    Strengths lie between 1e-6 and 1e6, eight to a decade. The search starts with every second decade and halves the
    interval around the best one until neighbors are tried, as in the paper; of equally good ones it takes the
    strongest.

    Args:
        features: [N, C], of images to train on.
        targets: int64 [N], their classes; at least two images of each class that occurs.
        classes: L, at least 2.
        seed: which images are held out.

    Raises:
        ValueError: fewer than two classes, or a class with one image.
    """
    kept, held = held_out(targets, seed)
    tried: dict[int, float] = {}

    def accuracy(place: int) -> float:
        if place not in tried:
            classifier = fit_logistic(features[kept], targets[kept], classes, _strength(place))
            tried[place] = metrics.accuracy(classifier.logits(features[held]), targets[held], (1,))["top_1"]
        return tried[place]

    last = (DECADES[1] - DECADES[0]) * STEPS_PER_DECADE
    step = 2 * STEPS_PER_DECADE
    best = max(range(0, last + 1, step), key=lambda place: (accuracy(place), place))
    while step > 1:
        step //= 2
        near = [place for place in (best - step, best, best + step) if 0 <= place <= last]
        best = max(near, key=lambda place: (accuracy(place), place))
    return Probe(fit_logistic(features, targets, classes, _strength(best)), _strength(best), tried[best])


def held_out(targets: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split images at random into four fifths and one fifth of each class, at least one of each.

    Args:
        targets: int64 [N].
        seed: of the choice.

    Returns:
        Indices of the larger and of the smaller part, int64, each in ascending order.

    Raises:
        ValueError: fewer than two classes, or a class with one image.
    """
    counts = torch.bincount(targets)
    there = counts.nonzero().flatten()
    if len(there) < 2:
        raise ValueError(f"the images are of {len(there)} class: a probe tells at least two apart")
    if int(counts[there].min()) < 2:
        lonely = int(there[counts[there].argmin()])
        raise ValueError(f"class number {lonely + 1} has one image: at least two are needed, one of them to hold out")
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(targets), dtype=torch.bool)
    for number in there.tolist():
        own = (targets.cpu() == number).nonzero().flatten()
        held[own[torch.randperm(len(own), generator=generator)[: max(1, len(own) // _HELD_OUT)]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def _strength(place: int) -> float:
    return float(10.0 ** (DECADES[0] + place / STEPS_PER_DECADE))
