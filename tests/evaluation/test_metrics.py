"""Every figure equals a slow loop, a closed form or a library's answer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dalle.evaluation.metrics import CodebookUsage, accuracy, confusion, frechet_distance, psnr, retrieval, ssim


def images(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(*shape, generator=generator)
    return first, (first + 0.2 * torch.randn(*shape, generator=generator)).clamp(0, 1)


def test_psnr_equals_the_formula_for_each_image() -> None:
    x, y = images(3, 3, 8, 9)
    for a, b, value in zip(x, y, psnr(x, y).tolist(), strict=True):
        errors = [(p - q) ** 2 for p, q in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)]
        assert value == pytest.approx(10 * math.log10(1 / (sum(errors) / len(errors))), rel=1e-5)
    assert psnr(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.1)).item() == pytest.approx(20.0)
    assert psnr(x, x).tolist() == [math.inf] * 3


def slow_ssim(x: Tensor, y: Tensor) -> float:
    """Wang et al. 2004, equations 13 to 17, window by window. One image [C, H, W]."""
    window = torch.tensor([[math.exp(-(i * i + j * j) / 4.5) for j in range(-5, 6)] for i in range(-5, 6)])
    window = (window / window.sum()).double()
    total, count = 0.0, 0
    for a, b in zip(x.double(), y.double(), strict=True):
        for top in range(a.shape[0] - 10):
            for left in range(a.shape[1] - 10):
                p, q = a[top : top + 11, left : left + 11], b[top : top + 11, left : left + 11]
                m, n = (window * p).sum().item(), (window * q).sum().item()
                v, w = (window * (p - m) ** 2).sum().item(), (window * (q - n) ** 2).sum().item()
                c = (window * (p - m) * (q - n)).sum().item()
                total += (2 * m * n + 1e-4) * (2 * c + 9e-4) / ((m * m + n * n + 1e-4) * (v + w + 9e-4))
                count += 1
    return total / count


def test_ssim_equals_a_slow_loop() -> None:
    x, y = images(2, 3, 14, 17)
    expected = [slow_ssim(a, b) for a, b in zip(x, y, strict=True)]
    torch.testing.assert_close(ssim(x, y), torch.tensor(expected), rtol=1e-5, atol=0)
    torch.testing.assert_close(ssim(x, x), torch.ones(2))
    torch.testing.assert_close(ssim(x, y), ssim(y, x))


def test_ssim_of_too_small_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 11x11 pixels, got 8x16"):
        ssim(torch.rand(1, 3, 8, 16), torch.rand(1, 3, 8, 16))


def test_codebook_usage_and_perplexity_equal_the_formulas() -> None:
    use = CodebookUsage(8)
    use.update(torch.tensor([[[0, 1], [2, 3]]]))
    use.update(torch.tensor([0, 1, 2, 3]))
    assert (use.used, use.dead) == (0.5, 4)
    assert use.perplexity == pytest.approx(4.0)
    use.update(torch.zeros(8, dtype=torch.long))
    entropy = -(10 / 16 * math.log(10 / 16) + 3 * 2 / 16 * math.log(2 / 16))
    assert use.perplexity == pytest.approx(math.exp(entropy))
    assert use.metrics() == {"codebook_used": 0.5, "codebook_perplexity": use.perplexity, "dead_codes": 4}
    assert math.isnan(CodebookUsage(8).perplexity)


def test_retrieval_equals_sorting_every_row() -> None:
    generator = torch.Generator().manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(20, 6, generator=generator), dim=1)
    images = torch.nn.functional.normalize(texts + 0.5 * torch.randn(20, 6, generator=generator), dim=1)
    figures = retrieval(images, texts, (1, 3))
    for name, queries, answers in (("image_to_text", images, texts), ("text_to_image", texts, images)):
        for k in (1, 3):
            hits = 0
            for i, query in enumerate(queries):
                order = sorted(range(20), key=lambda j: -float(query @ answers[j]))
                hits += i in order[:k]
            assert figures[f"{name}@{k}"] == pytest.approx(hits / 20)
    assert 0 < figures["image_to_text@1"] < figures["image_to_text@3"] < 1  # the case is not a trivial one


def test_retrieval_of_constant_embeddings_is_zero() -> None:
    same = torch.ones(5, 4) / 2
    assert set(retrieval(same, same, (1, 4)).values()) == {0.0}
    assert retrieval(same, same, (5,))["image_to_text@5"] == 1.0
    assert set(retrieval(torch.eye(4), torch.eye(4), (1,)).values()) == {1.0}


def test_frechet_distance_equals_the_formula_with_a_matrix_root() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    b = (
        torch.randn(60, 4, generator=generator, dtype=torch.float64) @ torch.randn(4, 4, generator=generator).double()
        + 1
    )
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    # an independent root of A B: its eigenvalues are those of a matrix similar to a positive one, so real and >= 0
    roots = torch.linalg.eigvals(cov_a @ cov_b).sqrt().sum()
    assert abs(roots.imag) < 1e-9
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + cov_a.trace() + cov_b.trace() - 2 * roots.real
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_frechet_distance_of_known_gaussians() -> None:
    values = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).double()
    assert frechet_distance(values, values) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(values, values + 2) == pytest.approx(12)  # only the means differ: 3 * 2^2
    variance = torch.cov(values[:, :1].T).item()
    assert frechet_distance(values[:, :1], 3 * (values[:, :1] - values[:, :1].mean()) + values[:, :1].mean()) == (
        pytest.approx((3 - 1) ** 2 * variance)
    )


def test_frechet_distance_with_fewer_samples_than_features() -> None:
    a, b = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    assert math.isfinite(frechet_distance(a, b))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="at least 2 samples"):
        frechet_distance(a[:1], b)


def test_accuracy_and_confusion_equal_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(40, 7, generator=generator)
    targets = torch.randint(0, 7, (40,), generator=generator)
    scores[0] = 0.5  # ties count as wrong
    hits = {1: 0, 5: 0}
    counts = torch.zeros(7, 7, dtype=torch.int64)
    for row, target in zip(scores, targets.tolist(), strict=True):
        counts[target, int(row.argmax())] += 1
        for k in hits:
            hits[k] += sum(bool(other >= row[target]) for other in row) <= k
    assert accuracy(scores, targets) == {f"top_{k}": pytest.approx(n / 40) for k, n in hits.items()}
    assert torch.equal(confusion(scores.argmax(1), targets, 7), counts)
