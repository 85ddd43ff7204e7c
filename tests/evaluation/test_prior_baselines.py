"""The table of a prior: the regression against augmented least squares, baselines against slow loops, ties."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dalle.evaluation import prior_baselines
from dalle.evaluation.prior_baselines import embedding_metrics, ranked, ridge_regression
from dalle.models.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from dalle.models.transformer_config import TransformerConfig


def pairs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Embeddings of images, which depend linearly on those of captions and on noise."""
    random = torch.Generator().manual_seed(seed)
    texts = 3 + 2 * torch.randn(count, 5, generator=random)
    weight = torch.randn(5, 5, generator=torch.Generator().manual_seed(9))
    return texts @ weight + 0.3 * torch.randn(count, 5, generator=random), texts


@pytest.fixture
def prior() -> DiffusionPrior:
    shape = DiffusionPriorConfig(transformer=TransformerConfig(width=16, depth=1, heads=2), embed_dim=5, text_width=4)
    torch.manual_seed(0)
    found = DiffusionPrior(shape)
    found.fit(*pairs(200, 1))
    return found


def test_ridge_regression_equals_augmented_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """A penalty is the same as rows of its root that should give zeros."""
    images, texts = pairs(200, 1)
    monkeypatch.setattr(prior_baselines, "_STRENGTHS", (0.5,))
    found = ridge_regression(texts, images)(texts[:7])
    x = (texts - texts.mean(0)) / texts.std(0)
    rows = torch.cat((x, (0.5 * 200) ** 0.5 * torch.eye(5))).double()
    wanted = torch.cat((images - images.mean(0), torch.zeros(5, 5))).double()
    weight = torch.linalg.lstsq(rows, wanted).solution.float()
    torch.testing.assert_close(found, x[:7] @ weight + images.mean(0), rtol=1e-4, atol=1e-4)


def test_ridge_regression_chooses_its_penalty() -> None:
    """What depends on the inputs is predicted; of noise there is nothing to predict but its mean."""
    images, texts = pairs(300, 1)
    new_images, new_texts = pairs(50, 2)
    predicted = ridge_regression(texts, images)(new_texts)
    assert (predicted - new_images).square().mean() < 0.1 < new_images.var()
    noise = torch.randn(300, 5, generator=torch.Generator().manual_seed(3)) + 1
    spread = ridge_regression(texts, noise)(new_texts).std(0)
    assert spread.max() < 0.1
    with pytest.raises(ValueError, match="at least 10 training pairs, got 9"):
        ridge_regression(texts[:9], images[:9])


def test_baselines_equal_a_slow_loop(prior: DiffusionPrior) -> None:
    known = pairs(30, 1)
    images, texts = pairs(12, 2)
    rows = prior_baselines._baselines(prior, known, images, texts)
    nearest = []
    for text in texts:
        cosines = [torch.cosine_similarity(text, other, dim=0).item() for other in known[1]]
        nearest.append(known[0][cosines.index(max(cosines))])
    wanted = [torch.cosine_similarity(one, other, dim=0).item() for one, other in zip(nearest, images)]
    found = rows["image of the nearest training caption"]
    assert found["cos"] == pytest.approx(sum(wanted) / 12, abs=1e-5)
    own = rows["the image's own embedding"]
    assert (
        own["cos"] == pytest.approx(1) and own["own_image_top1"] == 1 and own["frechet"] == pytest.approx(0, abs=1e-3)
    )
    assert rows["the caption's own embedding"]["own_caption_top1"] == 1
    mean = rows["mean of the training set"]
    assert mean["cos"] == pytest.approx(
        torch.cosine_similarity(prior.image_mean, images, dim=1).mean().item(), abs=1e-5
    )
    assert mean["centered_cos"] == 0 and mean["own_image_top10"] is None
    assert rows["ridge regression"]["centered_cos"] > 0.9


def test_ties_count_as_errors(prior: DiffusionPrior) -> None:
    images, texts = pairs(12, 2)
    same = images[:1].expand(12, -1)
    assert ranked("own", same, same)["own_top10"] == 0
    assert embedding_metrics(images[:1], images[:1], texts[:1], prior)["frechet"] is None  # of one there is none
