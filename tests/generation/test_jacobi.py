"""Drawing several tokens a step: the tokens of one-by-one drawing, in fewer steps; so the same distribution."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dalle.config import to_dict
from dalle.generation.jacobi import jacobi_decode
from dalle.kernels.sample import inverse_cdf_sample
from dalle.pipelines.text_to_image import TextToImage
from support.generation import generate
from support.published.references.transformers import CASES, features, inputs
from support.published.transformers import built, read, reference
from support.tiny_transformers import KINDS, OPTIONS, SEEDS, TEXT, tiny


def steps(*args: Any, **options: Any) -> tuple[Tensor, int]:
    """What `generate` draws, and in how many steps; what it tells of its progress is checked."""
    calls: list[tuple[int, int]] = []
    codes = generate(*args, progress=lambda done, total: calls.append((done, total)), **options)
    done = [call[0] for call in calls]
    assert done == sorted(set(done)) and all(call[1] == done[-1] for call in calls)
    return codes, len(calls)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [2, 5, 100])
def test_jacobi_tokens_equal_sequential_decoding(kind: dict, window: int) -> None:
    model = tiny(kind)
    plain, count = steps(model, TEXT, SEEDS)
    codes, fewer = steps(model, TEXT, SEEDS, window=window)
    forced = 2 if kind.get("row_ends") else 0  # the row ends between 3 rows are positions of their own
    assert torch.equal(codes, plain) and count == 12 + forced and 1 < fewer <= count


@pytest.mark.parametrize("options", OPTIONS)
def test_jacobi_tokens_equal_sequential_decoding_with_every_option(options: dict) -> None:
    model = tiny(KINDS[4])
    expected = generate(model, TEXT, SEEDS, **options)
    assert torch.equal(generate(model, TEXT, SEEDS, window=4, **options), expected)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("kept", [[], [0], [0, 1, 2, 3, 4], [2, 3, 7, 11], list(range(11)), list(range(12))])
def test_jacobi_tokens_equal_sequential_decoding_with_known_codes(kept: list[int], guidance: float) -> None:
    model = tiny(KINDS[4])
    forced = torch.randint(0, 11, (3, 3, 4), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(12, dtype=torch.bool)
    mask[kept] = True
    options = {"known_codes": forced, "known_mask": mask, "guidance": guidance}
    expected = generate(model, TEXT, SEEDS, **options)
    assert torch.equal(generate(model, TEXT, SEEDS, window=3, **options), expected)


def test_jacobi_tokens_equal_sequential_decoding_with_known_codes_by_candidate() -> None:
    model, generator = tiny({}), torch.Generator().manual_seed(0)
    options = {
        "known_codes": torch.randint(0, 11, (6, 12), generator=generator),
        "known_mask": torch.rand(6, 12, generator=generator) < 0.5,
    }
    expected = generate(model, TEXT, SEEDS, **options)
    assert torch.equal(generate(model, TEXT, SEEDS, window=5, **options), expected)


@pytest.mark.parametrize("case", CASES)
def test_jacobi_tokens_of_published_models_equal_sequential_decoding(case: str, tmp_path: Path) -> None:
    model = built(read(case, reference(case)[0], tmp_path)).double()
    text = inputs()[0]
    if case.startswith("llamagen"):
        text = features().double() if case == "llamagen-t2i" else torch.tensor([[3], [7]])
    options = {"guidance": 2.0, "temperature": 0.7}
    expected = generate(model, text, [[0, 1], [1]], **options)
    assert torch.equal(generate(model, text, [[0, 1], [1]], window=6, **options), expected)


def test_confident_model_needs_few_steps() -> None:
    model = tiny({})
    nn.init.zeros_(model.image_head.weight)
    nn.init.constant_(model.image_head.bias, -9)
    nn.init.constant_(model.image_head.bias[3], 9)  # whatever went before, it is sure of this code
    codes, count = steps(model, TEXT, SEEDS, window=12)
    assert (codes == 3).all() and count == 2


@pytest.mark.slow
def test_shipped_model_needs_at_most_half_the_steps() -> None:
    pipe = TextToImage.from_pretrained(device="cpu")
    counts = []
    shape = pipe.model.config
    codes_of_an_image = shape.grid[0] * shape.grid[1]
    for prompt in ("a red heart, 3d style", "कुत्ते का चेहरा", "रातो मुटु", "an elephant on a blue background"):
        text = pipe.text_tokenizer.pad(pipe.text_tokenizer.encode_ragged([prompt]), shape.text_length)
        args = (pipe.model, text, [[0]])
        plain, count = steps(*args, **to_dict(pipe.sampling))
        codes, fewer = steps(*args, **to_dict(pipe.sampling), window=16)
        assert torch.equal(codes, plain) and count == codes_of_an_image
        counts.append(fewer)
    assert sum(counts) <= codes_of_an_image / 2 * len(counts)


class Table:
    """A distribution of N tokens of V by its table: in place of a model. Counts the passes."""

    def __init__(self, length: int, vocabulary: int, parts: int) -> None:
        """Conditional probabilities are whole multiples of 1 / parts, 0 among them."""
        generator = torch.Generator().manual_seed(0)
        shape = (length, vocabulary**length, parts)  # place, what went before as a number
        drawn = torch.randint(0, vocabulary, shape, generator=generator)
        self.conditional = nn.functional.one_hot(drawn, vocabulary).sum(2).double() / parts  # [N, V^N, V]
        self.length, self.vocabulary, self.passes = length, vocabulary, 0
        self.before = torch.zeros(0, 0, dtype=torch.int64)

    def after(self, history: Tensor) -> Tensor:
        """Probabilities of the token after `history` [B, i]: [B, V]."""
        digits = self.vocabulary ** torch.arange(history.shape[1])
        return self.conditional[history.shape[1], (history * digits).sum(1)]

    def run(self, tokens: Tensor, first: int) -> Tensor:
        self.passes += 1
        history = torch.cat((self.before[:, :first], tokens), dim=1)  # what is held up to `first`, and overwrites
        self.before = history
        return torch.stack([self.after(history[:, : i + 1]) for i in range(first, history.shape[1])], dim=1)

    def draw(self, uniform: Tensor, window: int) -> Tensor:
        """By windows."""
        rows = len(uniform)
        codes, self.before = torch.zeros(rows, self.length, dtype=torch.int64), torch.zeros(rows, 0, dtype=torch.int64)

        def choose(probabilities: Tensor, numbers: Tensor) -> Tensor:
            return inverse_cdf_sample(probabilities.flatten(0, 1), numbers.flatten()).view(numbers.shape)

        first = self.after(codes[:, :0])[:, None]
        keep = torch.zeros_like(codes, dtype=torch.bool)
        jacobi_decode(self.run, choose, first, codes, keep, uniform, 0, window, lambda settled: None)
        return codes


@pytest.mark.parametrize("window", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, 7, 625])
def test_jacobi_distribution_is_exact_by_enumeration(window: int, batch: int) -> None:
    """Over a grid of uniform numbers, each of the 81 sequences comes out exactly as often as it is probable."""
    table = Table(length=4, vocabulary=3, parts=5)
    levels = (torch.arange(5, dtype=torch.float64) + 0.5) / 5
    grid = torch.cartesian_prod(*[levels] * 4)  # [625, 4]
    codes = torch.cat([table.draw(part, window) for part in grid.split(batch)])
    count: dict[tuple[int, ...], int] = {}
    for row in codes.tolist():
        count[tuple(row)] = count.get(tuple(row), 0) + 1
    for sequence in itertools.product(range(3), repeat=4):
        tokens = torch.tensor([sequence])
        probability = 1.0
        for i, token in enumerate(sequence):
            probability *= float(table.after(tokens[:, :i])[0, token])
        assert count.get(sequence, 0) == pytest.approx(625 * probability, abs=1e-9)
    if window == 4 and batch == 1:
        assert table.passes < 0.9 * 3 * 625


@torch.no_grad()
def test_jacobi_samples_follow_the_models_distribution() -> None:
    """At each place, codes come out as often as the model says after what was drawn before: chi-square.

    The differences between a code's coming out and its probability are martingale differences, so their sums at the 12
    places, over the deviations, are independent and normal for many candidates.
    """
    model = tiny({"attention": ("row", "column")}, 0.2)
    count = 3000
    codes = generate(model, TEXT[:1], [list(range(count))], window=5, temperature=0.8).flatten(1)
    probabilities = (model(TEXT[:1].expand(count, -1), codes) / 0.8).softmax(-1)  # [count, 12, 11]
    likely = probabilities.mean(0).argsort(-1)[:, ::2]  # half of the codes of each place
    expected = probabilities.gather(-1, likely.expand(count, -1, -1)).sum(-1)
    came = (codes[..., None] == likely).any(-1).double()
    z = (came - expected).sum(0) / (expected * (1 - expected)).sum(0).sqrt()
    assert float(z.square().sum()) < 32.9  # 99.9 % of chi-square with 12 degrees of freedom
    first = torch.bincount(codes[:, 0], minlength=11) / count
    deviation = (first - probabilities[0, 0]).square() / probabilities[0, 0] * count
    assert float(deviation.sum()) < 29.6  # 99.9 % with 10


def test_window_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="window is 0; it must be at least 1"):
        generate(tiny({}), TEXT, SEEDS, window=0)
