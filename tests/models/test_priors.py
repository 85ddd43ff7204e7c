"""Both priors: padding, dropped text, statistics, buckets, the cache, and what is drawn of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dalle.generation.diffusion.sample import SamplerConfig
from dalle.generation.prior import PriorSamplingConfig, sample_embeddings
from dalle.models.autoregressive_prior import AutoregressivePrior, AutoregressivePriorConfig, components_for
from dalle.models.clip import TextStates
from dalle.models.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from dalle.models.transformer_config import TransformerConfig

SHAPE = {"embed_dim": 12, "text_width": 10, "text_length": 7}
TINY = TransformerConfig(width=16, depth=2, heads=2)
Either = DiffusionPrior | AutoregressivePrior


def embeddings(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pairs whose variance lies in few directions, far from 0."""
    random = torch.Generator().manual_seed(seed)
    latent = torch.randn(count, 3, generator=random) * torch.tensor([5.0, 2.0, 1.0])
    mix, other = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(99))
    images = latent @ mix + 0.01 * torch.randn(count, 12, generator=random) + 4
    return images, latent @ other + torch.randn(count, 12, generator=random)


def make(kind: str) -> Either:
    torch.manual_seed(0)
    prior: Either
    if kind == "diffusion":
        prior = DiffusionPrior(DiffusionPriorConfig(transformer=TINY, **SHAPE))
    else:
        config = AutoregressivePriorConfig(transformer=TINY, **SHAPE, components=3, buckets=16, dot_buckets=8)
        prior = AutoregressivePrior(config)
    prior.fit(*embeddings(2000))
    return prior.eval()


def captions(count: int, length: int = 7, seed: int = 1) -> TextStates:
    random = torch.Generator().manual_seed(seed)
    ends = torch.tensor([2 + row % 4 for row in range(count)])
    mask = torch.arange(length) < ends[:, None]
    states = torch.randn(count, length, 10, generator=random)
    return TextStates(states, mask, torch.randn(count, 12, generator=random) * 3)


def output(prior: Either, text: TextStates, dropped: Tensor | None = None) -> Tensor:
    count = len(text.states)
    random = torch.Generator().manual_seed(2)
    if isinstance(prior, DiffusionPrior):
        return prior(torch.randn(count, 12, generator=random), torch.arange(count) * 90, text, dropped)
    ids = torch.randint(16, (count, 3), generator=random)
    return prior(ids, torch.arange(count) % 8, text, dropped)


@pytest.fixture(params=["diffusion", "autoregressive"])
def prior(request: pytest.FixtureRequest) -> Either:
    return make(request.param)


@torch.no_grad()
def test_padding_does_not_change_the_output(prior: Either) -> None:
    text = captions(4)
    plain = output(prior, text)
    noise = torch.where(text.mask[..., None], text.states, 100.0)
    torch.testing.assert_close(output(prior, text._replace(states=noise)), plain)
    cut = TextStates(text.states[:, :5], text.mask[:, :5], text.embeds)
    torch.testing.assert_close(output(prior, cut), plain)
    real = text.states.clone()
    real[:, 0] += 1
    assert not torch.allclose(output(prior, text._replace(states=real)), plain, atol=1e-4)
    assert not torch.allclose(output(prior, text._replace(embeds=text.embeds + 1)), plain, atol=1e-4)


@torch.no_grad()
def test_dropped_text_is_replaced_by_the_null_embedding(prior: Either) -> None:
    all_of_them, some = torch.ones(4, dtype=torch.bool), torch.tensor([True, False, True, False])
    null = output(prior, captions(4), all_of_them)
    if isinstance(prior, DiffusionPrior):
        torch.testing.assert_close(output(prior, captions(4, seed=5), all_of_them), null)
    mixed, kept = output(prior, captions(4), some), output(prior, captions(4))
    torch.testing.assert_close(mixed[some], null[some])
    torch.testing.assert_close(mixed[~some], kept[~some])
    assert not torch.allclose(null, kept, atol=1e-4)


@torch.no_grad()
def test_the_text_is_read_once_for_all_steps() -> None:
    prior, text = make("diffusion"), captions(4, length=5)
    assert isinstance(prior, DiffusionPrior)
    dropped = torch.tensor([False, True, False, False])
    for rows in (None, dropped):
        cache, valid = prior.prefill(text, rows)
        for seed in (3, 4):
            random = torch.Generator().manual_seed(seed)
            noised, steps = torch.randn(4, 12, generator=random), torch.randint(1000, (4,), generator=random)
            torch.testing.assert_close(
                prior.denoise(noised, steps, cache, valid), prior(noised, steps, text, rows), rtol=1e-4, atol=1e-5
            )


def test_every_parameter_is_trained(prior: Either) -> None:
    prior.train()
    output(prior, captions(4), torch.tensor([True, False, False, False])).square().mean().backward()
    assert [name for name, p in prior.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_statistics_are_buffers_that_standardize(prior: Either) -> None:
    images, _ = embeddings(2000)
    standard = prior.standardize(images)
    torch.testing.assert_close(standard.mean(0), torch.zeros(12), atol=1e-4, rtol=0)
    torch.testing.assert_close(standard.std(0), torch.ones(12), atol=1e-4, rtol=0)
    torch.testing.assert_close(prior.unstandardize(standard), images, rtol=1e-4, atol=1e-4)
    names = {name for name, _ in prior.named_parameters()}
    assert {"image_mean", "image_deviation", "text_mean", "text_deviation"} <= set(prior.state_dict()) - names
    again = type(prior)(prior.config).eval()
    again.load_state_dict(prior.state_dict())
    torch.testing.assert_close(output(again, captions(3)), output(prior, captions(3)))


@pytest.mark.parametrize("count", [16, 37, 2000])
def test_buckets_are_filled_equally(count: int) -> None:
    prior = make("autoregressive")
    assert isinstance(prior, AutoregressivePrior)
    images, texts = embeddings(count)
    prior.fit(images, texts)
    ids, dots = prior.encode(images), prior.encode_dots(images, texts)
    for tokens, buckets in ((ids[:, 0], 16), (ids[:, 1], 16), (ids[:, 2], 16), (dots, 8)):
        expected = [0] * buckets
        for rank in range(count):  # the smallest values are of the first bucket
            expected[next(one for one in range(buckets) if rank < (one + 1) * count // buckets)] += 1
        assert torch.bincount(tokens, minlength=buckets).tolist() == expected
    if count == 16:  # each value is a bucket, and comes back exactly as its mean
        values = prior.standardize(images) @ prior.basis
        torch.testing.assert_close(prior.centers.T, values.sort(dim=0).values, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_candidates_do_not_depend_on_the_batch(prior: Either) -> None:
    text = captions(3)
    for guidance in (1.0, 2.5):
        options = PriorSamplingConfig(guidance=guidance, sampler=SamplerConfig(steps=4))
        together = sample_embeddings(prior, text, [5, 6, 7], options)
        assert together.shape == (3, 12) and together.isfinite().all()
        for row in range(3):
            alone = TextStates(*(part[row : row + 1] for part in text))
            torch.testing.assert_close(
                sample_embeddings(prior, alone, [5 + row], options)[0], together[row], rtol=1e-3, atol=1e-3
            )
    with pytest.raises(ValueError, match="3 captions with 2 seeds"):
        sample_embeddings(prior, text, [1, 2], PriorSamplingConfig())


@torch.no_grad()
def test_more_samples_fit_the_caption_better() -> None:
    prior, text = make("diffusion"), captions(16)
    fits = []
    for samples in (1, 2, 8):
        options = PriorSamplingConfig(samples=samples, sampler=SamplerConfig(steps=3))
        embeds = sample_embeddings(prior, text, range(16), options)
        fits.append(torch.cosine_similarity(embeds, text.embeds, dim=-1))
    assert fits[0].mean() < fits[1].mean() < fits[2].mean()
    assert (fits[1] >= fits[0] - 1e-6).all()  # the first is among the two


def test_components_explain_the_given_variance() -> None:
    images, _ = embeddings(2000)
    standard = (images - images.mean(0)) / images.std(0)
    squares = torch.linalg.svdvals(standard.double()).square()
    kept = (squares.cumsum(0) / squares.sum()).tolist()
    for variance in (0.5, 0.9, 0.99, 1.0):
        count = components_for(standard, variance)
        assert kept[count - 1] >= variance - 1e-9 and (count == 1 or kept[count - 2] < variance)
    assert components_for(standard, 0.999) == 3


def test_buckets_are_equally_filled_and_decode_to_the_embedding() -> None:
    config = AutoregressivePriorConfig(transformer=TINY, **SHAPE, components=3, buckets=64)
    prior = AutoregressivePrior(config)
    images, texts = embeddings(6400)
    prior.fit(images, texts)
    ids = prior.encode(images)
    assert ids.shape == (6400, 3)
    for component in range(3):
        counts = torch.bincount(ids[:, component], minlength=64)
        assert counts.min() >= 98 and counts.max() <= 102
    held_out, _ = embeddings(500, seed=3)
    error = (prior.standardize(prior.decode(prior.encode(held_out))) - prior.standardize(held_out)).square().mean()
    assert error < 0.005  # of a variance of 1
    dots = prior.encode_dots(images, texts)
    unit = torch.nn.functional.normalize(images, dim=-1) * torch.nn.functional.normalize(texts, dim=-1)
    order = unit.sum(-1).argsort()
    assert (dots[order].diff() >= 0).all()
    assert torch.bincount(dots, minlength=32).min() >= 198


@torch.no_grad()
def test_cached_logits_equal_uncached() -> None:
    prior = make("autoregressive")
    assert isinstance(prior, AutoregressivePrior)
    text, dots = captions(4), torch.tensor([0, 3, 5, 7])
    dropped = torch.tensor([False, True, False, False])
    ids = torch.randint(16, (4, 3), generator=torch.Generator().manual_seed(4))
    whole = prior(ids, dots, text, dropped)
    logits, cache, real = prior.prefill(text, dots, dropped)
    torch.testing.assert_close(logits, whole[:, 0])
    for component in range(2):
        torch.testing.assert_close(prior.extend(ids[:, component], cache, real), whole[:, component + 1])
    changed = ids.clone()
    changed[:, 1] = (changed[:, 1] + 5) % 16  # causal: what is predicted up to it does not know it
    torch.testing.assert_close(prior(changed, dots, text, dropped)[:, :2], whole[:, :2])


@torch.no_grad()
def test_dot_product_is_sampled_from_the_top_half(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = make("autoregressive")
    assert isinstance(prior, AutoregressivePrior)
    seen: list[Tensor] = []
    prefill = prior.prefill

    def watched(text: TextStates, dots: Tensor, dropped: Tensor | None) -> object:
        seen.append(dots)
        return prefill(text, dots, dropped)

    monkeypatch.setattr(prior, "prefill", watched)
    sample_embeddings(prior, captions(200), range(200), PriorSamplingConfig())
    assert torch.bincount(seen[0], minlength=8)[:4].sum() == 0
    assert torch.bincount(seen[0], minlength=8)[4:].min() > 25


def test_wrong_shapes_are_refused(prior: Either) -> None:
    with pytest.raises(ValueError, match="captions of 9 tokens, but this prior reads at most 7"):
        output(prior, captions(2, length=9))
    with pytest.raises(ValueError, match="at least 2 embeddings"):
        prior.fit(*embeddings(1))
    with pytest.raises(ValueError, match="components is 40"):
        AutoregressivePriorConfig(**SHAPE, components=40)
    with pytest.raises(ValueError, match="samples is 0"):
        PriorSamplingConfig(samples=0)
    if isinstance(prior, AutoregressivePrior):
        with pytest.raises(ValueError, match="9 embeddings cannot fill 16 buckets"):
            prior.fit(*embeddings(9))
