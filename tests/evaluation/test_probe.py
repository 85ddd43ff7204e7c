"""Linear probes: the same classifier as scikit-learn's, the search of the regularization, what is held out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.evaluation import probe
from dalle.evaluation.probe import fit_logistic, fit_probe, held_out


def clusters(classes: int, each: int, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features [classes * each, 6] around a center for each class, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, 6, generator=torch.Generator().manual_seed(9))
    targets = torch.arange(classes).repeat_interleave(each)
    return centers[targets] + spread * torch.randn(len(targets), 6, generator=generator), targets


@pytest.mark.parametrize("strength", [1e-2, 1.0, 30.0])
def test_optimum_equals_scikit_learns(strength: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="pip install scikit-learn")
    features, targets = clusters(4, 25, 1.0)
    theirs = linear_model.LogisticRegression(C=1 / strength, max_iter=10_000, tol=1e-10)
    theirs.fit(features.double().numpy(), targets.numpy())
    ours = fit_logistic(features, targets, 4, strength)
    torch.testing.assert_close(ours.weight, torch.from_numpy(theirs.coef_), rtol=1e-4, atol=1e-5)
    # A constant added to all biases changes no probability
    bias = torch.from_numpy(theirs.intercept_)
    torch.testing.assert_close(ours.bias - ours.bias.mean(), bias - bias.mean(), rtol=1e-4, atol=1e-5)
    wanted = torch.from_numpy(theirs.predict_proba(features.double().numpy()))
    torch.testing.assert_close(ours.logits(features).softmax(1), wanted, rtol=1e-4, atol=1e-5)


def test_gradient_vanishes_at_the_optimum() -> None:
    features, targets = clusters(3, 20, 1.0)
    found = fit_logistic(features, targets, 3, 0.5)
    excess = found.logits(features).softmax(1) - F.one_hot(targets, 3)  # [N, L], by hand
    assert (excess.T @ features.double() + 0.5 * found.weight).abs().max() < 1e-4
    assert excess.sum(0).abs().max() < 1e-5


@pytest.mark.parametrize("peak", [-6.0, -5.9, -1.37, 0.0, 2.51, 6.0])
def test_strength_search_equals_exhaustive_search(peak: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accuracy with one peak, halving intervals finds it."""
    fitted: list[float] = []

    def accuracy_of(strength: float) -> float:
        return -abs(math.log10(strength) - peak)

    def fit(features: Tensor, targets: Tensor, classes: int, strength: float) -> probe.LinearClassifier:
        fitted.append(strength)
        return probe.LinearClassifier(torch.full((2, 1), strength, dtype=torch.float64), torch.zeros(2))

    monkeypatch.setattr(probe, "fit_logistic", fit)
    monkeypatch.setattr(
        probe.metrics, "accuracy", lambda logits, targets, ks: {"top_1": accuracy_of(float(logits[0, 0]))}
    )
    found = fit_probe(torch.ones(8, 1), torch.tensor([0, 1] * 4), 2)
    assert found.strength == pytest.approx(max((10 ** (-6 + place / 8) for place in range(97)), key=accuracy_of))
    assert len(fitted) <= 7 + 2 * 4 + 1 and fitted[-1] == found.strength


def test_separable_features_are_classified_and_noise_is_not() -> None:
    features, targets = clusters(3, 20, 0.1)
    test_features, test_targets = clusters(3, 10, 0.1, seed=1)
    found = fit_probe(features, targets, 3)
    assert found.validation == 1 and (found.classifier.logits(test_features).argmax(1) == test_targets).all()
    noise = torch.randn(60, 6, generator=torch.Generator().manual_seed(3))
    assert fit_probe(noise, targets, 3).validation < 0.7


def test_a_fifth_of_each_class_is_held_out() -> None:
    targets = torch.tensor([0] * 10 + [2] * 3 + [3] * 2)
    kept, held = held_out(targets)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(15))
    assert torch.bincount(targets[held]).tolist() == [2, 0, 1, 1]
    assert torch.equal(held_out(targets)[1], held) and not torch.equal(held_out(targets, seed=1)[1], held)
    with pytest.raises(ValueError, match="class number 2 has one image"):
        held_out(torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match="of 1 class: a probe tells at least two apart"):
        held_out(torch.tensor([0, 0]))
