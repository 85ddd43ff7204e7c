"""Sampling against slow references that sort, and against the distribution it should have."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dalle.generation.options import SamplingConfig
from dalle.generation.sampling import guide
from dalle.kernels.sample import inverse_cdf_sample, keep_top_k, keep_top_p
from support.generation import sample


def logits_of(rows: int = 40, vocabulary: int = 17, ties: bool = False) -> Tensor:
    values = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(0)) * 2
    return values.round() if ties else values


def ranked(row: list[float]) -> list[int]:
    """Ids from the most likely on; of equal ones the lower first."""
    return sorted(range(len(row)), key=lambda i: (-row[i], i))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [1, 2, 5, 16, 17, 18, 1000])
def test_top_k_equals_sorting(k: int, ties: bool) -> None:
    logits = logits_of(ties=ties)
    for row, kept in zip(logits, keep_top_k(logits, k)):
        wanted = set(ranked(row.tolist())[:k])
        assert {i for i in range(17) if kept[i] > -math.inf} == wanted
        assert all(kept[i] == row[i] for i in wanted)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_nucleus_equals_sorting(p: float, ties: bool) -> None:
    logits = logits_of(ties=ties)
    for row, kept in zip(logits, keep_top_p(logits, p)):
        values = row.tolist()
        total = sum(math.exp(value) for value in values)
        wanted, mass = set(), 0.0
        for i in ranked(values):
            if mass >= p and p < 1:
                break
            wanted.add(i)
            mass += math.exp(values[i]) / total
        assert {i for i in range(17) if kept[i] > -math.inf} == wanted


def test_tied_logits_keep_the_first_tokens() -> None:
    flat = torch.zeros(2, 8)
    assert keep_top_k(flat, 3).isfinite().tolist() == [[True] * 3 + [False] * 5] * 2
    assert keep_top_p(flat, 0.5).isfinite().tolist() == [[True] * 4 + [False] * 4] * 2
    assert sample(flat, torch.tensor([0.0, 0.999]), temperature=0).tolist() == [0, 0]
    assert sample(flat, torch.tensor([0.0, 0.999])).tolist() == [0, 7]


def test_top_k_and_nucleus_together() -> None:
    """The nucleus is of what top-k has left."""
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    kept = {int(sample(logits, torch.tensor([u / 100]), top_k=2, top_p=0.55)) for u in range(100)}
    assert kept == {0}  # 0.4 of the 0.7 left is 0.571
    kept = {int(sample(logits, torch.tensor([u / 100]), top_k=2, top_p=0.6)) for u in range(100)}
    assert kept == {0, 1}


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"top_k": 4}, {"top_p": 0.8}])
def test_samples_follow_the_distribution(options: dict) -> None:
    """Chi-square of 20,000 draws at a fixed seed, against probabilities from the definition."""
    row = logits_of(1, 9)[0]
    scaled = (row / options.get("temperature", 1.0)).tolist()
    weights = [math.exp(value) for value in scaled]
    order = ranked(scaled)[: options.get("top_k", 9)]
    if "top_p" in options:
        mass = [sum(weights[i] for i in order[:n]) / sum(weights) for n in range(1, 10)]
        order = order[: next(n for n in range(1, 10) if mass[n - 1] >= options["top_p"])]
    draws = 20_000
    uniform = torch.rand(draws, generator=torch.Generator().manual_seed(5))
    counts = sample(row.expand(draws, 9), uniform, **options).bincount(minlength=9).tolist()
    expected = {i: draws * weights[i] / sum(weights[j] for j in order) for i in order}
    assert all(counts[i] == 0 for i in range(9) if i not in expected)
    chi_square = sum((counts[i] - mean) ** 2 / mean for i, mean in expected.items())
    assert chi_square < 26.1  # 8 degrees of freedom: exceeded once in 1000


def test_inverse_cdf_sample_equals_a_slow_loop() -> None:
    probabilities = logits_of(200, 13).softmax(-1)
    uniform = torch.rand(200, generator=torch.Generator().manual_seed(2))
    for row, number, drawn in zip(
        probabilities.double(), uniform.tolist(), inverse_cdf_sample(probabilities, uniform).tolist()
    ):
        mass, wanted = 0.0, -1
        while mass <= number and wanted + 1 < len(row):
            wanted += 1
            mass += float(row[wanted])
        assert drawn == wanted


def test_tokens_of_probability_0_are_never_sampled() -> None:
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]])
    below_one = 1 - 2**-24
    assert [int(inverse_cdf_sample(probabilities, torch.tensor([u]))) for u in (0.0, 0.49, 0.5, below_one)] == [
        1,
        1,
        3,
        3,
    ]
    assert int(inverse_cdf_sample(torch.tensor([[1.0, 0.0]]), torch.tensor([below_one]))) == 0


def test_temperature_0_is_argmax_and_infinity_is_uniform() -> None:
    logits = logits_of()
    uniform = torch.rand(40, generator=torch.Generator().manual_seed(3))
    best = [ranked(row)[0] for row in logits.tolist()]
    assert sample(logits, uniform, temperature=0).tolist() == best
    assert sample(logits, uniform, temperature=1e-9).tolist() == best
    flat = sample(logits, uniform, temperature=1e9)
    assert flat.tolist() == (uniform * 17).long().tolist()


def test_guidance_0_and_1_are_unconditional_and_conditional() -> None:
    conditional, unconditional = logits_of(3), logits_of(3).flip(0)
    torch.testing.assert_close(guide(conditional, unconditional, 1.0), conditional)
    torch.testing.assert_close(guide(conditional, unconditional, 0.0), unconditional)
    torch.testing.assert_close(guide(conditional, unconditional, 3.0), 3 * conditional - 2 * unconditional)


@pytest.mark.parametrize(
    "temperature,top_k,top_p",
    [(-0.1, None, None), (1e-300, None, None), (math.nan, None, None), (1, 0, None), (1, None, 0.0), (1, None, 1.1)],
)
def test_options_out_of_range_are_refused(temperature: float, top_k: int | None, top_p: float | None) -> None:
    with pytest.raises(ValueError, match="must be"):
        SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
